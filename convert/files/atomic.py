"""Outputs that are complete or absent."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from convert.errors import CheckpointError


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the `with` ends without an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.partial-", dir=path.parent) as folder:
        partial = Path(folder) / path.name
        yield partial
        _fsync(partial)
        partial.replace(path)


class NewFolder:
    """A folder made under a temporary name beside `target`, renamed to it by `commit`.

    Whatever ends the `with` before `commit` leaves the target as it was. A run that was killed
    leaves a hidden folder, which the next one for the same target removes.
    """

    def __init__(self, target: Path, force: bool = False) -> None:
        self.target = target.absolute()
        self._prefix = f".{self.target.name}.partial-"
        self._force = force
        if os.path.lexists(self.target):
            if not force:
                raise CheckpointError(f"{target} exists; --force replaces it")
            if not self.target.is_dir() or self.target.is_symlink():
                raise CheckpointError(f"{target} exists and is no folder; choose another --out")

    def __enter__(self) -> Self:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self._remove_abandoned()
        self.path = Path(tempfile.mkdtemp(prefix=self._prefix, dir=self.target.parent))
        self.path.chmod(0o755)
        self._lock = os.open(self.path, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return self

    def commit(self) -> None:
        """Bring every file to the disk and give the folder its name. Raises `OSError`."""
        for file in (*self.path.iterdir(), self.path):
            _fsync(file)
        replaced = None
        if self._force and self.target.exists():
            replaced = Path(tempfile.mkdtemp(prefix=self._prefix, dir=self.target.parent))
            self.target.rename(replaced / "replaced")
        try:
            self.path.rename(self.target)
        except OSError:
            if replaced is not None:
                (replaced / "replaced").rename(self.target)
            raise
        finally:
            if replaced is not None:
                shutil.rmtree(replaced)
        _fsync(self.target.parent)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    def _remove_abandoned(self) -> None:
        for folder in self.target.parent.glob(f"{self._prefix}*"):
            handle = os.open(folder, os.O_RDONLY)
            # The run that works in a folder holds its lock; the system lets go of a dead one's.
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            os.close(handle)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
