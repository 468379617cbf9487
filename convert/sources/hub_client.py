"""Parts of huggingface_hub that are not in the public API. Tried with versions 1.0 to 2.4."""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

from convert.sources.limits import AnswerError, Limits, limit

COMMIT = re.compile(r"[0-9a-f]{40}")
"""Name of a commit, which becomes the name of a folder in huggingface_hub's cache."""
ETAG = re.compile(r'(W/)?"?[0-9A-Za-z](?:[0-9A-Za-z_-]|\.(?!\.)){0,127}"?')
"""ETag of a file, which becomes the name of a file there; the Hub sends a SHA-1 or a SHA-256."""
LARGEST_IN_COMMIT = 10 << 20
"""Largest file in bytes that the Hub takes without the large file storage (huggingface.co/docs/hub/repositories)."""


def http_library() -> Any:
    """Return the HTTP library that huggingface_hub uses: httpx or, from version 2, httpx2; else an installed httpx."""
    from huggingface_hub import utils

    try:
        return utils.httpx  # type: ignore[attr-defined, unused-ignore]  # exported on access
    except AttributeError:
        return importlib.import_module("httpx")


def quiet_hub() -> None:
    """Silence log lines and progress bars of huggingface_hub; errors still arrive as exceptions."""
    with contextlib.suppress(ImportError, AttributeError):
        from huggingface_hub import utils

        utils.disable_progress_bars()  # type: ignore[attr-defined, unused-ignore]  # exported on access
        utils.logging.set_verbosity(logging.CRITICAL)  # type: ignore[no-untyped-call, unused-ignore]


@contextlib.contextmanager
def limited(limits: Limits) -> Iterator[None]:
    """Keep the requests of huggingface_hub within limits; without them it waits for ever and reads any answer whole.

    Where several threads do so at once, the widest of their limits hold for all. Raises `AnswerError`.
    """
    with contextlib.suppress(ImportError, AttributeError):
        _limit_clients()
    _active.append(limits)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="huggingface_hub")  # they repeat words of the server
            yield
    finally:
        _active.remove(limits)


def is_ignored(operation: Any) -> bool:
    """Return whether the `.gitignore` of the repository excludes a `CommitOperationAdd` that was uploaded.

    False if huggingface_hub does not tell; the file is then found to be missing after the commit.
    """
    return bool(getattr(operation, "_should_ignore", False))


def is_in_commit(operation: Any, size: int) -> bool:
    """Return whether the bytes of a `CommitOperationAdd` go into the request of the commit itself.

    The Hub chooses that for files up to 10 MB. If huggingface_hub does not tell, it is taken for every such file.
    """
    mode = getattr(operation, "_upload_mode", None)
    return mode == "regular" if mode is not None else size <= LARGEST_IN_COMMIT


_active: list[Limits] = []


def _current() -> Limits | None:
    return max(_active, key=lambda limits: limits.since + limits.seconds, default=None)


def _limit_clients() -> None:
    """Limit the client that huggingface_hub uses now, and each that it opens after a lost connection."""
    from huggingface_hub import set_client_factory

    http = importlib.import_module("huggingface_hub.utils._http")
    if not isinstance(http._GLOBAL_CLIENT_FACTORY, _Factory):
        set_client_factory(_Factory(http._GLOBAL_CLIENT_FACTORY))


class _Factory:
    """A factory of clients that keep the limits, on top of the factory that was set before."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __call__(self) -> Any:
        client = limit(self._inner(), _current)
        hooks = client.event_hooks
        client.event_hooks = {**hooks, "response": [*hooks["response"], _check_headers]}
        return client


def _check_headers(response: Any) -> None:
    """Refuse headers that huggingface_hub would use as names of files, and drop those that make it wait.

    Without the address in Xet's storage, which another library asks without limits, files come over HTTP.
    """
    if _current() is None:
        return
    headers = response.headers
    if "x-repo-commit" in headers and not COMMIT.fullmatch(headers["x-repo-commit"]):
        raise AnswerError("states an invalid commit")
    etags = [headers[name] for name in ("etag", "x-linked-etag") if name in headers]
    if response.request.method == "HEAD" and not all(map(ETAG.fullmatch, etags)):
        raise AnswerError("states an invalid ETag")
    for name in ("retry-after", "ratelimit", "x-xet-hash"):
        headers.pop(name, None)
