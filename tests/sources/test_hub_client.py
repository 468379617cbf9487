"""The private parts of huggingface_hub that the project uses are still there, and each has a fallback."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import huggingface_hub
import pytest

from convert.sources.hub_client import http_library, is_ignored, limited, quiet_hub
from convert.sources.limits import AnswerError, Limits

utils: Any = importlib.import_module("huggingface_hub.utils")
http: Any = importlib.import_module("huggingface_hub.utils._http")


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Leave the client and the verbosity of huggingface_hub as they were."""
    factory, level, bars = (
        http._GLOBAL_CLIENT_FACTORY,
        utils.logging.get_verbosity(),
        utils.are_progress_bars_disabled(),
    )
    yield
    huggingface_hub.set_client_factory(factory)
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
    assert utils.logging.get_verbosity() > utils.logging.ERROR


def sent(client: Any, url: str = "http://127.0.0.1:9/") -> Any:
    """Return a request as the hooks of the client leave it."""
    request = client.build_request("GET", url)
    for hook in client.event_hooks["request"]:
        hook(request)
    return request


def test_a_request_within_limits_gets_them_and_another_one_does_not() -> None:
    with limited(Limits(7.0, 60.0, 1000)):
        request = sent(utils.get_session())
    assert request.extensions["timeout"] == {"connect": 7.0, "read": 7.0, "write": 7.0, "pool": 7.0}
    assert request.headers["Accept-Encoding"] == "identity"
    assert sent(utils.get_session()).extensions["timeout"]["read"] is None
    with limited(Limits(300.0, 600.0, 1000)):
        request = sent(utils.get_session())
    assert request.extensions["timeout"] == {"connect": 10.0, "read": 300.0, "write": 300.0, "pool": 300.0}


def test_the_time_limit_covers_all_requests_together() -> None:
    with limited(Limits(7.0, 0.0, 1000)), pytest.raises(AnswerError, match="within 0 seconds"):
        sent(utils.get_session())


def test_no_request_leaves_tls() -> None:
    with limited(Limits(7.0, 60.0, 1000, secure=True)):
        sent(utils.get_session(), "https://127.0.0.1:9/")
        with pytest.raises(AnswerError, match="from https to http"):
            sent(utils.get_session())


def test_a_client_that_is_opened_after_a_lost_connection_keeps_the_limits() -> None:
    with limited(Limits(7.0, 60.0, 1000)):
        first = utils.get_session()
        http.close_session()
        assert utils.get_session() is not first
        assert sent(utils.get_session()).extensions["timeout"]["read"] == 7.0


def test_the_factory_that_a_program_has_set_is_still_used() -> None:
    made: list[Any] = []

    def factory() -> Any:
        made.append(http_library().Client(headers={"X-Ours": "1"}))
        return made[-1]

    huggingface_hub.set_client_factory(factory)
    with limited(Limits(7.0, 60.0, 1000)):
        assert sent(utils.get_session()).headers["X-Ours"] == "1"
    assert utils.get_session() is made[-1]


def test_connections_of_the_client_and_of_proxies_can_be_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    http.close_session()
    with limited(Limits(7.0, 60.0, 1000)):
        client = utils.get_session()
        pools = [
            transport._pool for transport in (client._transport, *client._mounts.values()) if transport is not None
        ]
    assert len(pools) > 1
    for pool in pools:
        assert type(pool._network_backend).__module__ == "convert.sources.limits"


def test_an_uploaded_file_tells_whether_gitignore_excludes_it() -> None:
    operation: Any = huggingface_hub.CommitOperationAdd("a.txt", b"a")
    assert hasattr(operation, "_should_ignore")
    assert not is_ignored(operation)
    operation._should_ignore = True
    assert is_ignored(operation)
    assert not is_ignored(object()), "a huggingface_hub that does not tell"


def test_huggingface_hub_without_these_parts_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare:
        """A module or client without these parts."""

    monkeypatch.delattr(http, "_GLOBAL_CLIENT_FACTORY")
    with limited(Limits(7.0, 60.0, 1000)):
        pass
    monkeypatch.setattr(huggingface_hub, "utils", Bare())
    quiet_hub()
