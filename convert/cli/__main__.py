"""Run the command `bit` as `python -m convert.cli`; `python -m bit` and `python -m convert` lead here."""

from convert.cli.main import main

main(prog_name="bit")
