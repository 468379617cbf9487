"""Publishing a verified folder on the Hugging Face Hub: one commit that holds exactly it, or none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import convert
from convert.errors import CheckpointError, VerificationError
from convert.files.base import File
from convert.progress import Progress
from convert.publishing.card import card
from convert.publishing.gate import CARD_NAME, Content, Verified, verified
from convert.publishing.repository import Hub, Remote

if TYPE_CHECKING:
    from huggingface_hub import HfApi

STALE = re.compile(
    r"""
    [^/]+\.(safetensors|npz|h5|msgpack|onnx|onnx\.data)
    | [^/]+\.(safetensors|bin)\.index\.json
    | (open_clip_)?(pytorch_)?model([-_.][^/]*)?\.(bin|pth|pt|pth\.tar)
    | (config|preprocessor_config|conversion|verification)\.json | verification\.html
    """,
    re.VERBOSE,
)
"""Files of an earlier commit that a library would load beside or before the new weights: the names that
transformers (`utils/__init__.py`), timm (`models/_hub.py`) and this converter give to weights, and what
we write beside them. Any other file there is somebody's own, and stays."""


@dataclass
class Publication:
    """What was sent, or would be."""

    repository: str
    url: str
    private: bool
    state: str = "planned"
    """`planned`, `identical`, or `pushed`."""
    creates: bool = False
    """Whether the repository did not exist."""
    commit: str | None = None
    """The commit that holds the files; None of a plan."""
    pull_request: str | None = None
    files: dict[str, File] = field(default_factory=dict)
    """Every file that the repository holds of ours, by name."""
    sent: list[str] = field(default_factory=list)
    """Those of them that it did not hold before."""
    deleted: list[str] = field(default_factory=list)


def publish(
    folder: Path,
    repository: str,
    progress: Progress,
    *,
    private: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    message: str | None = None,
    extra: Mapping[str, bytes] | None = None,
    dry_run: bool = False,
    api: HfApi | None = None,
) -> Publication:
    """Make the branch `revision` of `repository` hold the converted `folder`, with one commit on its head.

    A missing repository is made, `private` if so asked; `create_pr` opens a pull request instead of
    moving the branch; a repository that holds all of it already is left alone; `dry_run` asks and
    sends nothing. `extra` are further files, by name; a model card is made unless it or the folder
    has one. `api` is the client, by default huggingface_hub's own with its token.

    Raises `VerificationError` for a folder that is not as it was verified, before any request, and
    for a commit whose hashes are not those of the files; `CheckpointError` for all that keeps the
    commit from being made: the branch is then as it was.
    """
    passed = verified(folder, progress)
    hub = Hub(repository, revision, api)
    hub.check_permission(create_pr)
    contents = _contents(passed, extra or {}, hub.repository)
    remote = hub.look()
    _check(hub, remote, private, create_pr)
    plan = Publication(
        hub.repository,
        hub.url(),
        private if remote is None else remote.private,
        creates=remote is None,
        files={name: File(content.size, content.sha256) for name, content in contents.items()},
    )
    plan.sent, plan.deleted = _difference(remote, contents)
    if remote is not None:
        if not plan.sent and not plan.deleted:
            plan.state, plan.commit = "identical", remote.head
            return plan
        if create_pr and (found := hub.pull_request(lambda it: _holds(it, contents))) is not None:
            plan.state, plan.commit, plan.pull_request = "identical", found.oid, found.pull_request
            return plan
    if dry_run:
        return plan
    return _send(hub, remote, contents, message or _message(passed), create_pr, plan, progress)


def _contents(passed: Verified, extra: Mapping[str, bytes], repository: str) -> dict[str, Content]:
    """Every file to be published. Raises `CheckpointError` for an extra one that would replace a verified one."""
    more = dict(extra)
    if CARD_NAME not in passed.files and CARD_NAME not in more:
        more[CARD_NAME] = card(passed.record, passed.verification, repository).encode()
    if taken := set(more) & set(passed.files):
        raise CheckpointError(f"{min(taken)} is in the folder already, and was verified as it is")
    return {**passed.files, **{name: Content.of(data) for name, data in more.items()}}


def _check(hub: Hub, remote: Remote | None, private: bool, create_pr: bool) -> None:
    """Raise `CheckpointError` for what the repository is not, before anything is sent."""
    if remote is None and (create_pr or hub.revision is not None):
        wish = "a pull request" if create_pr else f"the branch {hub.revision}"
        raise CheckpointError(f"there is no repository {hub.repository} that {hub.account} may see, for {wish}")
    if remote is not None and private and not remote.private:
        raise CheckpointError(f"{hub.repository} exists and is public; make it private there, or leave --private out")


def _difference(remote: Remote | None, contents: Mapping[str, Content]) -> tuple[list[str], list[str]]:
    """The names that the branch lacks, and those that it must not keep."""
    if remote is None:
        return list(contents), []
    sent = [name for name, content in contents.items() if remote.lacks(name, content)]
    return sent, sorted(name for name in remote.files if name not in contents and STALE.fullmatch(name))


def _holds(remote: Remote, contents: Mapping[str, Content]) -> bool:
    return _difference(remote, contents) == ([], [])


def _message(passed: Verified) -> str:
    return f"Add {passed.record.name} as bit-convert {convert.__version__} verified it"


def _send(
    hub: Hub,
    remote: Remote | None,
    contents: dict[str, Content],
    message: str,
    create_pr: bool,
    plan: Publication,
    progress: Progress,
) -> Publication:
    from huggingface_hub import CommitOperationDelete

    if remote is None:
        progress(f"making {hub.repository}", 0, 0)
        hub.create(plan.private)
        remote = hub.look()
        if remote is None:
            raise CheckpointError(f"{hub.repository} was made and cannot be found; push again")
        plan.sent, plan.deleted = _difference(remote, contents)
    progress(f"sending {len(plan.sent)} files to {hub.repository}", 0, 0)
    operations = hub.upload({name: contents[name] for name in plan.sent}, create_pr)
    deletions = [CommitOperationDelete(name, is_folder=False) for name in plan.deleted]
    head = remote.head
    commit = hub.commit([*operations, *deletions], message, head, create_pr, lambda it: _holds(it, contents))
    progress("comparing the hashes on the Hub", 0, 0)
    try:
        arrived = hub.at(commit.revision)
    except CheckpointError as error:
        raise CheckpointError(
            f"{commit.oid} was pushed, but its hashes could not be compared: {error}; push again, which compares them"
        ) from None
    sent, deleted = _difference(arrived, contents)
    if wrong := [*sent, *deleted]:
        raise VerificationError(
            f"{hub.repository} holds another {wrong[0]} at {commit.oid} than was verified; take that commit back",
            [f"{name} is not what was verified" for name in wrong],
        )
    plan.state, plan.commit, plan.pull_request = "pushed", commit.oid, commit.pull_request
    return plan
