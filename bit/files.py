"""Find and read files that anyone may have written, within stated limits; write JSON, and put files on the disk."""

from __future__ import annotations

import json
import os
import re
import reprlib
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

MAX_BYTES = 8 << 20
"""Largest file that is read: five times the `config.json` with the 21,843 class names of ImageNet-21k."""
MAX_DEPTH = 32
"""Deepest nesting of lists and objects that is read; the files of transformers and timm nest three deep."""
MAX_REASON = 300
"""Most characters of another library's message that are repeated."""

HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download", "subfolder")
"""Keywords of every `from_pretrained` that choose among the files of a Hub repository, as in transformers."""

Made = TypeVar("Made")

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict = 3, 8, 8, 4
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 80


def short(value: object) -> str:
    """Return the `repr` of a value for a message: one line, without control characters, of bounded length."""
    text = _SHORT.repr(value)
    return text if text.isprintable() else ascii(text)


def one_line(error: Exception) -> str:
    """Return the message of another library's error in one printable line of at most `MAX_REASON` characters."""
    text = " ".join(str(error).split())[:MAX_REASON]
    return (text if text.isprintable() else ascii(text)) or type(error).__name__


def check_regular(path: Path) -> Path:
    """Return the path of a file. Raises `OSError` if it is missing, and `ValueError` for a folder, pipe or device."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is not a regular file")
    return path


def local_folder(name: str | Path, patterns: Sequence[str], subfolder: str = "", **options: Any) -> Path:
    """Return a folder, or that of a Hub repository `owner/name` with its files of these patterns, downloaded.

    A `Path` is always a folder. `options` are those of `HUB_OPTIONS`; for a folder on this machine only
    `subfolder` has a meaning.
    Raises `OSError` if there is none of that name, and `ValueError` for a `subfolder` that is elsewhere.
    """
    if subfolder and not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)*", subfolder):
        raise ValueError(f"subfolder is {short(subfolder)}; expected the name of a folder inside {name}")
    folder = Path(name)
    if not folder.is_dir():
        if isinstance(name, Path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            raise FileNotFoundError(f"{name} is neither a folder nor an owner/name on the Hub")
        from huggingface_hub import snapshot_download

        paths = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in patterns]
        folder = Path(snapshot_download(name, allow_patterns=paths, **options))
    return folder / subfolder


def parse_json(content: bytes) -> Any:
    """Parse JSON that has no name twice in an object, no NaN or infinity, and at most `MAX_DEPTH` levels.

    Raises `ValueError`.
    """
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
        level, depth = [value], 0
        while level:
            depth += 1
            if depth > MAX_DEPTH:
                raise RecursionError
            lists = (
                item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)
            )
            level = [item for items in lists for item in items if isinstance(item, dict | list)]
        # A half of a surrogate pair can be escaped in JSON, but neither written to a file nor printed.
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError(f"it nests lists and objects deeper than {MAX_DEPTH} levels") from None
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of at most `MAX_BYTES`.

    Raises `OSError` for a file that cannot be opened, and `ValueError`, in one line that names the
    file, for anything else that is not a regular file with a JSON object as `parse_json` reads it.
    """
    with open(check_regular(path), "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES >> 20} MiB, which is not a configuration")
    try:
        values = parse_json(content)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(values).__name__}")
    return values


def load_json(path: Path, make: Callable[[dict[str, Any]], Made]) -> Made:
    """Return what `make` makes of the object in a JSON file; a `ValueError` of it gets the name of the file."""
    values = read_json(path)
    try:
        return make(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object to a JSON file, indented by two spaces."""
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def fsync(path: Path) -> None:
    """Wait until a file, or the list of names of a folder, is on the disk. Raises `OSError`."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it holds a name twice in one object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")
