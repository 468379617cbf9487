"""A hostile or broken Hub, at each request of a push: one line, no token, and nothing waits for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import hub_here
from support.command import run_here
from support.hostile import BAD, FILE, SLOW, answer
from support.hub import Fault, HubServer
from support.hub_repositories import Repository
from support.pushing import FOREVER, REPOSITORY, TOKEN, content, local

# huggingface_hub hands files to its HTTP client in a deprecated way.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REQUESTS = {
    "account": "GET /api/whoami-v2",
    "commit": "GET /api/models/me/tiny",
    "files": "GET /api/models/me/tiny/tree/.+",
    "card": "POST /api/validate-yaml",
    "modes": "POST .+/preupload/main",
    "storage": "POST .+/objects/batch",
    "part": "PUT /part/.+",
    "check": "POST /verify/.+",
    "change": "POST .+/commit/main",
}
THOROUGH = ("account", "change")
"""The first and the last request get every bad answer always; the others get the rest in the long run."""
USUAL = (
    *("a web page", "null", "other types", "ids that are paths", "nested lists", "an absolute path as commit"),
    *("the token in headers", "the token in a warning", "a redirect to no address", "an endless answer"),
)
CASES = [
    pytest.param(request, kind, marks=() if request in THOROUGH or kind in USUAL else pytest.mark.long)
    for request in REQUESTS
    for kind in BAD
]


@pytest.fixture
def hub(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A Hub with an empty repository, which this process uses with a token."""
    server.repositories[REPOSITORY] = Repository.of()
    hub_here.use(server, tmp_path / "cache", monkeypatch)
    return server


def check_push(hub: HubServer, folder: Path) -> str:
    """Run the command; check for one `error:` line and status 2, or a complete push, and for no token in the output."""
    before = set(folder.parent.rglob("*"))
    result = run_here("push", folder, REPOSITORY, "--no-reverify", cwd=folder.parent)
    errors = [
        line for line in result.stderr.splitlines() if not line.endswith("…") and not line.startswith("warning: ")
    ]
    assert TOKEN not in result.stdout + result.stderr
    assert set(folder.parent.rglob("*")) == before
    assert not hub.outside.exists()
    if result.returncode == 0:
        assert set(content(hub.repositories[REPOSITORY])) == {*local(folder), "README.md"}
    else:
        differs = "holds another" in result.stderr  # what the Hub lists after the commit
        assert (result.returncode, len(errors)) == (1 if differs else 2, 1), result.stderr
        assert errors[0].startswith("error: ")
        assert errors[0].isprintable()
        assert len(errors[0]) < 1500
    return "".join(errors)


@pytest.mark.parametrize(("request_", "kind"), CASES)
def test_a_bad_answer_gets_one_line(hub: HubServer, folder: Path, request_: str, kind: str) -> None:
    hub.faults.append(Fault(REQUESTS[request_], BAD[kind], FOREVER))
    check_push(hub, folder)
    assert hub.faults[0].times < FOREVER, "the fault must have happened"
    assert hub.count < 64 << 20, "an answer without an end is not read to the end"


SLOW_CASES = [
    pytest.param(request, kind, marks=() if request in (*THOROUGH, "part") else pytest.mark.long)
    for request in REQUESTS
    for kind in SLOW
]


@pytest.mark.parametrize(("request_", "kind"), SLOW_CASES)
def test_a_slow_answer_ends(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch, request_: str, kind: str
) -> None:
    hub_here.hasten(monkeypatch, 0.3)
    hub.faults.append(Fault(REQUESTS[request_], SLOW[kind], FOREVER))
    check_push(hub, folder)


@pytest.mark.parametrize(
    ("request_", "value", "message"),
    [
        ("account", {"name": TOKEN}, "the Hub repeats the token in the answer when asked who owns the token"),
        ("account", {"name": "../me"}, "the Hub does not tell who owns the token"),
        (
            "commit",
            {"id": REPOSITORY, "sha": "/etc/x"},
            "the Hub answers with an invalid commit when asked what me/tiny",
        ),
        ("files", [{**FILE, "path": "\x1b[2J.onnx"}], "answers with an invalid name or address"),
        ("files", [{**FILE, "path": f"{TOKEN}.onnx"}], "answers with an invalid name or address"),
        (
            "change",
            {"commitOid": "../..", "commitUrl": "https://huggingface.co/me/tiny/commit/a"},
            "the Hub answers with an invalid commit",
        ),
    ],
)
def test_names_of_the_hub_are_checked_before_they_are_shown(
    hub: HubServer, folder: Path, request_: str, value: Any, message: str
) -> None:
    hub.faults.append(Fault(REQUESTS[request_], answer(value), FOREVER))
    assert message in check_push(hub, folder)


def test_another_repository_than_the_one_asked_for_is_not_pushed_to(hub: HubServer, folder: Path) -> None:
    del hub.repositories[REPOSITORY]
    hub.repositories["me/other"] = Repository.of()
    hub.faults.append(Fault("POST /api/repos/create", answer({"url": f"{hub.endpoint}/me/other"})))
    assert "created another repository than the one asked for" in check_push(hub, folder)
    assert len(hub.repositories["me/other"].commits) == 1


def test_files_without_end_are_not_listed(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convert.publishing.repository.MOST_NAMES", 10)
    listed = [{**FILE, "path": f"{number}.txt"} for number in range(11)]
    hub.faults.append(Fault(REQUESTS["files"], answer(listed), FOREVER))
    assert "the Hub lists more than 10 files" in check_push(hub, folder)


@pytest.mark.parametrize("name", ["me", "ME", "lab"])
def test_the_name_of_an_account_alone_is_not_a_repository(hub: HubServer, folder: Path, name: str) -> None:
    result = run_here("push", folder, name, "--no-reverify", cwd=folder.parent)
    assert result.returncode == 2
    assert f"{name} is an account; name a repository, such as {name}/NAME" in result.stderr
    assert hub.sent() == []
