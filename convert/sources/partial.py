"""A file that arrives in pieces, kept on the disk from one process to the next."""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile
from base64 import b64encode
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import google_crc32c
import msgspec
from filelock import FileLock, Timeout

from convert.files.base import CHUNK
from convert.files.containers import kind
from convert.progress import Progress
from convert.sources.remote import RemoteFile, info_path

STATED_HASHES = {"crc32c": "CRC-32C", "md5": "MD5"}
"""Names of the hashes that a server may state, by the field of `RemoteFile`."""


@contextlib.contextmanager
def partial_file(path: Path, progress: Progress) -> Iterator[Partial]:
    """Open the downloaded part of `path`, the file `.part` beside it, for one process at a time.

    Another process waits here and reports that through `progress`; the system releases the lock of a
    process that dies. A part that cannot be resumed is removed at the end. Raises `OSError`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path, progress), open(part_path(path), "a+b", buffering=0) as file:
        partial = Partial(path, file)
        try:
            yield partial
        finally:
            useless = partial.remote is not None and not partial.remote.resumable
            if useless or os.fstat(file.fileno()).st_size == 0:
                part_path(path).unlink(missing_ok=True)
                if not path.exists():
                    info_path(path).unlink(missing_ok=True)


def part_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def lock_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


@contextlib.contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock file of a download, and remove it before the lock is released.

    A waiting process may have opened the removed file; filelock notices that and opens the new one.
    """
    lock = FileLock(lock_path(path))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(f"waiting for another process that fetches {path.name}", 0, 0)
        lock.acquire()
    try:
        yield
    finally:
        lock_path(path).unlink(missing_ok=True)
        lock.release()


class Partial:
    """A growing file, the hashes of the `done` bytes, and the `remote` file that they come from.

    The description of `remote` is on the disk before the first byte, and the bytes of an older file
    are gone before that: whatever ends the process, description and bytes fit each other.
    """

    def __init__(self, path: Path, file: FileIO) -> None:
        self.path = path
        self.remote: RemoteFile | None = None
        self._file = file
        self._forget()

    def resume(self, url: str, progress: Progress) -> None:
        """Take up the bytes that an earlier process left, if they come from `url`; else leave them until `begin`."""
        remote, size = RemoteFile.load(self.path), os.fstat(self._file.fileno()).st_size
        if remote is None or remote.url != url or (remote.size is not None and size > remote.size):
            return
        self.remote = remote
        self._file.seek(0)
        while chunk := self._file.read(CHUNK):
            self._count(chunk)
            progress(f"hashing the downloaded part of {self.path.name}", self.done, size)

    def begin(self, remote: RemoteFile) -> None:
        """Start over with the file `remote`. Raises `OSError`."""
        self.clear()
        self.remote = remote
        remote.save(self.path)

    def append(self, chunk: bytes) -> None:
        """Add the next bytes, as many as the disk takes. Raises `OSError` with the name of the file."""
        try:
            while chunk:
                count = self._file.write(chunk)
                self._count(chunk[:count])
                chunk = chunk[count:]
        except OSError as error:
            error.filename = str(part_path(self.path))
            raise

    def clear(self) -> None:
        """Delete the bytes and forget where they come from."""
        self._file.truncate(0)
        self._forget()

    @property
    def resumable(self) -> bool:
        return self.done > 0 and self.remote is not None and self.remote.resumable

    @property
    def size(self) -> int:
        """Size of the whole file in bytes; 0 if the server does not state it."""
        return (self.remote and self.remote.size) or 0

    @property
    def complete(self) -> bool:
        """True if every byte has arrived; where the server states no size, if the server ended the file."""
        return self.done >= self.size if self.size else self.ended

    @property
    def fault(self) -> str | None:
        """Why the finished download is invalid; None if it is valid."""
        assert self.remote is not None
        if self.remote.size not in (None, self.done):
            return f"{self.done} bytes instead of {self.remote.size}"
        for name, called in STATED_HASHES.items():
            stated = getattr(self.remote, name)
            if stated not in (None, b64encode(self._hashes[name].digest()).decode()):
                return f"bytes with another {called} than stated"
        expected, part = self.path.suffix.removeprefix("."), part_path(self.path)
        # The directory of an archive is at the end, so that the beginning alone proves nothing.
        valid = zipfile.is_zipfile(part) if expected == "npz" else kind(part) == expected
        return None if valid else f"something other than an {expected} file"

    def finish(self) -> None:
        """Give the complete file the final name and save the SHA-256. Raises `OSError`."""
        assert self.remote is not None
        os.fsync(self._file.fileno())
        modified = os.fstat(self._file.fileno()).st_mtime_ns
        sha256 = self._hashes["sha256"].hexdigest()
        msgspec.structs.replace(self.remote, size=self.done, sha256=sha256, modified_ns=modified).save(self.path)
        part_path(self.path).replace(self.path)

    def _forget(self) -> None:
        self.remote = None
        self.done = 0
        self.ended = False
        """True once the server has ended the file."""
        self._hashes: dict[str, Any] = {
            "crc32c": google_crc32c.Checksum(),
            "md5": hashlib.md5(usedforsecurity=False),
            "sha256": hashlib.sha256(),
        }

    def _count(self, chunk: bytes) -> None:
        for digest in self._hashes.values():
            digest.update(chunk)
        self.done += len(chunk)
