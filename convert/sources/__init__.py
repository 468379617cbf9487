"""Turn what a user names into a file: a path, seeded weights, a download or a repository on the Hub."""
