"""One repository on the Hugging Face Hub: who may write to it, what it holds, and one commit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from convert.errors import CheckpointError
from convert.publishing.gate import Content
from convert.publishing.permissions import SETTINGS, check_permission

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.hf_api import RepoFile

T = TypeVar("T")

PAUSES = (1.0, 2.0, 4.0)
"""Seconds to wait before asking once more what the Hub could not answer."""
BUSY = (408, 429, 500, 502, 503, 504)
"""Statuses that another attempt may change."""
SILENCE = 300.0
"""Seconds without a byte after which a request has failed; huggingface_hub itself would wait for ever."""


@dataclass(frozen=True)
class Remote:
    """What a branch holds."""

    head: str
    private: bool
    files: dict[str, RepoFile]

    def lacks(self, name: str, content: Content) -> bool:
        """Whether it has no file of that name with these bytes."""
        file = self.files.get(name)
        if file is None or file.size != content.size:
            return True
        return file.lfs.sha256 != content.sha256 if file.lfs is not None else file.blob_id != content.git_oid()


@dataclass(frozen=True)
class Commit:
    oid: str
    """Its name; the branch's, of a pull request that was open already."""
    revision: str
    """Where its files can be read: the commit itself, or the branch of a pull request."""
    pull_request: str | None = None
    """The address of the pull request that it opened."""


