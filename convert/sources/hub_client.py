"""Parts of huggingface_hub that are not in the public API. Tried with versions 1.0 to 2.4."""

from __future__ import annotations

import contextlib
import importlib
from dataclasses import dataclass
from typing import Any

CONNECT_TIMEOUT = 10.0
"""Seconds that a connection may take."""


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
        from huggingface_hub.utils import (  # type: ignore[attr-defined, unused-ignore]  # exported on access
            disable_progress_bars,
            logging,
        )

        disable_progress_bars()
        logging.set_verbosity_error()  # type: ignore[no-untyped-call, unused-ignore]


def limit_silence(seconds: float) -> None:
    """Let requests of huggingface_hub fail after `seconds` without a byte, or `CONNECT_TIMEOUT` without a connection.

    Without this they wait for ever. Applies to the current HTTP client. huggingface_hub opens a new one
    after a lost connection, so call this before each request.
    """
    limit = _Limit(seconds)
    with contextlib.suppress(ImportError, AttributeError):
        from huggingface_hub.utils import get_session  # type: ignore[attr-defined, unused-ignore]

        client = get_session()
        hooks = client.event_hooks
        others = [hook for hook in hooks["request"] if not isinstance(hook, _Limit)]
        client.event_hooks = {**hooks, "request": [*others, limit]}


def is_ignored(operation: Any) -> bool:
    """Return whether the `.gitignore` of the repository excludes a `CommitOperationAdd` that was uploaded.

    False if huggingface_hub does not tell; the file is then found to be missing after the commit.
    """
    return bool(getattr(operation, "_should_ignore", False))


@dataclass(frozen=True)
class _Limit:
    seconds: float

    def __call__(self, request: Any) -> None:
        timeout = dict.fromkeys(("read", "write", "pool"), self.seconds)
        request.extensions["timeout"] = {"connect": min(self.seconds, CONNECT_TIMEOUT), **timeout}
