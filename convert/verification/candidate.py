"""A checkpoint whose network is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.manifest import Origin
from convert.network.oracle import Oracle
from convert.references.registry import SOURCE


@dataclass(frozen=True)
class Candidate:
    """The written checkpoint, or its source."""

    side: str
    """`source` or `written`."""
    checkpoint: Checkpoint
    origin: Origin
    """Says what became of the head since, and how far the weights were rounded."""

    @classmethod
    def source(cls, checkpoint: Checkpoint) -> Candidate:
        record = checkpoint.record
        return cls(SOURCE, checkpoint, record.origin if record is not None else Origin(checkpoint.name, ""))

    def definition(self, dtype: type[np.floating[Any]] = np.float64) -> Oracle:
        """The definition with this checkpoint's weights."""
        checkpoint = self.checkpoint
        return Oracle(checkpoint.weights, checkpoint.config, checkpoint.layout.folded, dtype)

    @property
    def has_new_head(self) -> bool:
        return self.origin.head.startswith("new:")

    def keeps(self, tap: str) -> bool:
        """Whether what the origin computed there is what this should compute."""
        return tap != "logits" or self.origin.head == "keep"
