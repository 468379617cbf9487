"""Whatever fails during a push, the repository is at the old commit or at the new one."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from huggingface_hub import constants
from support.hub import Fault, HubServer
from support.hub_repositories import Blob, Repository
from support.pushing import FOREVER, REPOSITORY, TOKEN, content, local, push

from convert.errors import HubError, VerificationError

# The second: huggingface_hub hands files to its HTTP client in a deprecated way.
pytestmark = [
    pytest.mark.usefixtures("pushes_at_once"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]


STEPS = {
    "whoami": "GET /api/whoami-v2",
    "look": "GET /api/models/me/tiny",
    "tree": "GET /api/models/me/tiny/tree/.+",
    "validate": "POST /api/validate-yaml",
    "preupload": "POST .+/preupload/main",
    "batch": "POST .+/objects/batch",
    "part": "PUT /part/.+",
    "verify": "POST /verify/.+",
    "commit": "POST .+/commit/main",
}


@pytest.mark.parametrize("does", [500, 503, 429, "drop", "cut", "lose"])
@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails_once_is_tried_again(server: HubServer, folder: Path, step: str, does: int | str) -> None:
    repository = server.repositories[REPOSITORY] = Repository.of()
    server.faults.append(Fault(STEPS[step], does))
    result = push(server, folder)
    assert server.faults[0].times == 0, "the fault took place"
    assert result.state == "pushed"
    assert result.commit == repository.head
    assert len(repository.commits) == 2, "one commit, not two"
    assert set(content(repository)) == {*local(folder), "README.md"}


@pytest.mark.parametrize("does", [500, 429, 403, "drop", "cut"])
@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_always_fails_changes_nothing(server: HubServer, folder: Path, step: str, does: int | str) -> None:
    repository = server.repositories[REPOSITORY] = Repository.of()
    before = repository.head
    server.faults.append(Fault(STEPS[step], does, FOREVER))
    with pytest.raises(HubError) as raised:
        push(server, folder)
    assert (repository.head, len(repository.commits)) == (before, 1)
    text = str(raised.value)
    expected = {500: "is out of order (500)", 429: "too many requests (429)", 403: "refused (out of order)"}.get(does)  # type: ignore[call-overload]
    assert expected is None or expected in text
    assert expected is not None or "could not be reached" in text
    if step in ("preupload", "batch", "part", "verify", "commit"):
        assert text.endswith("me/tiny is unchanged")
    server.faults.clear()
    assert push(server, folder).state == "pushed"


def test_a_commit_whose_answers_are_all_lost_is_found(server: HubServer, folder: Path) -> None:
    repository = server.repositories[REPOSITORY] = Repository.of()
    server.faults.append(Fault(STEPS["commit"], "lose", FOREVER))
    assert push(server, folder).commit == repository.head
    assert len(repository.commits) == 2


def test_a_pull_request_whose_answer_is_lost_is_found(server: HubServer, folder: Path) -> None:
    repository = server.repositories[REPOSITORY] = Repository.of()
    server.faults.append(Fault(STEPS["commit"], "lose"))
    result = push(server, folder, create_pr=True)
    assert result.pull_request == f"{server.endpoint}/me/tiny/discussions/1"
    assert len(repository.pull_requests) == 1


def test_the_error_tells_if_it_is_not_known_whether_a_commit_arrived(server: HubServer, folder: Path) -> None:
    repository = server.repositories[REPOSITORY] = Repository.of()
    server.faults += [Fault(STEPS["commit"], "lose"), Fault(STEPS["look"], "drop", FOREVER, after=1)]
    with pytest.raises(HubError, match=r"not known whether the commit arrived .* push again"):
        push(server, folder)
    server.faults.clear()
    assert push(server, folder).state == "identical"
    assert len(repository.commits) == 2


def test_a_head_that_moved_is_kept_and_the_push_is_refused(server: HubServer, folder: Path) -> None:
    repository = server.repositories[REPOSITORY] = Repository.of()

    def move() -> None:
        repository.commit("main", {**repository.files, "theirs.txt": Blob.of(b"theirs")})

    server.faults.append(Fault(STEPS["commit"], "none", first=move))
    with pytest.raises(HubError, match="me/tiny was changed by someone else in the meantime"):
        push(server, folder)
    assert set(repository.files) == {".gitattributes", "theirs.txt"}
    assert push(server, folder).state == "pushed"
    assert "theirs.txt" in repository.files


def test_the_error_tells_that_a_new_repository_is_empty(server: HubServer, folder: Path) -> None:
    server.faults.append(Fault(STEPS["part"], 403, FOREVER))
    with pytest.raises(HubError, match=r"refused .*; me/tiny was created and is empty"):
        push(server, folder)
    assert set(server.repositories[REPOSITORY].files) == {".gitattributes"}


@pytest.mark.parametrize("does", [500, "lose"])
def test_creating_a_repository_is_tried_again(server: HubServer, folder: Path, does: int | str) -> None:
    server.faults.append(Fault("POST /api/repos/create", does))
    assert push(server, folder, private=True).state == "pushed"


def test_a_silent_hub_is_given_up(server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convert.publishing.repository.SILENCE", 0.2)
    ended = threading.Event()
    server.faults.append(Fault(STEPS["look"], "drop", FOREVER, first=lambda: ended.wait(5) and None))
    with pytest.raises(HubError, match="could not be reached"):
        push(server, folder)
    ended.set()


def test_different_hashes_on_the_hub_fail_the_push(server: HubServer, folder: Path) -> None:
    repository = server.repositories[REPOSITORY] = Repository.of()

    def corrupt() -> None:
        repository.commit("main", {**repository.files, "config.json": Blob.of(b"{}")})
        repository.commits |= dict.fromkeys(repository.commits, repository.files)

    server.faults.append(Fault(STEPS["tree"], "none", first=corrupt, after=1))
    with pytest.raises(VerificationError, match=r"holds another config.json in commit \w{40} than was verified"):
        push(server, folder)


def test_hashes_that_cannot_be_compared_are_an_error_that_names_the_commit(server: HubServer, folder: Path) -> None:
    repository = server.repositories[REPOSITORY] = Repository.of()
    server.faults.append(Fault(STEPS["tree"], 500, FOREVER, after=1))
    with pytest.raises(HubError, match="was pushed, but the hashes could not be compared") as raised:
        push(server, folder)
    assert repository.head in str(raised.value)


def test_a_file_that_changes_while_it_is_sent_is_not_committed(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convert.publishing.gate.IN_MEMORY", 0)
    repository = server.repositories[REPOSITORY] = Repository.of()

    def change() -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\x7f")

    server.faults.append(Fault(STEPS["preupload"], "none", first=change))
    with pytest.raises(HubError, match=r"model.safetensors changed while it was sent"):
        push(server, folder)
    assert len(repository.commits) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])  # in the large file storage, in the commit
@pytest.mark.parametrize("step", ["preupload", "part", "verify"])
def test_a_file_that_changes_after_it_was_hashed_for_the_hub_is_not_committed(
    server: HubServer, folder: Path, name: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convert.publishing.gate.IN_MEMORY", 0)
    repository = server.repositories[REPOSITORY] = Repository.of()
    data = (folder / name).read_bytes()

    def change() -> None:
        (folder / name).write_bytes(data[:-3] + b"\x7f" + data[-2:])

    server.faults.append(Fault(STEPS[step], "none", first=change))
    with pytest.raises(HubError, match="me/tiny is unchanged"):  # the storage may see it first
        push(server, folder)
    assert len(repository.commits) == 1


def test_a_file_that_is_replaced_by_the_same_bytes_for_a_moment_is_not_committed(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convert.publishing.gate.IN_MEMORY", 0)
    repository = server.repositories[REPOSITORY] = Repository.of()
    path = folder / "model.safetensors"
    data = path.read_bytes()

    def exchange() -> None:
        path.unlink()
        path.write_bytes(data)

    server.faults.append(Fault(STEPS["part"], "none", first=exchange))
    with pytest.raises(HubError, match=r"model.safetensors changed while it was sent"):
        push(server, folder)
    assert len(repository.commits) == 1


def test_what_was_hashed_is_sent_even_if_the_file_changes_during_the_commit(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convert.publishing.gate.IN_MEMORY", 0)
    expected = local(folder)
    server.faults.append(
        Fault(STEPS["commit"], 503, first=lambda: (folder / "config.json").write_bytes(b"{}") and None)
    )
    assert push(server, folder).state == "pushed"
    sent = content(server.repositories[REPOSITORY])
    del expected["README.md"]  # the page of the folder, in place of which the card is sent
    assert {name: sent[name] for name in expected} == expected


def test_a_gitignore_that_excludes_a_file_is_an_error(server: HubServer, folder: Path) -> None:
    repository = server.repositories[REPOSITORY] = Repository.of()
    repository.commit("main", {**repository.files, ".gitignore": Blob.of(b"model.safetensors\n")})
    before = repository.head
    with pytest.raises(HubError, match=r".gitignore of me/tiny excludes model.safetensors"):
        push(server, folder)
    assert repository.head == before


def test_the_token_is_in_no_error_even_where_the_hub_repeats_it(server: HubServer, folder: Path) -> None:
    server.repositories[REPOSITORY] = Repository.of()
    for step in STEPS.values():
        server.faults[:] = [Fault(step, 400, FOREVER, message=f"not with {TOKEN}")]
        for blob in server.storage.iterdir():
            blob.unlink()
        with pytest.raises(HubError, match="not with …") as raised:
            push(server, folder)
        assert TOKEN not in repr(raised.value)


@pytest.mark.parametrize("does", [403, pytest.param("drop", marks=pytest.mark.long)])  # hf_xet tries for a minute
def test_an_upload_that_xet_cannot_make_leaves_the_old_commit(
    server: HubServer, folder: Path, does: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    repository = server.repositories[REPOSITORY] = Repository.of()
    before = repository.head
    server.faults.append(Fault("GET .+/xet-write-token/main", does, FOREVER, message=f"not with {TOKEN}"))
    with pytest.raises(HubError, match="me/tiny is unchanged") as raised:
        push(server, folder)
    assert TOKEN not in str(raised.value)
    assert repository.head == before
