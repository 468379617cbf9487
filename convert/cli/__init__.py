"""The command `bit`, one subcommand in each file."""
