"""What can be wrong with what a user hands in."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class CheckpointError(ValueError):
    """A checkpoint, name or folder that cannot be used; the message says what to do.

    `problems` lists every fault where several were found at once.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class VerificationError(CheckpointError):
    """What is to be used, or was sent, is not what was verified."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """How a message ends that refuses `word`: with the nearest of what is known; nothing if none is near."""
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), names, n=3)
    return f"; did you mean {' or '.join(names[name] for name in near)}?" if near else ""
