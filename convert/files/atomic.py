"""Outputs that are complete or absent."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from convert.errors import CheckpointError


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the `with` ends without an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _workplace(path) as folder:
        partial = folder / path.name
        yield partial
        _fsync(partial)
        partial.replace(path)
    _fsync(path.parent)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file of strict JSON, whole or not at all."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with new_file(path) as partial:
        partial.write_text(text, "utf-8")


class NewFolder:
    """A folder made under a temporary name beside `target`, renamed to it by `commit`.

    Whatever ends the `with` before `commit` leaves the target as it was. With `force` an existing
    folder is replaced, but only one in which `foreign` finds no names that are not ours. Raises
    `CheckpointError` for any other.
    """

    def __init__(self, target: Path, foreign: Callable[[Path], list[str]], force: bool = False) -> None:
        self.target = Path(os.path.abspath(target))
        self._force = force
        if os.path.lexists(target):
            if target.is_symlink() or not target.is_dir():
                raise CheckpointError(f"{target} exists and is no folder; choose another --out")
            if not force:
                raise CheckpointError(f"{target} exists; --force replaces it")
            if names := foreign(target):
                raise CheckpointError(
                    f"{target} holds other things than a conversion ({names[0]}); choose another --out"
                )

    def __enter__(self) -> Self:
        self._new_parents = [parent for parent in self.target.parents if not parent.exists()]
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self._place = _workplace(self.target)
        self.path = self._place.__enter__() / self.target.name
        self.path.mkdir()
        return self

    def commit(self) -> None:
        """Bring every file to the disk and give the folder its name. Raises `OSError`."""
        for file in (*self.path.iterdir(), self.path):
            _fsync(file)
        if self._force and self.target.exists():
            self.target.rename(_replaced(self.path.parent, self.target))
        try:
            self.path.rename(self.target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise CheckpointError(f"{self.target} was written by another run meanwhile") from None
            raise
        for parent in (self.target.parent, *(parent.parent for parent in self._new_parents)):
            _fsync(parent)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._place.__exit__(None, None, None)
        with contextlib.suppress(OSError):
            for parent in self._new_parents:
                parent.rmdir()  # fails, and is to, where something was written


@contextlib.contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target`, gone afterwards; one that a killed run left is removed first.

    A run holds the lock of its folder, and the system lets go of a dead one's.
    """
    prefix = f".{target.name}.partial-"
    for folder in target.parent.glob(f"{glob.escape(prefix)}*"):
        if folder.is_symlink() or not folder.is_dir():
            continue
        with contextlib.suppress(FileNotFoundError, BlockingIOError), _locked(folder):
            if set(folder.iterdir()) <= {folder / target.name, _replaced(folder, target)}:
                _settle(folder, target)
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        with _locked(path):
            yield path
    finally:
        _settle(path, target)


def _settle(folder: Path, target: Path) -> None:
    """Remove a workplace; what was to be replaced, and was not, goes back to where it was."""
    replaced = _replaced(folder, target)
    if replaced.is_dir() and not target.exists():
        replaced.rename(target)
    shutil.rmtree(folder, ignore_errors=True)


def _replaced(folder: Path, target: Path) -> Path:
    """Where in a workplace the folder waits whose place is taken; no target can be called so itself."""
    return folder / f"{target.name}.replaced"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder. Raises `BlockingIOError` if another run does."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
