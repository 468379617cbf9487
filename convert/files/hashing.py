"""Hash a growing file and flush it to the disk while it grows."""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from convert.files.base import CHUNK

FLUSH_BYTES = 64 << 20


class Follower:
    """Two threads behind a writer: one hashes the file, one flushes it to the disk.

    The hash is that of the bytes read back from the file, not of the bytes handed to the writer.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self._written = 0
        self._finished = False
        self._changed = threading.Condition()
        self._threads = ThreadPoolExecutor(2)
        self._work = [self._threads.submit(work) for work in (self._hash, self._flush)]

    def advance(self, written: int) -> None:
        """Announce that the first `written` bytes of the file will not change again."""
        with self._changed:
            self._written = written
            self._changed.notify_all()

    def finish(self) -> str:
        """Wait until all announced bytes are hashed and on the disk; return the SHA-256. Raises `OSError`."""
        self.stop()
        for work in self._work:
            work.result()
        return self._digest.hexdigest()

    def stop(self) -> None:
        """End both threads once they have caught up."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()
        self._threads.shutdown()

    def _wait(self, position: int, least: int) -> int:
        """Block until there are `least` bytes after `position` or the writer is done; return the bytes written."""
        with self._changed:
            self._changed.wait_for(lambda: self._finished or self._written >= position + least)
            return self._written

    def _hash(self) -> None:
        buffer, position = bytearray(CHUNK), 0
        with open(self._path, "rb", buffering=0) as file:
            while (end := self._wait(position, CHUNK)) > position:
                while position < end:
                    count = file.readinto(memoryview(buffer)[: min(CHUNK, end - position)])
                    if not count:
                        raise OSError(f"{self._path} was cut short while it was written")
                    self._digest.update(memoryview(buffer)[:count])
                    position += count

    def _flush(self) -> None:
        position = 0
        with open(self._path, "rb", buffering=0) as file:
            while (end := self._wait(position, FLUSH_BYTES)) > position:
                os.fsync(file.fileno())
                position = end
