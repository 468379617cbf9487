"""The private parts of huggingface_hub that the project uses are still there, and each has a fallback."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import huggingface_hub
import pytest

from convert.sources.hub_client import http_library, is_ignored, limit_silence, quiet_hub

utils: Any = importlib.import_module("huggingface_hub.utils")


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Leave the shared client and the verbosity of huggingface_hub as they were."""
    client, level = utils.get_session(), utils.logging.get_verbosity()
    hooks, bars = client.event_hooks, utils.are_progress_bars_disabled()
    yield
    client.event_hooks = hooks
    utils.logging.set_verbosity(level)
    (utils.disable_progress_bars if bars else utils.enable_progress_bars)()


def test_the_http_library_is_the_one_of_huggingface_hub() -> None:
    library = http_library()
    assert isinstance(utils.get_session(), library.Client)
    for name in ("HTTPError", "TransportError", "NetworkError", "TimeoutException", "ProxyError", "InvalidURL"):
        assert issubclass(getattr(library, name), Exception), name


def test_an_installed_httpx_is_used_if_huggingface_hub_exports_none(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ModuleType("httpx")
    monkeypatch.setitem(sys.modules, "httpx", plain)
    monkeypatch.setattr(huggingface_hub, "utils", ModuleType("utils"))
    assert http_library() is plain


def test_log_lines_and_progress_bars_are_silenced() -> None:
    utils.enable_progress_bars()
    utils.logging.set_verbosity_info()
    quiet_hub()
    assert utils.are_progress_bars_disabled()
    assert utils.logging.get_verbosity() == utils.logging.ERROR


def test_a_request_gets_the_time_limit_once() -> None:
    limit_silence(300.0)
    client = utils.get_session()
    count = len(client.event_hooks["request"])
    for _ in range(3):
        limit_silence(7.0)
    assert len(client.event_hooks["request"]) == count
    request = client.build_request("GET", "http://127.0.0.1:9/")
    for hook in client.event_hooks["request"]:
        hook(request)
    assert request.extensions["timeout"] == {"connect": 7.0, "read": 7.0, "write": 7.0, "pool": 7.0}


def test_a_connection_has_ten_seconds_whatever_the_limit() -> None:
    limit_silence(300.0)
    client = utils.get_session()
    request = client.build_request("GET", "http://127.0.0.1:9/")
    client.event_hooks["request"][-1](request)
    assert request.extensions["timeout"] == {"connect": 10.0, "read": 300.0, "write": 300.0, "pool": 300.0}


def test_an_uploaded_file_tells_whether_gitignore_excludes_it() -> None:
    operation: Any = huggingface_hub.CommitOperationAdd("a.txt", b"a")
    assert hasattr(operation, "_should_ignore")
    assert not is_ignored(operation)
    operation._should_ignore = True
    assert is_ignored(operation)
    assert not is_ignored(object()), "a huggingface_hub that does not tell"


def test_huggingface_hub_without_these_parts_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare:
        """A client without hooks."""

    monkeypatch.setattr(utils, "get_session", Bare)
    limit_silence(7.0)
    bare: Any = ModuleType("huggingface_hub.utils")
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", bare)
    limit_silence(7.0)
    quiet_hub()
    monkeypatch.undo()
    assert importlib.import_module("huggingface_hub.utils") is utils
