"""The subcommands of `bit`, one a file."""
