"""`python -m convert` is the command `bit`."""

from convert.cli import main

main(prog_name="bit")
