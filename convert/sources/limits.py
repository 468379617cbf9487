"""Limit the time and the size of everything that a server sends, headers included."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

CONNECT_TIMEOUT = 10.0
"""Seconds that a connection may take."""
SLOWEST = 20_000
"""Bytes that a server sends or takes in a second, at the least; a bound of the time, far below any usable network."""
OVERHEAD = 1_000_000
"""Bytes that headers and the framing of chunks may add to an answer; real servers send a few thousand."""


class AnswerError(Exception):
    """An answer that breaks a limit or is invalid; the text continues a sentence that starts with the server."""


@dataclass(eq=False)
class Limits:
    """Limits of the requests and answers of one task."""

    silence: float
    """Seconds without a byte."""
    seconds: float
    """Seconds from now until the last answer has arrived."""
    size: float
    """Bytes of the body of one answer."""
    secure: bool = False
    """Refuse every address without TLS, to which a redirect may lead."""
    since: float = field(default_factory=monotonic)

    def left(self) -> float:
        """Return the remaining seconds. Raises `AnswerError` if there are none."""
        left = self.since + self.seconds - monotonic()
        if left <= 0:
            raise AnswerError(f"did not answer completely within {self.seconds:.0f} seconds")
        return left


Current = Callable[[], Limits | None]
"""Return the limits that hold now; None if there are none."""


def limit(client: Any, current: Current) -> Any:
    """Make a client of httpx keep the limits, and return it.

    Hooks see a request before it is sent and an answer once the headers have arrived. Only the connection
    sees how the headers arrive, and httpx offers no public way to it; where the private one is missing, the
    limits hold for the silence between two bytes, and for the time between two requests.
    """
    hooks = client.event_hooks
    requests, responses = [*hooks["request"], _Before(current)], [*hooks["response"], _after]
    client.event_hooks = {**hooks, "request": requests, "response": responses}
    for transport in (getattr(client, "_transport", None), *getattr(client, "_mounts", {}).values()):
        pool: Any = getattr(transport, "_pool", None)
        if hasattr(pool, "_network_backend"):
            pool._network_backend = _Network(pool._network_backend, current)
    return client


@dataclass(frozen=True)
class _Before:
    current: Current

    def __call__(self, request: Any) -> None:
        """Ask for an answer without compression, whose size is the size in memory, and set the time limits."""
        if (limits := self.current()) is None:
            return
        if limits.secure and request.url.scheme != "https":
            raise AnswerError("leads from https to http, where everyone on the way can read and change what is sent")
        request.headers["Accept-Encoding"] = "identity"
        patience = min(limits.silence, limits.left())
        timeout = dict.fromkeys(("read", "write", "pool"), patience)
        request.extensions["timeout"] = {"connect": min(patience, CONNECT_TIMEOUT), **timeout}
        request.extensions[_LIMITED] = True


_LIMITED = "limited"
"""Mark of a request to which limits apply, among the `extensions`."""


def _after(response: Any) -> None:
    if _LIMITED not in response.request.extensions or response.request.method == "HEAD":
        return
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise AnswerError("compresses the answer, though told not to")


@dataclass(frozen=True)
class _Network:
    """A network backend of httpcore whose connections keep the limits."""

    inner: Any
    current: Current

    def connect_tcp(self, *arguments: Any, **options: Any) -> _Connection:
        return _Connection(self.inner.connect_tcp(*arguments, **options), self.current)

    def connect_unix_socket(self, *arguments: Any, **options: Any) -> _Connection:
        return _Connection(self.inner.connect_unix_socket(*arguments, **options), self.current)

    def sleep(self, seconds: float) -> None:
        self.inner.sleep(seconds)


@dataclass
class _Connection:
    """A network stream of httpcore; counts the bytes since the last request was written."""

    inner: Any
    current: Current
    received: int = 0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        limits = self.current()
        data: bytes = self.inner.read(max_bytes, self._patience(limits, timeout))
        self.received += len(data)
        if limits is not None and self.received > limits.size + OVERHEAD:
            raise AnswerError(f"sends more than {limits.size / 1e6:.1f} MB, the most that is accepted here")
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.received = 0
        self.inner.write(buffer, self._patience(self.current(), timeout))

    def close(self) -> None:
        self.inner.close()

    def start_tls(self, *arguments: Any, **options: Any) -> _Connection:
        return _Connection(self.inner.start_tls(*arguments, **options), self.current)

    def get_extra_info(self, info: str) -> Any:
        return self.inner.get_extra_info(info)

    def _patience(self, limits: Limits | None, timeout: float | None) -> float | None:
        """Return the seconds that one operation may take; None for no limit."""
        if limits is None:
            return timeout
        return min(math.inf if timeout is None else timeout, limits.left())
