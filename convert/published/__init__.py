"""What Google published: the checkpoints, their classes' names and their preprocessing."""
