"""The checkpoints that Google published, the names of their classes, and the preprocessing of images."""
