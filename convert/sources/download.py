"""Download a published file, whole and checked; an interrupted download is resumed by the next try."""

from __future__ import annotations

import contextlib
import random
import shutil
from email.utils import parsedate_to_datetime
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any

from tenacity import RetryCallState, Retrying, retry_if_exception_type

from convert.errors import CheckpointError, DownloadError
from convert.files.base import file_sha256
from convert.progress import Progress
from convert.sources.hub_client import http_library
from convert.sources.limits import SLOWEST, AnswerError, Limits, limit
from convert.sources.partial import Partial, lock_path, partial_file
from convert.sources.redaction import credentials, redacted, without_credentials
from convert.sources.remote import RemoteFile, info_path

TIMEOUT = 30.0
"""Seconds that a connection may stay without a byte."""
PATIENCE = 120.0
"""Seconds without a new byte after which the download from a server that has answered fails."""
UNREACHED_PATIENCE = 3.0
"""The same for a server that never answered: a machine without a network should fail at once."""
BACKOFF, LONGEST_BACKOFF = 0.5, 15.0
"""Seconds before the second attempt, and at most; they double, and up to half is left out at random."""
TEMPORARY = (408, 425, 429, *range(500, 600))
"""Statuses that another attempt may change (RFC 9110; 8470 for 425, 6585 for 429)."""
GONE = (404, 412)
"""Statuses for a generation that the storage service no longer has."""
LARGEST = 16_000_000_000
"""Bytes of the largest file that is accepted, four times the largest published one."""


def download(url: str, path: Path, progress: Progress) -> None:
    """Fetch the missing bytes of the file at `url` to `path`, and check the result.

    Checks the size, the CRC-32C and the MD5, as far as the server states them. A download that failed
    or was killed is resumed if the server can tell that the file is still the same. An existing file
    is checked against the SHA-256 saved when it was fetched; a file put there by hand is used as it is.
    User and password in `url` are sent to that server, and neither stored nor shown.

    Raises `DownloadError`, which names the URL and the place for a file fetched by hand,
    `CheckpointError` for an existing file that changed since it was fetched, and `OSError`.
    """
    if not path.exists() or lock_path(path).exists():  # a killed process may have left a lock file
        with partial_file(path, progress) as part:
            if not path.exists():  # else another process has fetched it in the meantime
                part.resume(without_credentials(url), progress)
                _complete(part, url, progress)
    _check_existing(path, progress)


def _check_existing(path: Path, progress: Progress) -> None:
    """Raise `CheckpointError` if a file changed since it was fetched.

    Trusts size and modification time, since the arrays have checksums of their own; hashes the file
    if only the time differs, which takes a second for a gigabyte.
    """
    remote, status = RemoteFile.load(path), path.stat()
    if remote is None or remote.sha256 is None:
        return
    if status.st_size != remote.size:
        difference = f"it has {status.st_size} bytes instead of {remote.size}"
    elif status.st_mtime_ns == remote.modified_ns:
        return
    else:
        progress(f"hashing {path.name}", 0, 0)
        if (sha256 := file_sha256(path)) == remote.sha256:
            return
        difference = f"the SHA-256 is {sha256} instead of {remote.sha256}"
    raise CheckpointError(
        f"{path} is not the file that was fetched from {remote.url}: {difference}; "
        f"delete it to fetch it again, or delete {info_path(path)} to use it as it is"
    )


