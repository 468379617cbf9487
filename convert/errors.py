"""What can be wrong with what a user hands in."""

from __future__ import annotations

from collections.abc import Sequence


class CheckpointError(ValueError):
    """A checkpoint, name or folder that cannot be used; the message says what to do.

    `problems` lists every fault where several were found at once.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)
