"""Write files and folders that are complete or absent."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from convert.errors import CheckpointError


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Provide a path to write to; it becomes `path` when the `with` block ends without an exception."""
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
    """A folder created under a temporary name beside `target`; `commit` renames it to `target`.

    If the `with` block ends before `commit`, the target stays as it was. With `force` an existing
    folder is replaced, but only if `foreign` returns no names of files that are not part of a
    conversion. Raises `CheckpointError` for any other existing target.
    """

    def __init__(self, target: Path, foreign: Callable[[Path], list[str]], force: bool = False) -> None:
        self.target = Path(os.path.abspath(target))
        self._force = force
        if os.path.lexists(target):
            if target.is_symlink() or not target.is_dir():
                raise CheckpointError(f"{target} exists and is not a folder; choose another --out")
            if not force:
                raise CheckpointError(f"{target} exists; --force replaces it")
            if names := foreign(target):
                raise CheckpointError(
                    f"{target} holds files that are not part of a conversion ({names[0]}); choose another --out"
                )

    def __enter__(self) -> Self:
        self._new_parents = [parent for parent in self.target.parents if not parent.exists()]
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self._place = _workplace(self.target)
        self.path = self._place.__enter__() / self.target.name
        self.path.mkdir()
        return self

    def commit(self) -> None:
        """Flush every file to the disk and rename the folder to the target. Raises `OSError`."""
        for file in (*self.path.iterdir(), self.path):
            _fsync(file)
        if self._force and self.target.exists():
            self.target.rename(_beside(self.path.parent, self.target, "replaced"))
        try:
            self.path.rename(self.target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise CheckpointError(
                    f"{self.target} was created by another run in the meantime; --force replaces it"
                ) from None
            raise
        for parent in (self.target.parent, *(parent.parent for parent in self._new_parents)):
            _fsync(parent)

    def __exit__(self, *exception: object) -> None:
        self._place.__exit__(None, None, None)
        with contextlib.suppress(OSError):
            for parent in self._new_parents:
                parent.rmdir()  # fails, as it should, once something was written there


@contextlib.contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """Provide a hidden folder beside `target`; remove it afterwards, and first those that killed runs left.

    A run holds a lock in the folder, which the system releases when the process dies.
    """
    prefix = f".{target.name}.partial-"
    for folder in target.parent.glob(f"{glob.escape(prefix)}*"):
        if _is_workplace(folder, target):
            with contextlib.suppress(FileNotFoundError, PermissionError, Timeout), _lock(folder, target):
                _settle(folder, target)
    while True:  # another run may take the new folder for that of a dead one, and lock it first
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        lock = _lock(path, target)
        with contextlib.suppress(FileNotFoundError, Timeout):
            lock.acquire()
            break
    try:
        yield path
    finally:
        _settle(path, target)
        lock.release()


def _is_workplace(folder: Path, target: Path) -> bool:
    ours = {folder / target.name, *(_beside(folder, target, kind) for kind in ("replaced", "lock"))}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        return not folder.is_symlink() and set(folder.iterdir()) <= ours
    return False


def _settle(folder: Path, target: Path) -> None:
    """Remove a workplace; first move a folder that was about to be replaced back to the target."""
    replaced = _beside(folder, target, "replaced")
    if replaced.is_dir() and not target.exists():
        replaced.rename(target)
    shutil.rmtree(folder, ignore_errors=True)


def _beside(folder: Path, target: Path, kind: str) -> Path:
    """Return a path in a workplace that cannot equal the path of the new target."""
    return folder / f"{target.name}.{kind}"


def _lock(folder: Path, target: Path) -> FileLock:
    return FileLock(_beside(folder, target, "lock"), timeout=0)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