class _TemporaryError(Exception):
    """A failure that another attempt may change; `wait` is the number of seconds that the server asks for."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def _complete(part: Partial, url: str, progress: Progress) -> None:
    """Fetch the missing bytes and give the file the final name. Raises `DownloadError` and `OSError`."""
    httpx = http_library()
    temporary = (httpx.TimeoutException, httpx.NetworkError, httpx.ProxyError, httpx.RemoteProtocolError)
    login, url = credentials(url), without_credentials(url)
    secrets = [each for each in login or () if each][-1:]  # the password, or a token alone
    limits = Limits(TIMEOUT, PATIENCE, LARGEST, secure=url.startswith("https://"))
    patience = _Patience(part, progress)
    try:
        with limit(httpx.Client(auth=login, follow_redirects=True), lambda: limits) as client:
            for _ in range(2):  # the fault may lie in bytes of an earlier process, or on the way
                while not part.complete:
                    patience.retrying((_TemporaryError, *temporary))(_attempt, client, part, url, patience, limits)
                if (fault := part.fault) is None:
                    part.finish()
                    return
                part.clear()
                patience = _Patience(part, progress)
            reason = f"sent {fault}"
    except AnswerError as error:
        reason = redacted(error, secrets)
    except (_TemporaryError, httpx.HTTPError, httpx.InvalidURL, ImportError, ValueError) as error:  # of a proxy, too
        words = redacted(str(error) or type(error).__name__, secrets)
        reason = f"cannot be {'fetched' if patience.reached else 'reached'} ({words})"
    kept = f"the next try resumes at byte {part.done}; or " if part.resumable else ""
    raise DownloadError(f"{url} {reason}; {kept}fetch it by hand and put it at {part.path}")


def _attempt(client: Any, part: Partial, url: str, patience: _Patience, limits: Limits) -> None:
    """Send one request for the missing bytes; on return the part has grown, or was cleared because it is stale."""
    known, start = (part.remote, part.done) if part.resumable else (None, 0)
    address, headers = known.rest(start) if known else (url, {})
    with client.stream("GET", address, headers=headers) as response:
        patience.reached = True
        status, pinned = response.status_code, address != url
        if status in TEMPORARY:
            wait = _seconds(response.headers.get("retry-after", ""))
            asked = f" and asks to wait {wait:.0f} seconds" if wait else ""
            raise _TemporaryError(f"answers {status} {response.reason_phrase}{asked}", wait)
        if known:
            other = status == 206 and not known.is_continued(start, response.headers)
            if other or status == 416 or (pinned and status in GONE):
                part.clear()
                return
        if status != 200 and not (status == 206 and known):
            raise AnswerError(f"answers {status} {response.reason_phrase}")
        if response.headers.get("content-type", "").startswith("text/html"):
            raise AnswerError("answers with a web page; the network may ask for a login")
        if status == 200:
            part.begin(RemoteFile.from_headers(url, response.headers))
        missing, available = part.size - part.done, shutil.disk_usage(part.path.parent).free
        if available < missing:
            raise AnswerError(f"needs {missing / 1e9:.2f} GB on the disk, {available / 1e9:.2f} GB are available")
        if part.size > LARGEST:
            raise AnswerError(f"states {part.size / 1e9:.0f} GB, more than any published file has")
        limits.seconds, most = PATIENCE + (part.size or LARGEST) / SLOWEST, part.size
        for chunk in response.iter_raw():
            if part.done + len(chunk) > (most or LARGEST):
                part.clear()
                stated = f"the {most} bytes that it states" if most else f"{LARGEST / 1e9:.1f} GB"
                raise AnswerError(f"sends more than {stated}")
            part.append(chunk)
            patience.advance()
    part.ended = True
    if not part.complete:
        raise _TemporaryError(f"ended after {part.done} of {part.size} bytes")


class _Patience:
    """Policy of the retries: gives up when nothing new, beyond the furthest byte ever reached, came for too long."""

    def __init__(self, part: Partial, progress: Progress) -> None:
        self.reached = False
        self._part, self._progress = part, progress
        self._furthest, self._since, self._failures = part.done, monotonic(), 0

    def retrying(self, temporary: tuple[type[Exception], ...]) -> Retrying:
        retry = retry_if_exception_type(temporary)
        return Retrying(sleep, self._is_over, self._wait, retry, before_sleep=self._announce, reraise=True)

    def advance(self) -> None:
        """Report the bytes that have arrived; start over if they are new."""
        if self._part.done > self._furthest:
            self._furthest, self._since, self._failures = self._part.done, monotonic(), 0
        self._progress("downloading", self._part.done, self._part.size)

    def _wait(self, state: RetryCallState) -> float:
        backoff = min(BACKOFF * 2**self._failures, LONGEST_BACKOFF)
        asked = getattr(state.outcome and state.outcome.exception(), "wait", 0.0)
        return max(asked, random.uniform(backoff / 2, backoff))

    def _is_over(self, state: RetryCallState) -> bool:
        return monotonic() - self._since + state.upcoming_sleep > (PATIENCE if self.reached else UNREACHED_PATIENCE)

    def _announce(self, state: RetryCallState) -> None:
        self._failures += 1
        self._progress("trying again", self._failures, self._failures)


def _seconds(retry_after: str) -> float:
    """Return the seconds that the header `Retry-After` asks to wait, stated so or as a date (RFC 9110, 10.2.3)."""
    if retry_after.isdecimal():
        return float(retry_after)
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time())
    return 0.0
