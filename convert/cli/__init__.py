"""The command `bit`, one subcommand a file."""
