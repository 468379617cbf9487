"""Pushing to a Hub on the loopback, through the real clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from support.hub import PART, HubServer
from support.hub_repositories import Blob, Repository
from support.pushing import REPOSITORY, TOKEN, account, content, local, push

from convert.errors import CheckpointError
from convert.progress import silent
from convert.publishing.publish import publish

# The second is how huggingface_hub hands files to its HTTP client.
pytestmark = [
    pytest.mark.usefixtures("pushes_at_once"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]


def test_a_push_makes_the_repository_hold_the_folder_and_a_card(server: HubServer, folder: Path) -> None:
    result = push(server, folder)
    repository = server.repositories[REPOSITORY]
    found = content(repository)
    assert found.pop("README.md").startswith(b"---\nlicense: apache-2.0\n")
    assert found == local(folder)
    assert repository.files["model.safetensors"].large
    assert result.state == "pushed"
    assert result.commit == repository.head
    assert len(repository.commits) == 2, "the first commit of every repository, and one more"
    assert not repository.private


def test_the_same_push_again_leaves_the_repository_alone(server: HubServer, folder: Path) -> None:
    first = push(server, folder)
    server.requests.clear()
    again = push(server, folder)
    assert (again.state, again.commit) == ("identical", first.commit)
    assert server.sent() == []


def test_one_changed_file_is_all_that_is_sent(server: HubServer, folder: Path) -> None:
    push(server, folder, extra={"README.md": b"---\nlicense: mit\n---\nfirst\n"})
    server.requests.clear()
    result = push(server, folder, extra={"README.md": b"---\nlicense: mit\n---\nsecond\n"})
    assert result.sent == ["README.md"]
    assert not any("part" in line for line in server.sent())
    assert content(server.repositories[REPOSITORY])["README.md"].endswith(b"second\n")


def test_stale_weights_go_in_the_same_commit_and_foreign_files_stay(server: HubServer, folder: Path) -> None:
    before = Repository.of()
    stale = ["pytorch_model.bin", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "old.npz"]
    foreign = ["logo.png", "training_args.bin", "eval/model.safetensors", "tokens.json"]
    before.commit("main", {**before.files, **{name: Blob.of(b"x") for name in (*stale, *foreign)}})
    server.repositories[REPOSITORY] = before
    planned = push(server, folder, dry_run=True)
    assert planned.deleted == sorted(stale)
    commits = len(before.commits)
    assert push(server, folder).deleted == sorted(stale)
    assert len(before.commits) == commits + 1
    assert set(before.files) == {*local(folder), "README.md", ".gitattributes", *foreign}


def test_a_dry_run_says_all_and_sends_nothing(server: HubServer, folder: Path) -> None:
    result = push(server, folder, private=True, dry_run=True)
    assert (result.state, result.creates, result.private, result.commit) == ("planned", True, True, None)
    assert set(result.sent) == {*local(folder), "README.md"}
    assert server.sent() == []
    assert REPOSITORY not in server.repositories


def test_a_new_repository_is_private_if_asked(server: HubServer, folder: Path) -> None:
    assert push(server, folder, "tiny", private=True).repository == REPOSITORY
    assert server.repositories[REPOSITORY].private


def test_what_is_public_is_not_taken_for_private(server: HubServer, folder: Path) -> None:
    server.repositories[REPOSITORY] = Repository.of()
    with pytest.raises(CheckpointError, match="exists and is public"):
        push(server, folder, private=True)
    assert server.sent() == []


def test_a_branch_is_pushed_to_and_must_exist(server: HubServer, folder: Path) -> None:
    repository = server.repositories[REPOSITORY] = Repository.of()
    main = repository.head
    repository.branches["next"] = main
    result = push(server, folder, revision="next", message="As it will be")
    assert (repository.head, repository.branches["next"]) == (main, result.commit)
    with pytest.raises(CheckpointError, match="me/tiny has no branch other"):
        push(server, folder, revision="other")
    with pytest.raises(CheckpointError, match="no repository me/none that me may see, for the branch next"):
        push(server, folder, "me/none", revision="next")


def test_a_pull_request_leaves_the_branch_and_is_opened_once(server: HubServer, folder: Path) -> None:
    repository = server.repositories["museum/tiny"] = Repository.of()
    before = repository.head
    first = push(server, folder, "museum/tiny", create_pr=True)
    assert first.state == "pushed"
    assert first.pull_request == f"{server.endpoint}/museum/tiny/discussions/1"
    again = push(server, folder, "museum/tiny", create_pr=True)
    assert (again.state, again.pull_request) == ("identical", first.pull_request)
    assert len(repository.pull_requests) == 1
    assert repository.head == before


FINE = {"entity": {"type": "user", "name": "me"}, "permissions": ["repo.content.read", "repo.write"]}


@pytest.mark.parametrize(
    ("said", "repository", "options", "message"),
    [
        (account("read"), REPOSITORY, {}, "may only read"),
        (account(), "museum/tiny", {}, "me may not write to repositories of museum; --create-pr"),
        (account(), "stranger/tiny", {}, "me may not write to repositories of stranger"),
        (account("fineGrained", fineGrained={"scoped": []}), REPOSITORY, {}, "grants no writing to me/tiny"),
        (account("fineGrained", fineGrained={"scoped": [FINE]}), "lab/tiny", {}, "grants no writing to lab/tiny"),
        (account(), "museum/tiny", {"create_pr": True}, "no repository museum/tiny .* for a pull request"),
        ({"error": "who?"}, REPOSITORY, {}, "does not say who"),
    ],
)
def test_a_token_that_may_not_write_is_refused_before_anything_is_sent(
    server: HubServer, folder: Path, said: dict[str, Any], repository: str, options: dict[str, Any], message: str
) -> None:
    server.tokens[TOKEN] = said
    with pytest.raises(CheckpointError, match=message):
        push(server, folder, repository, **options)
    assert server.sent() == []
    assert server.repositories == {}


def test_a_fine_grained_token_and_an_organization_may_be_enough(server: HubServer, folder: Path) -> None:
    assert push(server, folder, "lab/tiny").state == "pushed"
    server.tokens[TOKEN] = account("fineGrained", fineGrained={"scoped": [FINE]})
    assert push(server, folder).state == "pushed"


def test_a_name_that_is_none_and_a_token_that_is_none_are_refused(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("", "a/b/c", "me/-tiny", "me/ti ny"):
        with pytest.raises(CheckpointError, match="is no name of a repository"):
            push(server, folder, name)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(CheckpointError, match="there is no token: make one"):
        publish(folder, REPOSITORY, silent)
    server.tokens.clear()
    with pytest.raises(CheckpointError, match="does not know the token"):
        push(server, folder)
    assert server.sent() == []


@pytest.mark.parametrize(("state", "message"), [("gated", "is gated, and me was not let in"), ("disabled", "disabled")])
def test_a_gated_or_disabled_repository_is_left_alone(
    server: HubServer, folder: Path, state: str, message: str
) -> None:
    server.repositories[REPOSITORY] = Repository.of(**{state: True})
    with pytest.raises(CheckpointError, match=message):
        push(server, folder)
    assert server.sent() == []


def test_through_xet_the_same_files_arrive(server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr("convert.publishing.gate.IN_MEMORY", 100_000)  # a path and bytes, both
    push(server, folder, extra={"more.npz": b"as bytes"})
    found = content(server.repositories[REPOSITORY])
    assert found.pop("more.npz") == b"as bytes"
    assert found.pop("README.md")
    assert found == local(folder)
    assert not any("/part/" in line or "batch" in line for line in server.requests)
    assert push(server, folder, extra={"more.npz": b"as bytes"}).state == "identical"


def test_large_files_are_sent_in_parts(server: HubServer, folder: Path) -> None:
    big = b"\0" * (2 * PART + 5)
    with pytest.raises(CheckpointError, match="config"):
        push(server, folder, extra={"config.json": big})
    push(server, folder, extra={"pad.data": big})
    assert server.repositories[REPOSITORY].files["pad.data"].read() == big
    assert sum(line.startswith("PUT /part/") for line in server.requests) == 4
