"""The callback by which long work reports how far it is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

Progress = Callable[[str, int, int], None]
"""`progress(task, done, total)`, in any unit; a `total` of 0 means that it is not known."""


def silent(task: str, done: int, total: int) -> None:
    """Report nothing."""


def tracked(items: Iterable[T], task: str, total: int, progress: Progress) -> Iterator[T]:
    """Yield the items, and report each as one step of a task."""
    for done, item in enumerate(items, 1):
        progress(task, done, total)
        yield item


def one_at_a_time(progress: Progress) -> Progress:
    """Return a callback for several threads: calls of `progress` never overlap."""
    lock = threading.Lock()

    def report(task: str, done: int, total: int) -> None:
        with lock:
            progress(task, done, total)

    return report
