"""Hash a growing file and flush it to the disk while it grows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from convert.files.base import CHUNK

FLUSH_BYTES = 64 << 20


class Follower:
    """Two threads behind a writer: one hashes the file, one flushes it to the disk.

    The hash is that of the bytes read back from the file, not of the bytes handed to the writer. No thread runs
    before `start`; whoever calls that must call `stop` whatever happens, or the process never ends.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        # A signal can end the main thread's work at any place in Python code. Unlike a condition variable, whose lock
        # such a signal could leave locked for ever, these queues take a value in one step.
        self._hashed: SimpleQueue[int | None] = SimpleQueue()
        self._flushed: SimpleQueue[int | None] = SimpleQueue()
        self._threads = ThreadPoolExecutor(2)
        self._work: list[Future[None]] = []

    def start(self) -> None:
        """Start both threads."""
        self._work = [self._threads.submit(work) for work in (self._hash, self._flush)]

    def advance(self, written: int) -> None:
        """Announce that the first `written` bytes of the file will not change again."""
        self._hashed.put(written)
        self._flushed.put(written)

    def finish(self) -> str:
        """Wait until all announced bytes are hashed and on the disk; return the SHA-256. Raises `OSError`."""
        self.stop()
        for work in self._work:
            work.result()
        return self._digest.hexdigest()

    def stop(self) -> None:
        """End both threads once they have caught up."""
        self._hashed.put(None)
        self._flushed.put(None)
        self._threads.shutdown()

    def _hash(self) -> None:
        buffer, position = bytearray(CHUNK), 0
        with open(self._path, "rb", buffering=0) as file:
            for end in _ends(self._hashed, CHUNK):
                while position < end:
                    count = file.readinto(memoryview(buffer)[: min(CHUNK, end - position)])
                    if not count:
                        raise OSError(f"{self._path} was cut short while it was written")
                    self._digest.update(memoryview(buffer)[:count])
                    position += count

    def _flush(self) -> None:
        with open(self._path, "rb", buffering=0) as file:
            for _ in _ends(self._flushed, FLUSH_BYTES):
                os.fsync(file.fileno())


def _ends(announced: SimpleQueue[int | None], least: int) -> Iterator[int]:
    """Yield the announced numbers, the last, and others only if `least` above the one before; None is the end."""
    position = end = 0
    while (written := announced.get()) is not None:
        end = written
        if end >= position + least:
            yield end
            position = end
    if end > position:
        yield end
