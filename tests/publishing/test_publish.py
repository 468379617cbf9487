"""Push to a Hub on the loopback through huggingface_hub's real clients."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants
from support.hub import PART, Fault, HubServer
from support.hub_repositories import Blob, Repository
from support.pushing import FOREVER, REPOSITORY, TOKEN, account, content, local, push

from convert.errors import HubError, UsageError, VerificationError
from convert.publishing.gate import CARD_NAME
from convert.publishing.publish import Publication, PublishOptions, publish

# The second: huggingface_hub hands files to its HTTP client in a deprecated way.
pytestmark = [
    pytest.mark.usefixtures("pushes_at_once"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]

DRY_RUN = PublishOptions(dry_run=True, reverify=False)


def test_a_push_makes_the_repository_hold_the_folder_and_a_card(server: HubServer, folder: Path) -> None:
    result = push(server, folder)
    repository = server.repositories[REPOSITORY]
    found = content(repository)
    card = found.pop("README.md")
    assert card.startswith(b"---\nlicense: unknown\n")
    assert {**found, "README.md": (folder / "README.md").read_bytes()} == local(folder), "the folder's page stays there"
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
    assert result.sent == ("README.md",)
    assert not any("part" in line for line in server.sent())
    assert content(server.repositories[REPOSITORY])["README.md"].endswith(b"second\n")


def test_stale_weights_go_in_the_same_commit_and_foreign_files_stay(server: HubServer, folder: Path) -> None:
    before = Repository.of()
    stale = ["pytorch_model.bin", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "old.npz"]
    foreign = ["logo.png", "training_args.bin", "eval/model.safetensors", "tokens.json"]
    before.commit("main", {**before.files, **{name: Blob.of(b"x") for name in (*stale, *foreign)}})
    server.repositories[REPOSITORY] = before
    planned = push(server, folder, dry_run=True)
    assert planned.deleted == tuple(sorted(stale))
    commits = len(before.commits)
    assert push(server, folder).deleted == tuple(sorted(stale))
    assert len(before.commits) == commits + 1
    assert set(before.files) == {*local(folder), "README.md", ".gitattributes", *foreign}


def test_a_dry_run_tells_everything_and_sends_nothing(server: HubServer, folder: Path) -> None:
    result = push(server, folder, private=True, dry_run=True)
    assert (result.state, result.creates, result.private, result.commit) == ("planned", True, True, None)
    assert set(result.sent) == {*local(folder), "README.md"}
    assert result.not_asked is None
    assert server.sent() == []
    assert REPOSITORY not in server.repositories
    pushed = push(server, folder, private=True)
    assert pushed == dataclasses.replace(result, state="pushed", commit=pushed.commit), "the same files and card"


def assert_not_asked(result: Publication, folder: Path, reason: str) -> None:
    """The result of a dry run that has only the folder to look at."""
    assert (result.state, result.sent, result.deleted, result.commit) == ("planned", (), (), None)
    assert result.not_asked is not None
    assert reason in result.not_asked
    assert result.files.keys() == {*local(folder), "README.md"}
    weights = (folder / "model.safetensors").read_bytes()
    assert result.files["model.safetensors"].bytes == len(weights)
    assert result.files["model.safetensors"].sha256 == hashlib.sha256(weights).hexdigest()
    assert result.card.startswith("---\nlicense: unknown\n")
    assert result.files[CARD_NAME].sha256 == hashlib.sha256(result.card.encode()).hexdigest()


def test_a_dry_run_needs_no_token(server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    result = publish(folder, REPOSITORY, DRY_RUN)
    assert_not_asked(result, folder, "no token")
    assert result.url.endswith("/me/tiny")
    assert_not_asked(publish(folder, "tiny", DRY_RUN), folder, "no token")
    assert server.requests == []


def test_a_dry_run_needs_no_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    nowhere = HfApi(endpoint="http://127.0.0.1:9", token=TOKEN)
    assert_not_asked(publish(folder, REPOSITORY, DRY_RUN, api=nowhere), folder, "could not be reached")
    assert slept == [], "it asks once"
    with pytest.raises(HubError, match="could not be reached"):
        publish(folder, REPOSITORY, PublishOptions(reverify=False), api=nowhere)
    assert slept == [1, 2, 4]


@pytest.mark.parametrize("step", ["GET /api/whoami-v2", "GET /api/models/me/tiny", "GET /api/models/me/tiny/tree/.+"])
@pytest.mark.parametrize("does", [503, "drop"])
def test_a_dry_run_needs_no_answer(server: HubServer, folder: Path, step: str, does: int | str) -> None:
    server.repositories[REPOSITORY] = Repository.of()
    server.faults.append(Fault(step, does, FOREVER))
    reason = "could not be reached" if does == "drop" else "out of order (503)"
    assert_not_asked(push(server, folder, dry_run=True), folder, reason)


def test_a_dry_run_respects_the_offline_mode_of_huggingface_hub(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_not_asked(push(server, folder, dry_run=True), folder, "offline mode is enabled")
    assert server.requests == []


def test_a_dry_run_still_refuses_what_a_push_would_refuse(server: HubServer, folder: Path) -> None:
    server.tokens[TOKEN] = account("read")
    with pytest.raises(HubError, match="read-only"):
        push(server, folder, dry_run=True)
    with pytest.raises(UsageError, match="invalid repository name"):
        push(server, folder, "me/ti ny", dry_run=True)
    (folder / "config.json").write_text("{}")
    with pytest.raises(VerificationError, match=r"config\.json was changed"):
        push(server, folder, dry_run=True)


def test_a_new_repository_is_private_if_asked(server: HubServer, folder: Path) -> None:
    assert push(server, folder, "tiny", private=True).repository == REPOSITORY
    assert server.repositories[REPOSITORY].private


def test_a_public_repository_is_not_taken_for_a_private_one(server: HubServer, folder: Path) -> None:
    server.repositories[REPOSITORY] = Repository.of()
    with pytest.raises(UsageError, match="exists and is public"):
        push(server, folder, private=True)
    assert server.sent() == []


def test_a_branch_is_pushed_to_and_must_exist(server: HubServer, folder: Path) -> None:
    repository = server.repositories[REPOSITORY] = Repository.of()
    main = repository.head
    repository.branches["next"] = main
    result = push(server, folder, revision="next", message="As it will be")
    assert (repository.head, repository.branches["next"]) == (main, result.commit)
    with pytest.raises(HubError, match="me/tiny has no branch other"):
        push(server, folder, revision="other")
    with pytest.raises(HubError, match="me can see no repository me/none, needed for the branch next"):
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
    ("whoami", "repository", "options", "message"),
    [
        (account("read"), REPOSITORY, {}, "the token is read-only"),
        (account(), "museum/tiny", {}, "me has no write access to repositories of museum; .* --create-pr"),
        (account(), "stranger/tiny", {}, "me has no write access to repositories of stranger"),
        (account("fineGrained", fineGrained={"scoped": []}), REPOSITORY, {}, "has no write access to me/tiny"),
        (account("fineGrained", fineGrained={"scoped": [FINE]}), "lab/tiny", {}, "has no write access to lab/tiny"),
        (account(), "museum/tiny", {"create_pr": True}, "no repository museum/tiny, needed for a pull request"),
        ({"error": "who?"}, REPOSITORY, {}, "does not tell who"),
    ],
)
def test_a_token_that_may_not_write_is_refused_before_anything_is_sent(
    server: HubServer, folder: Path, whoami: dict[str, Any], repository: str, options: dict[str, Any], message: str
) -> None:
    server.tokens[TOKEN] = whoami
    with pytest.raises(HubError, match=message):
        push(server, folder, repository, **options)
    assert server.sent() == []
    assert server.repositories == {}


def test_a_fine_grained_token_and_an_organization_may_be_enough(server: HubServer, folder: Path) -> None:
    assert push(server, folder, "lab/tiny").state == "pushed"
    server.tokens[TOKEN] = account("fineGrained", fineGrained={"scoped": [FINE]})
    assert push(server, folder).state == "pushed"


def test_an_invalid_name_a_missing_token_and_an_unknown_token_are_refused(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("", "a/b/c", "me/-tiny", "me/ti ny"):
        with pytest.raises(UsageError, match="invalid repository name"):
            push(server, folder, name)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(HubError, match="no token: create one"):
        publish(folder, REPOSITORY)
    server.tokens.clear()
    with pytest.raises(HubError, match="does not know the token"):
        push(server, folder)
    assert server.sent() == []


@pytest.mark.parametrize(("state", "message"), [("gated", "is gated and me has no access"), ("disabled", "disabled")])
def test_a_gated_or_disabled_repository_is_left_alone(
    server: HubServer, folder: Path, state: str, message: str
) -> None:
    server.repositories[REPOSITORY] = Repository.of(**{state: True})
    with pytest.raises(HubError, match=message):
        push(server, folder)
    assert server.sent() == []


def test_through_xet_the_same_files_arrive(server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr("convert.publishing.gate.IN_MEMORY", 100_000)  # a path and bytes, both
    push(server, folder, extra={"more.npz": b"as bytes"})
    found = content(server.repositories[REPOSITORY])
    assert found.pop("more.npz") == b"as bytes"
    assert found.pop("README.md")
    assert found.items() == local(folder).items() - {("README.md", (folder / "README.md").read_bytes())}
    assert not any("/part/" in line or "batch" in line for line in server.requests)
    assert push(server, folder, extra={"more.npz": b"as bytes"}).state == "identical"


def test_large_files_are_sent_in_parts(server: HubServer, folder: Path) -> None:
    big = b"\0" * (2 * PART + 5)
    with pytest.raises(UsageError, match="config"):
        push(server, folder, extra={"config.json": big})
    push(server, folder, extra={"pad.data": big})
    assert server.repositories[REPOSITORY].files["pad.data"].read() == big
    assert sum(line.startswith("PUT /part/") for line in server.requests) == 4
