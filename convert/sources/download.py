"""Fetching a published npz file, whole and checked; what comes of it before that is kept for the next try."""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.errors import CheckpointError
from convert.files.base import file_sha256
from convert.sources.partial import Partial, partial_file
from convert.sources.remote import RemoteFile, record_path

if TYPE_CHECKING:
    from convert.progress import Progress

CONNECT_TIMEOUT, TIMEOUT = 10.0, 30.0
"""Seconds that a connection may take, and that one may stay without a byte."""
PATIENCE = 120.0
"""Seconds without a new byte after which a server that has answered is given up."""
UNREACHED_PATIENCE = 3.0
"""The same for one that never has: a machine without a network should hear of it at once."""
BACKOFF, LONGEST_BACKOFF = 0.5, 15.0
"""Seconds before the second attempt, and before a late one; they double, and a random half is left out."""
PASSING = (408, 425, 429, *range(500, 600))
"""Answers that another attempt may change (RFC 9110; 8470 for 425, 6585 for 429)."""
GONE = (404, 412)
"""Answers for a generation that the storage service no longer has."""


def download(url: str, path: Path, progress: Progress) -> None:
    """See to it that `path` is the npz file at `url`, fetching what is not yet there of it.

    The size, the CRC-32C and the MD5 are checked, as far as the server states them. What was
    fetched by an attempt that failed, or was killed, is gone on from if the server can say that its
    file is still the same one. A file that is there already is held to what was recorded when it
    was fetched; one that came otherwise is taken as it is.

    Raises `CheckpointError`, which names the address and where a file fetched by hand belongs, and
    `OSError` for what the disk refuses.
    """
    if not path.exists():
        with partial_file(path, progress) as part:
            if not path.exists():  # else another process has fetched it meanwhile
                part.take_up(url, progress)
                _complete(part, url, progress)
    _check_kept(path, progress)


def _check_kept(path: Path, progress: Progress) -> None:
    """Raise `CheckpointError` unless a file is as it was when it was fetched.

    One of the same size and time of modification is taken to be, as its arrays have checksums of
    their own; any other is hashed, which takes a second for a gigabyte.
    """
    remote, status = RemoteFile.recorded(path), path.stat()
    if remote is None or remote.sha256 is None:
        return
    if status.st_size != remote.size:
        difference = f"it has {status.st_size} bytes, not {remote.size}"
    elif status.st_mtime_ns == remote.modified_ns:
        return
    else:
        progress(f"hashing {path.name}", 0, 0)
        if (sha256 := file_sha256(path)) == remote.sha256:
            return
        difference = f"its SHA-256 is {sha256}, not {remote.sha256}"
    raise CheckpointError(
        f"{path} is not the file that was fetched from {remote.url}: {difference}; "
        f"delete it to fetch it again, or {record_path(path)} to use it as it is"
    )


class _PassingError(Exception):
    """What another attempt may change; `wait` is the number of seconds that the server asks for."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _LastingError(Exception):
    """What ends the download."""


def _complete(part: Partial, url: str, progress: Progress) -> None:
    """Fetch what is missing and give the file its name. Raises as `download` does."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # exported on access

    try:
        with httpx.Client(
            follow_redirects=True,
            timeout=httpx.Timeout(TIMEOUT, connect=CONNECT_TIMEOUT),
            headers={"Accept-Encoding": "identity"},
        ) as client:
            for _ in range(2):  # a fault may be of what an earlier process left, or of the way
                _fetch(client, part, url, progress)
                if (fault := part.fault) is None:
                    part.finish()
                    return
                part.clear()
            what = f"sent {fault}"
    except _LastingError as error:
        what = str(error)
    except (httpx.HTTPError, httpx.InvalidURL, ImportError, ValueError) as error:  # of a proxy's address, too
        what = f"cannot be reached ({error})"
    kept = f"the next try goes on from byte {part.done}, or " if part.resumable else ""
    raise CheckpointError(f"{url} {what}; {kept}fetch it by hand and put it at {part.path}")


def _fetch(client: Any, part: Partial, url: str, progress: Progress) -> None:
    """Ask until the part is complete. Raises `_LastingError`, and what `httpx` does for no good address."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    patience = _Patience(part.done)
    while not part.complete:
        try:
            _attempt(client, part, url, patience, progress)
        except _PassingError as error:
            patience.pause(str(error), error.wait, progress)
        except (httpx.TimeoutException, httpx.NetworkError, httpx.ProxyError, httpx.RemoteProtocolError) as error:
            patience.pause(str(error) or type(error).__name__, 0.0, progress)


def _attempt(client: Any, part: Partial, url: str, patience: _Patience, progress: Progress) -> None:
    """One request for what is missing; returns when there is more of the part, or less as it was of no use."""
    known, start = (part.remote, part.done) if part.resumable else (None, 0)
    address, headers = known.rest(start) if known else (url, {})
    with client.stream("GET", address, headers=headers) as response:
        patience.reached = True
        status, pinned = response.status_code, address != url
        if status in PASSING:
            wait = _seconds(response.headers.get("retry-after", ""))
            asked = f" and asks to wait {wait:.0f} seconds" if wait else ""
            raise _PassingError(f"answers {status} {response.reason_phrase}{asked}", wait)
        if known:
            other = status == 206 and not known.is_continued(start, response.headers)
            if other or status == 416 or (pinned and status in GONE):
                part.clear()
                return
        if status != 200 and not (status == 206 and known):
            raise _LastingError(f"answers {status} {response.reason_phrase}")
        if response.headers.get("content-type", "").startswith("text/html"):
            raise _LastingError("answers with a web page, of a network that wants a login perhaps")
        if status == 200:
            part.begin(RemoteFile.stated(url, response.headers))
        _check_space(part)
        for chunk in response.iter_raw():
            part.append(chunk)
            patience.advance(part.done)
            progress("downloading", part.done, (part.remote and part.remote.size) or 0)
    part.end()
    if not part.complete:
        raise _PassingError(f"sent no more than {part.done} bytes")


def _check_space(part: Partial) -> None:
    missing = ((part.remote and part.remote.size) or 0) - part.done
    free = shutil.disk_usage(part.part.parent).free
    if free < missing:
        raise _LastingError(f"needs {missing / 1e9:.2f} GB of space, the disk has {free / 1e9:.2f} GB free")


class _Patience:
    """How long it is that nothing new came: nothing beyond the `furthest` byte, however often that is reached."""

    def __init__(self, furthest: int) -> None:
        self.reached = False
        self._furthest = furthest
        self._since = time.monotonic()
        self._failures = 0

    def advance(self, done: int) -> None:
        if done > self._furthest:
            self._furthest, self._since, self._failures = done, time.monotonic(), 0

    def pause(self, reason: str, wait: float, progress: Progress) -> None:
        """Sleep until the next attempt is due. Raises `_LastingError` where that is too late."""
        backoff = min(BACKOFF * 2**self._failures, LONGEST_BACKOFF)
        seconds = max(wait, random.uniform(backoff / 2, backoff))
        self._failures += 1
        if time.monotonic() - self._since + seconds > (PATIENCE if self.reached else UNREACHED_PATIENCE):
            raise _LastingError(f"cannot be {'fetched' if self.reached else 'reached'} ({reason})")
        progress("trying again", self._failures, self._failures)
        time.sleep(seconds)


def _seconds(retry_after: str) -> float:
    """What the header `Retry-After` asks to wait, in seconds or until a date (RFC 9110, 10.2.3)."""
    if retry_after.isdecimal():
        return float(retry_after)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    return 0.0