class Hub:
    """A repository seen with one token. Every method raises `CheckpointError`, without the token in it.

    `repository` is `owner/name`, or a name of the token's own account; `revision` a branch, else
    the main one. `api` is huggingface_hub's client; by default with its stored token or that of the
    environment.
    """

    def __init__(self, repository: str, revision: str | None = None, api: HfApi | None = None) -> None:
        import huggingface_hub
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # exported on access
            disable_progress_bars,
            logging,
            validate_repo_id,
        )

        import convert

        # What it tries again is no concern, what comes of it is.
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        disable_progress_bars()
        try:
            validate_repo_id(repository)
        except ValueError:
            raise CheckpointError(f"{repository!r} is no name of a repository; owner/name is one") from None
        token = api.token if api is not None else huggingface_hub.get_token()
        if not isinstance(token, str) or not token:
            raise CheckpointError(f"there is no token: make one at {SETTINGS}, then hf auth login, or set HF_TOKEN")
        self.repository, self.revision = repository, revision
        self._token = token
        self._api = api or huggingface_hub.HfApi(
            token=token, library_name="bit-convert", library_version=convert.__version__
        )
        self._made = False
        self.account = ""

    def check_permission(self, create_pr: bool) -> None:
        """Ask whose token it is. Raises `CheckpointError` unless it may write there, or open a pull request."""
        whoami = self._ask(self._api.whoami, "who the token belongs to")
        self.account, self.repository = check_permission(whoami, self.repository, create_pr)

    def look(self) -> Remote | None:
        """What the branch holds now; None where there is no such repository."""
        from huggingface_hub.errors import DisabledRepoError, GatedRepoError, RepositoryNotFoundError
        from huggingface_hub.errors import RevisionNotFoundError as NoRevision

        name = self.repository

        def seen() -> Remote | None:
            try:
                about = self._api.model_info(name, revision=self.revision)
                if getattr(about, "disabled", None):
                    raise CheckpointError(f"{name} is disabled on the Hub, so nothing can be pushed to it")
                return Remote(about.sha or "", bool(about.private), self._files(about.sha or "main"))
            except GatedRepoError:
                raise CheckpointError(
                    f"{name} is gated, and {self.account} was not let in; ask for access on its page"
                ) from None
            except DisabledRepoError:
                raise CheckpointError(f"{name} is disabled on the Hub, so nothing can be pushed to it") from None
            except NoRevision:
                raise CheckpointError(f"{name} has no branch {self.revision}; make it on the Hub first") from None
            except RepositoryNotFoundError:
                return None

        return self._ask(seen, f"what {name} holds")

    def at(self, revision: str) -> Remote:
        """What a commit or a branch holds."""
        return self._ask(lambda: Remote(revision, False, self._files(revision)), f"what {revision} holds")

    def create(self, private: bool) -> None:
        """Make the repository; one that exists meanwhile is no error."""
        make = self._api.create_repo
        url = self._ask(
            lambda: make(self.repository, private=private, exist_ok=True), f"for a new repository {self.repository}"
        )
        self.repository, self._made = url.repo_id, True

    def upload(self, contents: Mapping[str, Content], create_pr: bool) -> list[CommitOperationAdd]:
        """Send what goes to the large file storage, where it is invisible until a commit names it.

        Raises `CheckpointError` too if a file changed while it was read.
        """
        from huggingface_hub import CommitOperationAdd

        with self._untouched():
            operations = [CommitOperationAdd(name, content.data) for name, content in contents.items()]
            self._ask(
                lambda: self._api.preupload_lfs_files(
                    self.repository, operations, revision=self.revision, create_pr=create_pr, free_memory=False
                ),
                f"to take files for {self.repository}",
                pauses=(),  # it tries again by itself
            )
            for operation in operations:
                name = operation.path_in_repo
                if operation._should_ignore:
                    raise CheckpointError(f"the .gitignore of {self.repository} keeps {name} out; change that first")
                if operation._upload_mode == "lfs" and operation.upload_info.sha256.hex() != contents[name].sha256:
                    raise CheckpointError(f"{name} changed while it was sent; verify it again")
        return operations

    def commit(
        self,
        operations: Iterable[CommitOperationAdd | CommitOperationDelete],
        message: str,
        parent: str,
        create_pr: bool,
        arrived: Callable[[Remote], bool],
    ) -> Commit:
        """One commit on top of `parent`, or none.

        Whatever goes wrong, the branch is looked at before anything else is done: where `arrived`
        finds the commit there, only its answer was lost.
        """
        failure: CheckpointError
        operations = list(operations)
        for pause in (*PAUSES, None):
            try:
                _limit_silence()
                made = self._api.create_commit(
                    self.repository,
                    operations,
                    commit_message=message,
                    parent_commit=parent,
                    revision=self.revision,
                    create_pr=create_pr,
                )
                return Commit(made.oid, made.pr_revision or made.oid, made.pr_url)
            except Exception as error:
                failure, again = self._explained(error, f"to commit to {self.repository}"), _transient(error)
                moved = _status(error) == 412
            found = self._arrived(arrived, create_pr, failure)
            if isinstance(found, Commit):
                return found
            if moved or (found != parent and not create_pr):
                raise CheckpointError(f"{self.repository} was changed by someone else meanwhile; look, then push again")
            if not again or pause is None:
                break
            time.sleep(pause)
        with self._untouched():
            raise failure

    def pull_request(self, arrived: Callable[[Remote], bool]) -> Commit | None:
        """An open pull request of this account that holds what `arrived` looks for."""
        listed = self._ask(
            lambda: list(
                self._api.get_repo_discussions(
                    self.repository, author=self.account, discussion_type="pull_request", discussion_status="open"
                )
            ),
            f"for the pull requests of {self.repository}",
        )
        for each in listed:
            revision = f"refs/pr/{each.num}"
            if arrived(self.at(revision)):
                return Commit(revision, revision, each.url)
        return None

    def url(self) -> str:
        return f"{self._api.endpoint}/{self.repository}"

    @contextlib.contextmanager
    def _untouched(self) -> Iterator[None]:
        """Say in an error how it leaves the repository."""
        try:
            yield
        except CheckpointError as error:
            state = "was made, and is empty" if self._made else "is as it was"
            raise CheckpointError(f"{error}; {self.repository} {state}") from None

    def _arrived(
        self, arrived: Callable[[Remote], bool], create_pr: bool, failure: CheckpointError
    ) -> Commit | str | None:
        """The commit whose answer was lost, else the head as it is."""
        try:
            if create_pr:
                return self.pull_request(arrived)
            remote = self.look()
        except CheckpointError as error:
            raise CheckpointError(
                f"{failure}; whether the commit arrived is not known ({error}): push again, which sends nothing twice"
            ) from None
        if remote is not None and arrived(remote):
            return Commit(remote.head, remote.head)
        return remote.head if remote is not None else None

    def _files(self, revision: str) -> dict[str, RepoFile]:
        from huggingface_hub.hf_api import RepoFile

        tree = self._api.list_repo_tree(self.repository, revision=revision, recursive=True)
        return {file.path: file for file in tree if isinstance(file, RepoFile)}

    def _ask(self, question: Callable[[], T], what: str, pauses: tuple[float, ...] | None = None) -> T:
        """The Hub's answer. Raises `CheckpointError` for whatever its client raises."""
        for pause in (*(PAUSES if pauses is None else pauses), None):
            try:
                _limit_silence()
                return question()
            except CheckpointError:
                raise
            except Exception as error:
                if pause is None or not _transient(error):
                    raise self._explained(error, what) from None
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _explained(self, error: Exception, what: str) -> CheckpointError:
        error = _cause(error)
        status = _status(error)
        said = getattr(error, "server_message", None) or str(error)
        said = " ".join(said.split()).rstrip(".") or type(error).__name__
        match status:
            case None:
                trouble = "could not be reached" if _transient(error) else "that failed"
                text = f"the Hub was asked {what} and {trouble} ({said})"
            case 401:
                text = f"the Hub does not know the token ({said}); make one at {SETTINGS}"
            case 403:
                text = f"the Hub was asked {what} and forbids it ({said})"
            case 429:
                text = f"the Hub was asked {what} and has been asked too often (429); try again later"
            case _ if status in BUSY:
                text = f"the Hub was asked {what} and is not well ({status}); try again later"
            case _:
                text = f"the Hub was asked {what} and answers {status}: {said}"
        return CheckpointError(text.replace(self._token, "…"))


def _limit_silence() -> None:
    """Of the client that huggingface_hub has now; it takes another after a lost connection."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    hooks = get_session().event_hooks
    if _end_silence not in hooks["request"]:
        get_session().event_hooks = {**hooks, "request": [*hooks["request"], _end_silence]}


def _end_silence(request: Any) -> None:
    request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), SILENCE)


def _cause(error: BaseException) -> Any:
    """What the Hub answered, beneath what the client wrapped it in."""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return _cause(error.__cause__)
    return error


def _status(error: BaseException) -> int | None:
    """The HTTP status of an answer; None where there was none."""
    with contextlib.suppress(AttributeError):
        return int(_cause(error).response.status_code)
    return None


def _transient(error: BaseException) -> bool:
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    return _status(error) in BUSY or isinstance(_cause(error), httpx.TransportError)
