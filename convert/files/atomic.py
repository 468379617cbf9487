"""Write files and folders that are complete or absent."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, Any, Self

from bit.files import fsync
from convert.errors import CheckpointError

PARTIAL = ".partial-"
"""Part of the hidden name of the place where a file or a folder is written, between the name and random letters."""
ATTEMPTS = 100
"""Attempts to create a folder in one that others remove; in an open folder that was removed, none succeeds."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Constants of Linux, from fcntl.h and linux/fs.h."""
NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
"""Errors of a kernel, a file system or a sandbox that cannot exchange two paths."""


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Provide a path to write to; it becomes `path` when the `with` block ends without an exception."""
    try:
        with _workplace(path) as folder:
            partial = folder / path.name
            yield partial
            fsync(partial)
            partial.replace(path)
        fsync(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file of strict JSON, whole or not at all."""
    text = json_text(content)
    with new_file(path) as partial:
        partial.write_text(text, "utf-8")


def json_text(content: dict[str, Any]) -> str:
    """Return the text that `write_json` writes."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


class NewFolder:
    """A folder created under a temporary name beside `target`; `commit` gives it the target's name.

    If the `with` block ends before `commit`, the target stays as it was. With `force` an existing
    folder is replaced, but only if `foreign` returns no names of files that are not part of a
    conversion. Raises `CheckpointError` for any other existing target.

    A folder is replaced in one step, `renameat2` with `RENAME_EXCHANGE`: whenever the process ends,
    the target is the old or the new folder, whole. Where there is no such step (before Linux 3.15,
    on NFS, on other systems), the old folder is moved aside and the new one renamed to the target; a
    process that ends between the two leaves no target, and the next run moves the old folder back.
    Once the new folder has the target's name, the old one is only ever removed.
    """

    def __init__(self, target: Path, foreign: Callable[[Path], list[str]], force: bool = False) -> None:
        self.target = Path(os.path.abspath(target))
        self._shown, self._foreign, self._force = target, foreign, force
        self._check()

    def __enter__(self) -> Self:
        self._new_parents = [parent for parent in self.target.parents if not parent.exists()]
        self._place = _workplace(self.target)
        self.path = self._place.__enter__() / self.target.name
        self.path.mkdir()
        return self

    def commit(self) -> None:
        """Flush every file to the disk and give the folder the target's name.

        Raises `OSError`, and `CheckpointError` if the target has changed so that it must not be replaced.
        """
        for file in (*self.path.iterdir(), self.path):
            fsync(file)
        self._check()
        _put(self.path, self.target, self._force)
        for parent in (self.target.parent, *(parent.parent for parent in self._new_parents)):
            fsync(parent)

    def __exit__(self, *exception: object) -> None:
        self._place.__exit__(None, None, None)
        with contextlib.suppress(OSError):
            for parent in self._new_parents:
                parent.rmdir()  # fails, as it should, once something was written there

    def _check(self) -> None:
        """Raise `CheckpointError` if the target exists and must not be replaced."""
        target = self._shown
        if not os.path.lexists(self.target):
            return
        if self.target.is_symlink() or not self.target.is_dir():
            raise CheckpointError(f"{target} exists and is not a folder; choose another --out")
        if not self._force:
            raise CheckpointError(f"{target} exists; --force replaces it")
        if names := self._foreign(self.target):
            raise CheckpointError(
                f"{target} holds files that are not part of a conversion ({names[0]}); choose another --out"
            )


class HeldFolder(contextlib.ExitStack[None]):
    """A folder that is open from the start: `check` tells whether `path` still leads to it. Raises `OSError`."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self.callback(os.close, self._handle)

    @property
    def place(self) -> Path:
        """A path to this folder even after another one took the name, on Linux; elsewhere `path`."""
        place = Path(f"/proc/self/fd/{self._handle}")
        return place if place.exists() else self.path

    def check(self) -> None:
        """Raise `CheckpointError` if the path leads to another folder now, or to none."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if os.path.samestat(os.fstat(self._handle), self.path.stat()):
                return
        raise CheckpointError(
            f"{self.path} was replaced in the meantime; nothing was written to the new folder: run the command again"
        )


def is_unfinished(path: Path, names: Collection[str]) -> bool:
    """Return whether a run writes a file of one of these names here, or did when it was killed.

    The next run that writes the file removes what a killed one left.
    """
    name, mark, _ = path.name.removeprefix(".").rpartition(PARTIAL)
    return name in names and bool(mark) and _is_workplace(path, path.with_name(name))


def _put(new: Path, target: Path, force: bool) -> None:
    """Give a folder in a workplace the target's name; with `force`, what was there takes the folder's place."""
    with contextlib.suppress(FileNotFoundError):  # somebody removed the target
        if force and target.exists():
            if _exchange(new, target):
                return
            target.rename(_beside(new.parent, target, "replaced"))
    try:
        new.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if force and _exchange(new, target):
            return
        raise CheckpointError(f"{target} was created by another run in the meantime; --force replaces it") from None


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; return False where there is no such step. Raises `OSError`."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    if (number := ctypes.get_errno()) in NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


@contextlib.contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """Provide a hidden folder beside `target`; remove it afterwards, and first those that killed runs left.

    A run holds a lock in the folder, which the system releases when the process dies. The lock is the first file in
    it: a run that sees a folder without one may remove it, and whoever created it then makes another.
    """
    prefix = f".{target.name}{PARTIAL}"
    for folder in target.parent.glob(f"{glob.escape(prefix)}*"):
        with contextlib.suppress(OSError):  # another user's
            if _is_workplace(folder, target) and (lock := _lock(folder, target)) is not None:
                with lock:
                    _settle(folder, target)
    while True:
        path = _new_folder(prefix, target.parent)
        try:
            lock = _lock(path, target)
        except OSError:
            path.rmdir()
            raise
        if lock is not None:
            break
    with lock:
        try:
            yield path
        finally:
            _settle(path, target)


def _new_folder(prefix: str, parent: Path) -> Path:
    """Create an empty folder of a new name; the parent, too, which another run may remove again that created it."""
    for _ in range(ATTEMPTS):
        parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    raise FileNotFoundError(errno.ENOENT, "the folder is being removed", str(parent))


def _is_workplace(folder: Path, target: Path) -> bool:
    ours = {folder / target.name, *(_beside(folder, target, kind) for kind in ("replaced", "lock"))}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        return not folder.is_symlink() and set(folder.iterdir()) <= ours
    return False


def _settle(folder: Path, target: Path) -> None:
    """Remove a workplace that this process has locked.

    A folder that was moved aside is moved back to the target, but only while the new folder is still in the
    workplace: otherwise it was replaced, and may be half removed.
    """
    new, replaced = folder / target.name, _beside(folder, target, "replaced")
    if new.is_dir() and replaced.is_dir() and not os.path.lexists(target):
        replaced.rename(target)
    with contextlib.suppress(OSError):
        new.unlink() if new.is_file() else shutil.rmtree(new, ignore_errors=True)
        if not new.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        if not replaced.exists():
            _beside(folder, target, "lock").unlink()  # last: until then no other run touches the folder
            folder.rmdir()


def _beside(folder: Path, target: Path, kind: str) -> Path:
    """Return a path in a workplace that cannot equal the path of the new target."""
    return folder / f"{target.name}.{kind}"


def _lock(folder: Path, target: Path) -> IO[bytes] | None:
    """Lock a workplace until the returned file is closed; None if another run holds it or removes the folder.

    Raises `OSError` if there cannot be a lock.
    """
    path = _beside(folder, target, "lock")
    with contextlib.suppress(FileNotFoundError, BlockingIOError), contextlib.ExitStack() as stack:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        lock = stack.enter_context(os.fdopen(handle, "wb"))
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock.fileno()), path.stat()):  # else a run has removed it that held it before
            stack.pop_all()
            return lock
    return None
