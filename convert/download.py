"""Fetching a published npz file, whole and checked, or not at all."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

from convert.errors import CheckpointError
from convert.files.atomic import new_file

CHUNK = 1 << 20
TIMEOUT = 30.0
"""Seconds without any progress."""


def download(url: str, path: Path, progress: Callable[[str, int, int], None]) -> None:
    """Fetch `url` to `path`. The length and, where the server states it, the MD5 are checked.

    Raises `CheckpointError`, which names the address and where a file fetched by hand belongs.
    """
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # exported on access

    by_hand = f"fetch it by hand and put it at {path}"
    headers = {"Accept-Encoding": "identity"}
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=TIMEOUT, headers=headers) as response:
            if response.status_code != 200:
                raise CheckpointError(f"{url} answers {response.status_code} {response.reason_phrase}; {by_hand}")
            total = int(response.headers.get("content-length", 0))
            digest, done = hashlib.md5(usedforsecurity=False), 0
            with new_file(path) as partial, open(partial, "wb") as file:
                for chunk in response.iter_raw(CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    progress("downloading", done, total)
                if total and done != total:
                    raise CheckpointError(f"{url} sent {done} of {total} bytes; try again, or {by_hand}")
                stated = _stated_md5(response.headers.get_list("x-goog-hash"))
                if stated not in (None, digest.digest()):
                    raise CheckpointError(f"{url} sent other bytes than its MD5 states; try again, or {by_hand}")
                file.flush()
                if not zipfile.is_zipfile(partial):
                    raise CheckpointError(f"{url} sent something else than an npz file; {by_hand}")
    except CheckpointError:
        raise
    except (httpx.HTTPError, httpx.InvalidURL, ImportError, ValueError) as error:  # of a proxy's address, too
        raise CheckpointError(f"{url} cannot be reached ({error}); {by_hand}") from None


def _stated_md5(headers: list[str]) -> bytes | None:
    """The MD5 among the hashes that the storage service states; large composite files have none."""
    for item in ",".join(headers).split(","):
        name, _, value = item.strip().partition("=")
        if name == "md5":
            with contextlib.suppress(ValueError):
                return base64.b64decode(value, validate=True)
    return None
