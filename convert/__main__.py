"""`python -m convert` is the command `bit`."""

from convert.cli.main import main

main(prog_name="bit")
