"""A checkpoint of either side whose network is run."""

from __future__ import annotations

from dataclasses import dataclass

from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.manifest import Origin
from convert.verification.results import SOURCE


@dataclass(frozen=True)
class Candidate:
    """A converted checkpoint or the source, with what conversions have changed since the original."""

    side: str
    """`source` or `converted`."""
    checkpoint: Checkpoint
    origin: Origin
    """The original checkpoint, what became of the head, and the roundings of the weights."""

    @classmethod
    def source(cls, checkpoint: Checkpoint) -> Candidate:
        manifest = checkpoint.manifest
        return cls(SOURCE, checkpoint, Origin(checkpoint.name, "") if manifest is None else manifest.origin)

    @property
    def has_new_head(self) -> bool:
        """True if a conversion has put a head of zeros in place of the original one."""
        return self.origin.head.startswith("new:")

    def keeps(self, tap: str) -> bool:
        """Return whether a tap must have the values that it has in the original network."""
        return tap != "logits" or self.origin.head == "keep"
