"""What a verification found, as values."""

from __future__ import annotations

import math
from dataclasses import dataclass

END_TO_END, ISOLATED = "end-to-end", "isolated"
"""The modes of a check, see `Check.mode`."""


@dataclass(frozen=True)
class Check:
    """One tap of one input, held to a reference."""

    reference: str
    implementation: str
    side: str
    """Whose weights it ran: `written`, or `source`."""
    dtype: str
    mode: str
    """`end-to-end`: each part was given what the one before made, so that errors add up as they
    do for a user; `isolated`: what the reference made, so that the error is of this part alone."""
    input: str
    tap: str
    error: float
    """Relative L2."""
    tolerance: float

    @property
    def passed(self) -> bool:
        return math.isfinite(self.tolerance) and self.error <= self.tolerance

    @property
    def run(self) -> str:
        """What it has in common with the checks of the other taps."""
        where = " on the source" if self.side == "source" else ""
        forced = ", isolated" if self.mode == ISOLATED else ""
        return f"{self.implementation}{where} {self.dtype}{forced}"


@dataclass(frozen=True)
class Agreement:
    """Whether an implementation puts the images of one input into the classes that the reference does."""

    implementation: str
    side: str
    dtype: str
    input: str
    images: int
    top1: int
    """Images whose most probable class is the reference's."""
    top5: int
    """Images whose five most probable classes are the reference's, in whatever order."""
    margin: float
    """The least difference of the reference's first two logits, which an error must not reach."""
    largest_error: float
    """The largest absolute error of a logit; a margin over twice that cannot be overturned."""
