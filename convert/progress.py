"""The callback by which long work reports how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""`progress(task, done, total)`, in any unit; a `total` of 0 means that it is not known."""


def silent(task: str, done: int, total: int) -> None:
    """Report nothing."""
