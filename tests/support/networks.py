"""Small networks."""

from __future__ import annotations

from bit.config import BitConfig

TINY = BitConfig(embedding_size=32, hidden_sizes=(128, 256), depths=(2, 1), num_labels=5)
"""The narrowest BiT: each of the 32 groups has one channel."""
