"""Opened checkpoints, their architecture, and the manifest of the conversion that wrote them."""
