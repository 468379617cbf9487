"""Load checkpoints as the users of each library do, one library a file."""
