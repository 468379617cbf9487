"""From what a user names to a file: a path, seeded weights, a download or a Hub repository."""
