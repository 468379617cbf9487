"""Measure checkpoints on labelled images, each run by its own library, and compare what they answer."""
