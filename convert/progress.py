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


class StoppedError(Exception):
    """Work in another thread has no purpose any more."""


class SharedProgress:
    """A callback for several threads: calls of `progress` never overlap, and after `stop` they raise `StoppedError`."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._lock, self._stopped = progress, threading.Lock(), False

    def __call__(self, task: str, done: int, total: int) -> None:
        with self._lock:
            if self._stopped:
                raise StoppedError
            self._progress(task, done, total)

    def stop(self) -> None:
        """End the work of every thread at the next step that it reports."""
        self._stopped = True
