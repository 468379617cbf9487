"""A hostile or broken Hub, at each request of the client: one line, and no file outside of the cache."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from support import hub_here
from support.command import run_here
from support.hostile import BAD, FILE, SLOW, answer
from support.hub import Fault, HubServer, hub
from support.pushing import FOREVER, TOKEN, account

from convert.errors import DownloadError
from convert.progress import silent
from convert.sources.hub import fetch, wanted

REQUESTS = {
    "commit": "GET /api/models/me/tiny/revision/main",
    "files": "GET /api/models/me/tiny/tree/.+",
    "metadata": "HEAD /me/tiny/resolve/.+",
    "bytes": "GET /me/tiny/resolve/.+",
}


@pytest.fixture
def server(tmp_path: Path, tiny_npz: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with a repository of weights, which this process uses with a token."""
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "tiny.npz").write_bytes(tiny_npz.read_bytes())
    with hub({"me/tiny": folder}) as running:
        running.tokens[TOKEN] = account()
        hub_here.use(running, tmp_path / "cache", monkeypatch)
        yield running


def check_one_line(server: HubServer, folder: Path, name: str = "hf:me/tiny") -> str:
    """Run the command; check for exit status 2, one `error:` line, no token, and no file outside of the cache."""
    before = files_of(folder)
    result = run_here("convert", name, cwd=folder)
    lines = [line for line in result.stderr.splitlines() if not line.endswith("…") or line.startswith("error: ")]
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert len(lines[0]) < 1000
    assert lines[0].isprintable()
    assert TOKEN not in result.stdout + result.stderr
    assert files_of(folder) == before
    assert not list(server.storage.iterdir())
    return lines[0]


def files_of(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if folder / "cache" not in (path, *path.parents)}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("request_", REQUESTS)
def test_a_bad_answer_gets_one_line(server: HubServer, tmp_path: Path, request_: str, kind: str) -> None:
    server.faults.append(Fault(REQUESTS[request_], BAD[kind], FOREVER))
    check_one_line(server, tmp_path)
    assert server.faults[0].times < FOREVER, "the fault must have happened"
    assert server.count < 64 << 20, "an answer without an end is not read to the end"


@pytest.mark.parametrize("kind", SLOW)
@pytest.mark.parametrize("request_", REQUESTS)
def test_a_slow_answer_ends(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_: str, kind: str
) -> None:
    hub_here.hasten(monkeypatch, 0.3)
    server.faults.append(Fault(REQUESTS[request_], SLOW[kind], FOREVER))
    check_one_line(server, tmp_path)


def test_a_name_without_a_network_fails_after_few_attempts(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    hub_here.use(server, tmp_path / "cache", monkeypatch)
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr("convert.sources.hub.PATIENCE", 3.0)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    line = check_one_line(server, tmp_path, "foo/bar")
    assert line.startswith(
        "error: there is no file 'foo/bar', and hf:foo/bar could not be fetched: the Hub could not be"
    )
    assert sum(slept) < 5


def test_an_answer_that_fails_for_a_moment_is_asked_for_again(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convert.sources.hub.PATIENCE", 60.0)
    server.faults += [Fault(request, 503) for request in REQUESTS.values()]
    assert fetched() == {"tiny.npz"}


def fetched() -> set[str]:
    return {path.name for path in fetch("me/tiny", None, silent).iterdir()}


def page(names: list[str], following: str | None = None) -> Any:
    link = {"Link": f'<{following}>; rel="next"'} if following else {}
    return answer([{**FILE, "path": name} for name in names], **link)


def test_every_page_of_the_list_of_files_is_read(server: HubServer) -> None:
    first = page(
        ["README.md"], f"{server.endpoint}/api/models/me/tiny/tree/{server.repositories['me/tiny'].head}?page=2"
    )
    server.faults.append(Fault(REQUESTS["files"], first))
    assert fetched() == {"tiny.npz"}


def test_pages_without_end_are_not_read(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convert.sources.hub.MOST_NAMES", 10)
    server.faults.append(
        Fault(REQUESTS["files"], page(["a", "b"], f"{server.endpoint}/api/models/me/tiny/tree/x"), FOREVER)
    )
    with pytest.raises(DownloadError, match="the Hub lists more than 10 files"):
        fetched()
    assert FOREVER - server.faults[0].times == 6


def test_pages_at_another_address_do_not_get_the_token(server: HubServer) -> None:
    server.faults.append(Fault(REQUESTS["files"], page(["a"], "http://127.0.0.1:9/next")))
    with pytest.raises(DownloadError, match="continues the list of files at another address"):
        fetched()


def test_another_commit_than_the_one_asked_for_is_refused(server: HubServer, tmp_path: Path) -> None:
    server.faults.append(Fault(REQUESTS["commit"].replace("main", "1" * 40), answer({"sha": "2" * 40})))
    with pytest.raises(DownloadError, match="another commit than the one asked for"):
        fetch("me/tiny", "1" * 40, silent)


def test_a_file_of_another_commit_is_refused(server: HubServer) -> None:
    named = answer(b"", ETag='"0123"', X_Repo_Commit="3" * 40)
    server.faults.append(Fault(REQUESTS["metadata"], named, FOREVER))
    with pytest.raises(DownloadError, match=r"another tiny\.npz than it lists|Consistency check failed"):
        fetched()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("tokenizer.json", 10**9), ("a.bin", 3)], "lists tokenizer.json of 1000 MB, more than is fetched"),
        ([(f"model-{number}.safetensors", 1) for number in range(2000)], "lists 2000 files, more than is fetched"),
        ([("model.safetensors", 10**18)], r"lists 1000000000\.00 GB, but .* are available"),
    ],
)
def test_more_than_a_model_has_is_not_fetched(server: HubServer, files: list[tuple[str, int]], message: str) -> None:
    listed = answer([{**FILE, "path": name, "size": size} for name, size in files])
    server.faults.append(Fault(REQUESTS["files"], listed))
    with pytest.raises(DownloadError, match=message):
        fetched()
    assert not [line for line in server.requests if "resolve" in line]


def test_a_file_has_no_more_bytes_than_listed(server: HubServer) -> None:
    listed = answer([{**FILE, "path": "tiny.npz", "size": 3}])
    server.faults += [Fault(REQUESTS["files"], listed, 2), Fault(REQUESTS["bytes"], BAD["an endless answer"])]
    with pytest.raises(DownloadError, match=r"sends more than 0\.0 MB"):
        fetched()
    with pytest.raises(DownloadError, match=r"sends another tiny\.npz than it lists"):
        fetched()


@pytest.mark.parametrize("name", ["a\x1b[2J.npz", "../a.npz", "a/b.npz", ".npz", "x" * 300 + ".npz", "é.npz"])
def test_files_with_odd_names_are_left_out(name: str) -> None:
    assert wanted([name, "a.npz"]) == ["a.npz"]


def test_only_safetensors_are_fetched_where_there_are_any() -> None:
    assert wanted(["a.bin", "b.json", "m.safetensors", "README.md"]) == ["m.safetensors", "b.json"]
    assert wanted(["a.bin", "b.json", "README.md"]) == ["a.bin", "b.json"]
    assert wanted(["b.json", "README.md"]) == []
