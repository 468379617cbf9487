"""A checkpoint whose network is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from convert.checkpoint import Checkpoint
from convert.definition import Definition
from convert.record import Origin
from convert.references.catalogue import SOURCE


@dataclass(frozen=True)
class Subject:
    """The written checkpoint, or its source."""

    side: str
    """`source` or `written`."""
    checkpoint: Checkpoint
    origin: Origin
    """Says what became of the head since, and how far the weights were rounded."""

    @classmethod
    def source(cls, checkpoint: Checkpoint) -> Subject:
        record = checkpoint.record
        return cls(SOURCE, checkpoint, record.origin if record is not None else Origin(checkpoint.name, ""))

    def definition(self, dtype: type[np.floating[Any]] = np.float64) -> Definition:
        """The definition with this checkpoint's weights."""
        checkpoint = self.checkpoint
        return Definition(checkpoint.weights, checkpoint.config, checkpoint.layout.folded, dtype)

    @property
    def has_new_head(self) -> bool:
        return self.origin.head.startswith("new:")

    def keeps(self, tap: str) -> bool:
        """Whether what the origin computed there is what this should compute."""
        return tap != "logits" or self.origin.head == "keep"
