"""A file that arrives in pieces: what is there of it, kept from one process to the next."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import zipfile
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c

from convert.files.detect import kind
from convert.sources.remote import RemoteFile, record_path

if TYPE_CHECKING:
    from convert.progress import Progress

CHUNK = 1 << 20
STATED_HASHES = {"crc32c": "CRC-32C", "md5": "MD5"}
"""The hashes that a server may state: fields of `RemoteFile`, with what they are called."""


@contextlib.contextmanager
def partial_file(path: Path, progress: Progress) -> Iterator[Partial]:
    """What is there of `path`, in the file `.part` beside it, held by one process at a time.

    Another process waits here. Its lock is the system's, which lets go of a dead process's. What
    cannot be gone on from is removed at the end. Raises `OSError`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    file = _locked(part, progress)
    partial = Partial(path, part, file)
    try:
        yield partial
    finally:
        useless = partial.remote is not None and not partial.remote.resumable
        if _is_at(file, part) and (useless or os.fstat(file.fileno()).st_size == 0):
            part.unlink()
            if not path.exists():
                record_path(path).unlink(missing_ok=True)
        file.close()


class Partial:
    """A growing file, the hashes of its `done` bytes, and of which `remote` file they are.

    The record of `remote` is on the disk before the first byte, and an older file's bytes are gone
    before that: whatever ends the process, the two fit each other.
    """

    def __init__(self, path: Path, part: Path, file: FileIO) -> None:
        self.path = path
        self.part = part
        self.remote: RemoteFile | None = None
        self._file = file
        self._forget()

    def take_up(self, url: str, progress: Progress) -> None:
        """Go on from what an earlier process left, if it is of `url`; else that stays until something else begins."""
        remote, size = RemoteFile.recorded(self.path), os.fstat(self._file.fileno()).st_size
        if remote is None or remote.url != url or (remote.size is not None and size > remote.size):
            return
        self.remote = remote
        self._file.seek(0)
        while chunk := self._file.read(CHUNK):
            self._count(chunk)
            progress("hashing what is there", self.done, size)

    def begin(self, remote: RemoteFile) -> None:
        """Start over, with the file `remote`. Raises `OSError`."""
        self.clear()
        self.remote = remote
        remote.write_record(self.path)

    def append(self, chunk: bytes) -> None:
        """Add the next bytes, as many as the disk takes. Raises `OSError`, which names the file."""
        try:
            while chunk:
                written = self._file.write(chunk)
                self._count(chunk[:written])
                chunk = chunk[written:]
        except OSError as error:
            error.filename = str(self.part)
            raise

    def end(self) -> None:
        """The server says that this was all."""
        self._ended = True

    def clear(self) -> None:
        """Forget what is there."""
        self._file.truncate(0)
        self._forget()

    @property
    def resumable(self) -> bool:
        """Whether there is something that can be gone on from."""
        return self.done > 0 and self.remote is not None and self.remote.resumable

    @property
    def complete(self) -> bool:
        """Whether every byte is there; where the server stated no size, it says so at the end."""
        if self.remote is None or self.remote.size is None:
            return self._ended
        return self.done >= self.remote.size

    @property
    def fault(self) -> str | None:
        """In what the complete file is not what the server stated, or no npz file; None if it is right."""
        assert self.remote is not None
        if self.remote.size not in (None, self.done):
            return f"{self.done} bytes, not {self.remote.size}"
        for name, called in STATED_HASHES.items():
            stated = getattr(self.remote, name)
            if stated not in (None, b64encode(self._hashes[name].digest()).decode()):
                return f"other bytes than its {called} states"
        expected = self.path.suffix.removeprefix(".")
        # An archive has its directory at the end: the beginning of one is none.
        whole = zipfile.is_zipfile(self.part) if expected == "npz" else kind(self.part) == expected
        return None if whole else f"something else than an {expected} file"

    def finish(self) -> None:
        """Give the complete file its name, and record its SHA-256. Raises `OSError`."""
        assert self.remote is not None
        os.fsync(self._file.fileno())
        modified = os.fstat(self._file.fileno()).st_mtime_ns
        whole = replace(self.remote, size=self.done, sha256=self._hashes["sha256"].hexdigest(), modified_ns=modified)
        whole.write_record(self.path)
        self.part.replace(self.path)

    def _forget(self) -> None:
        self.remote = None
        self.done = 0
        self._ended = False
        self._hashes: dict[str, Any] = {
            "crc32c": google_crc32c.Checksum(),
            "md5": hashlib.md5(usedforsecurity=False),
            "sha256": hashlib.sha256(),
        }

    def _count(self, chunk: bytes) -> None:
        for digest in self._hashes.values():
            digest.update(chunk)
        self.done += len(chunk)


def _locked(part: Path, progress: Progress) -> FileIO:
    """The part, opened to be read and appended to, with its lock."""
    while True:
        file = open(part, "a+b", buffering=0)  # noqa: SIM115 (closed by `partial_file`)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress(f"waiting for another process that fetches {part.stem}", 0, 0)
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, part):
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # the other process has finished or removed the file that this is


def _is_at(file: FileIO, path: Path) -> bool:
    """Whether the opened file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
