"""Tell from where the files of a checkpoint were fetched, if their hashes show it.

A name shows nothing: anybody can call a file `BiT-M-R50x1.npz`. A downloaded file has a description beside it, with
the address and the SHA-256 of bytes that had the size and the hashes that the server stated; a file in
huggingface_hub's cache is a link to a file that is called by the SHA-256 that the Hub stated.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from convert.files.base import MAX_DIRECTORY, File
from convert.published.catalogue import converted_repositories, published
from convert.sources.remote import RemoteFile

CACHED = re.compile(r"models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)/snapshots/(?P<commit>[0-9a-f]{40})")
"""A commit's folder in huggingface_hub's cache; names of repositories never contain `--`."""
ON_HUB = re.compile(r"hf:([\w.-]+/[\w.-]+)@[0-9a-f]{40}")


def address(path: Path, files: Mapping[str, File]) -> str | None:
    """Return the address of a checkpoint whose `files` were just hashed, or None if it is not shown.

    It is the URL of a file in Google's bucket, or `hf:owner/name@commit`. A file from a mirror has none,
    since only the mirror says that it is Google's.
    """
    path = Path(os.path.abspath(path))  # the links of huggingface_hub are not followed
    return _in_bucket(path, files) or _on_hub(path if path.is_dir() else path.parent, files)


def repository_of(place: str | None) -> str | None:
    """Return `owner/name` of the address of a repository on the Hub; None for any other address."""
    match = ON_HUB.fullmatch(place or "")
    return match[1] if match is not None else None


def _in_bucket(path: Path, files: Mapping[str, File]) -> str | None:
    remote = RemoteFile.load(path)
    if remote is None or len(files) != 1 or remote.url not in {item.url for item in published().values()}:
        return None
    (file,) = files.values()
    checked = remote.crc32c is not None or remote.md5 is not None
    return remote.url if checked and (remote.size, remote.sha256) == (file.bytes, file.sha256) else None


def copy_of_googles(path: Path) -> str | None:
    """Return the repository on the Hub of a path in huggingface_hub's cache, if it is known to hold Google's weights.

    These are `google/bit-50` and timm's: conversions of Google's checkpoints that were not trained further. None for
    any other path: the name of a folder shows nothing.
    """
    path = Path(os.path.abspath(path))
    match = _in_cache(path) or _in_cache(path.parent)
    repository = f"{match['owner']}/{match['name']}" if match is not None else ""
    return repository if repository in converted_repositories() else None


def _in_cache(folder: Path) -> re.Match[str] | None:
    """Match the folder of a commit in huggingface_hub's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        return CACHED.fullmatch(folder.relative_to(os.path.abspath(HF_HUB_CACHE)).as_posix())
    except ValueError:
        return None


def _on_hub(folder: Path, files: Mapping[str, File]) -> str | None:
    match = _in_cache(folder)
    stated = all(_is_named_by_hash((folder / name).resolve(), file) for name, file in files.items())
    return f"hf:{match['owner']}/{match['name']}@{match['commit']}" if match is not None and stated else None


def _is_named_by_hash(path: Path, file: File) -> bool:
    """Return whether a file of the cache has the hash that the Hub stated: git's own one if the file is small."""
    if path.name == file.sha256:
        return True
    if file.bytes > MAX_DIRECTORY or path.suffix:
        return False
    header = f"blob {file.bytes}\0".encode()
    return hashlib.sha1(header + path.read_bytes(), usedforsecurity=False).hexdigest() == path.name
