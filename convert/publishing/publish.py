"""Publish a verified folder on the Hugging Face Hub: one commit with exactly these files, or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bit import __version__
from convert.checkpoints.manifest import SIGNATURE_NAME, is_own_card
from convert.errors import HubError, UsageError, VerificationError
from convert.files.base import File
from convert.progress import Progress, silent
from convert.publishing.card import card
from convert.publishing.gate import CARD_NAME, Content, Gate, VerifiedFolder, check_folder
from convert.publishing.repository import ATTEMPTS, Hub, HubUnavailableError, Remote, check_name
from convert.publishing.signature import check_covered, check_signed_files, new_card, sign_verified
from convert.references.recordings import SHIPPED
from convert.signing.bundle import NOT_SIGNED
from convert.signing.signers import KeySigner, Signer, Trust
from convert.sources.redaction import without_credentials

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PLANNED, IDENTICAL, PUSHED = "planned", "identical", "pushed"
"""The values of `Publication.state`."""


@dataclass(frozen=True)
class PublishOptions:
    """The options of `publish`."""

    private: bool = False
    """Create a new repository as a private one."""
    create_pr: bool = False
    """Open a pull request instead of changing the branch."""
    revision: str | None = None
    """The branch; None for the main one."""
    message: str | None = None
    """The message of the commit."""
    extra: Mapping[str, bytes] = field(default_factory=dict)
    """More files, by name. A `README.md` replaces the model card."""
    dry_run: bool = False
    """Send and sign nothing. Without a token or network the repository is not asked."""
    signer: Signer | None = None
    """Sign the folder and the card before they are sent."""
    trust: Trust | None = None
    """Refuse a folder that this signer has not signed."""
    reverify: bool = True
    """Repeat the quick verification before anything is signed or sent."""
    source: Path | None = None
    """The checkpoint that was converted, if it was moved."""
    source_ws_eps: float | None = None
    """The epsilon that it was trained with, if the manifest does not state it."""
    recordings: tuple[Path, ...] = (SHIPPED,)
    """Folders of the recordings that the folder was compared with."""

    @property
    def gate(self) -> Gate:
        return Gate(self.reverify, self.source, self.recordings, self.source_ws_eps)


@dataclass(frozen=True)
class Publication:
    """The files that were published, or would be."""

    repository: str
    url: str
    files: Mapping[str, File]
    """Size and SHA-256 of every file of ours that the repository holds then, by name."""
    card: str
    """The text of `README.md`; empty for a folder that was signed without one."""
    private: bool
    state: str = PLANNED
    """`planned`: a dry run; `identical`: the repository holds all files already; `pushed`."""
    creates: bool = False
    """True if the repository did not exist before."""
    commit: str | None = None
    """The commit that holds the files; None in a dry run."""
    pull_request: str | None = None
    """Address of the pull request that holds the files."""
    sent: tuple[str, ...] = ()
    """Files that the repository did not hold before."""
    deleted: tuple[str, ...] = ()
    """Files of an earlier commit that are deleted."""
    reverified: bool = False
    """True if the quick verification was repeated before, and passed."""
    not_asked: str | None = None
    """The reason why a dry run could not ask the Hub, so that `creates`, `sent` and `deleted` are not known."""


def publish(
    folder: Path,
    repository: str,
    options: PublishOptions = PublishOptions(),
    progress: Progress = silent,
    api: HfApi | None = None,
) -> Publication:
    """Make a branch of `repository` hold the converted and verified `folder`, by one commit.

    A missing repository is created; one that holds all files already is left alone; a model card is
    added unless there is one, or the folder was signed without. `api` is huggingface_hub's client, by
    default with the stored token.

    Raises `VerificationError` if the folder is not exactly as verified (before any request) or if the
    Hub's hashes differ afterwards; `UsageError` for options that do not fit; `HubError` for anything
    else that prevents the commit: the branch is then unchanged; `CheckpointError` if the folder is not
    a conversion.
    """
    check_name(repository)
    if options.signer is not None and not options.dry_run:
        if "/" not in repository:
            raise UsageError(f"a signed card names the repository in full: give it as owner/{repository}")
        sign_verified(folder, options.signer, repository, progress, options.gate)
        verified = check_folder(folder, progress, replace(options.gate, reverify=False))
    else:
        verified = check_folder(folder, progress, options.gate)
    if options.signer is None:
        check_covered(folder, verified)
    if options.trust is not None:
        check_signed_files(folder, verified, options.trust, progress)
    try:
        hub = Hub.connect(repository, options.revision, options.create_pr, api, 1 if options.dry_run else ATTEMPTS)
        contents = _contents(verified, options, hub.repository)
        remote = hub.look()
        planned = _plan(hub, remote, contents, options)
    except HubUnavailableError as error:
        if not options.dry_run:
            raise
        contents = _contents(verified, options, repository)
        planned = _publication(repository, api, contents, private=options.private, not_asked=str(error))
    planned = replace(planned, reverified=options.reverify)
    if options.dry_run or planned.state == IDENTICAL:
        return planned
    message = options.message or f"Add {verified.manifest.name}, verified by bit-convert {__version__}"
    return _push(hub, remote, contents, planned, message, progress)


def _contents(verified: VerifiedFolder, options: PublishOptions, repository: str) -> dict[str, Content]:
    """Return every file to publish.

    Raises `UsageError` if an extra file would replace a verified one, or be added to a signed folder.
    """
    more = dict(options.extra)
    signed = SIGNATURE_NAME in verified.files
    if signed and more:
        raise UsageError(f"the folder is signed without {min(more)}: put the file there and sign again")
    signer = options.signer if options.dry_run and isinstance(options.signer, KeySigner) else None
    if signer is not None and (text := new_card(verified, signer.trust, repository)) is not None:
        return {**verified.files, CARD_NAME: Content.of(text)}
    own = CARD_NAME in verified.files and is_own_card(verified.files[CARD_NAME].read())
    files = {name: content for name, content in verified.files.items() if not own or signed or name != CARD_NAME}
    if not signed and CARD_NAME not in files and CARD_NAME not in more:
        more[CARD_NAME] = card(verified.manifest, verified.verification, repository, checked=verified.checked).encode()
    if taken := set(more) & set(files):
        raise UsageError(f"the extra file {min(taken)} would replace a file of the folder; give it another name")
    return {**files, **{name: Content.of(data) for name, data in more.items()}}


def _publication(repository: str, api: HfApi | None, contents: Mapping[str, Content], **facts: Any) -> Publication:
    from huggingface_hub import HfApi

    return Publication(
        repository,
        f"{without_credentials((api or HfApi()).endpoint)}/{repository}",
        {name: File(content.size, content.sha256) for name, content in contents.items()},
        contents[CARD_NAME].read().decode("utf-8", "replace") if CARD_NAME in contents else "",
        **facts,
    )


def _plan(hub: Hub, remote: Remote | None, contents: Mapping[str, Content], options: PublishOptions) -> Publication:
    """Compare the repository with the files.

    Raises `HubError` if it does not exist and cannot be created, `UsageError` if it is public and should be private,
    or if it would hold files that a signature does not cover.
    """
    if remote is None and (options.create_pr or hub.revision is not None):
        purpose = "a pull request" if options.create_pr else f"the branch {hub.revision}"
        raise HubError(f"{hub.account} can see no repository {hub.repository}, needed for {purpose}; create it first")
    if remote is not None and options.private and not remote.private:
        raise UsageError(f"{hub.repository} exists and is public; make it private there, or leave --private out")
    seen = remote or Remote("", options.private, {})
    sent, deleted = seen.difference(contents)
    if SIGNATURE_NAME in contents:
        others = sorted(seen.files.keys() - contents.keys() - set(deleted) - set(NOT_SIGNED))
        if others:
            raise UsageError(
                f"{hub.repository} holds {others[0]}, which the signature does not cover, so that a clone would not "
                "pass: delete it there, or sign a folder that holds it"
            )
    facts: dict[str, Any] = {"private": seen.private, "creates": remote is None, "sent": sent, "deleted": deleted}
    if not sent and not deleted:
        facts |= {"state": IDENTICAL, "commit": seen.head}
    elif options.create_pr and (found := hub.pull_request(contents)) is not None:
        facts |= {"state": IDENTICAL, "commit": found.oid, "pull_request": found.pull_request}
    return _publication(hub.repository, hub.api, contents, **facts)


def _push(
    hub: Hub,
    remote: Remote | None,
    contents: Mapping[str, Content],
    planned: Publication,
    message: str,
    progress: Progress,
) -> Publication:
    """Make the commit, and compare the hashes on the Hub with those of the files."""
    if remote is None:
        progress(f"creating {hub.repository}", 0, 0)
        hub = hub.create(planned.private)
        remote = hub.look()
        if remote is None:
            raise HubError(f"{hub.repository} was created but cannot be found; push again")
    sent, deleted = remote.difference(contents)
    progress(f"sending {len(sent)} files to {hub.repository}", 0, 0)
    uploaded = hub.upload({name: contents[name] for name in sent})
    commit = hub.commit(uploaded, deleted, message, remote.head, contents)
    progress("comparing the hashes on the Hub", 0, 0)
    try:
        wrong = [name for names in hub.at(commit.revision).difference(contents) for name in names]
    except HubError as error:
        raise HubError(
            f"commit {commit.oid} was pushed, but the hashes could not be compared: {error}; push again to compare them"
        ) from None
    if wrong:
        raise VerificationError(
            f"{hub.repository} holds another {wrong[0]} in commit {commit.oid} than was verified; revert that commit",
            [f"{name} differs from the verified file" for name in wrong],
        )
    done = replace(planned, state=PUSHED, commit=commit.oid, pull_request=commit.pull_request)
    return replace(done, repository=hub.repository, url=hub.url, sent=sent, deleted=deleted)
