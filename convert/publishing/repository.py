"""One repository on the Hugging Face Hub: read what it holds, create it, and commit to it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import convert
from convert.errors import ConvertError, HubError, UsageError
from convert.publishing.gate import Content
from convert.publishing.permissions import SETTINGS, check_permission
from convert.sources.hub_client import http_library, is_ignored, limit_silence, quiet_hub

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.hf_api import RepoFile

T = TypeVar("T")

BUSY = (408, 429, 500, 502, 503, 504)
"""HTTP statuses after which another attempt may succeed."""
ATTEMPTS = 4
"""Attempts at a request before it has failed; 1, 2 and 4 seconds lie between them."""
SILENCE = 300.0
"""Seconds without a byte after which an attempt has failed."""


class HubUnavailableError(HubError):
    """No token, or no answer from the Hub."""


@dataclass(frozen=True)
class Remote:
    """The files of a branch or commit."""

    head: str
    private: bool
    files: Mapping[str, RepoFile]

    def lacks(self, name: str, content: Content) -> bool:
        """Whether it has no file of that name with these bytes."""
        file = self.files.get(name)
        if file is None or file.size != content.size:
            return True
        return file.lfs.sha256 != content.sha256 if file.lfs is not None else file.blob_id != content.git_oid()


@dataclass(frozen=True)
class Commit:
    oid: str
    """Name of the commit; the branch of a pull request that was open before."""
    revision: str
    """Name under which the files can be read: the commit, or the branch of a pull request."""
    pull_request: str | None = None
    """Address of the pull request."""


def check_name(repository: str) -> None:
    """Raise `UsageError` unless `repository` is a valid name on the Hub."""
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # exported on access

    try:
        validate_repo_id(repository)
    except ValueError:
        raise UsageError(f"invalid repository name {repository!r}; use owner/name") from None


@dataclass(frozen=True)
class Hub:
    """A repository, seen with one token; made by `Hub.connect`.

    Every method raises `HubError`, without the token in the message; `HubUnavailableError` if the
    Hub does not answer.
    """

    api: HfApi
    token: str = field(repr=False)
    repository: str
    """`owner/name`."""
    revision: str | None
    """The branch; None for the main one."""
    attempts: int = ATTEMPTS
    account: str = ""
    created: bool = False
    """Whether the repository was created a moment ago."""

    @classmethod
    def connect(cls, repository: str, revision: str | None, create_pr: bool, api: HfApi | None, attempts: int) -> Hub:
        """Ask the Hub who owns the token, and check that it may write there or open a pull request.

        A `repository` without owner belongs to the account of the token. `api` is huggingface_hub's
        client; by default one with the stored token or that of the environment.
        """
        import huggingface_hub

        quiet_hub()
        token = api.token if api is not None else huggingface_hub.get_token()
        if not isinstance(token, str) or not token:
            raise HubUnavailableError(f"no token: create one at {SETTINGS}, then run hf auth login or set HF_TOKEN")
        api = api or huggingface_hub.HfApi(token=token, library_name="bit-convert", library_version=convert.__version__)
        hub = cls(api, token, repository, revision, attempts)
        account, name = check_permission(hub._ask(api.whoami, "who owns the token"), repository, create_pr)
        return replace(hub, account=account, repository=name)

    @property
    def url(self) -> str:
        return f"{self.api.endpoint}/{self.repository}"

    def look(self) -> Remote | None:
        """Return what the branch holds now; None if there is no such repository."""
        from huggingface_hub import errors

        name = self.repository

        def read() -> Remote | None:
            try:
                about = self.api.model_info(name, revision=self.revision)
                if getattr(about, "disabled", None):
                    raise HubError(f"{name} is disabled on the Hub; nothing can be pushed to it")
                return Remote(about.sha or "", bool(about.private), self._files(about.sha or "main"))
            except errors.GatedRepoError:
                raise HubError(f"{name} is gated and {self.account} has no access; request it on {self.url}") from None
            except errors.DisabledRepoError:
                raise HubError(f"{name} is disabled on the Hub; nothing can be pushed to it") from None
            except errors.RevisionNotFoundError:
                raise HubError(f"{name} has no branch {self.revision}; create it on the Hub first") from None
            except errors.RepositoryNotFoundError:
                return None

        return self._ask(read, f"what {name} holds")

    def at(self, revision: str) -> Remote:
        """Return what a commit or branch holds."""
        return self._ask(lambda: Remote(revision, False, self._files(revision)), f"what {revision} holds")

    def create(self, private: bool) -> Hub:
        """Create the repository unless it exists, and return the hub of it."""
        make = self.api.create_repo
        url = self._ask(
            lambda: make(self.repository, private=private, exist_ok=True), f"for a new repository {self.repository}"
        )
        return replace(self, repository=url.repo_id, created=True)

    def upload(self, contents: Mapping[str, Content], create_pr: bool) -> list[CommitOperationAdd]:
        """Send the files that go to the large file storage, where they are invisible until a commit names them.

        Raises `HubError` also if a file changed while it was read, or is excluded by `.gitignore`.
        """
        from huggingface_hub import CommitOperationAdd

        operations = [CommitOperationAdd(name, content.data) for name, content in contents.items()]
        once = replace(self, attempts=1)  # preupload_lfs_files itself repeats requests
        once._ask(
            lambda: self.api.preupload_lfs_files(
                self.repository, operations, revision=self.revision, create_pr=create_pr, free_memory=False
            ),
            f"to take files for {self.repository}",
            sends=True,
        )
        for operation in operations:
            name = operation.path_in_repo
            if is_ignored(operation):
                raise HubError(f"the .gitignore of {self.repository} excludes {name}; change that first; {self._state}")
            if operation.upload_info.sha256.hex() != contents[name].sha256:
                raise HubError(f"{name} changed while it was sent; verify it again; {self._state}")
        return operations

    def commit(
        self,
        uploaded: Iterable[CommitOperationAdd],
        deleted: Iterable[str],
        message: str,
        parent: str,
        create_pr: bool,
        arrived: Callable[[Remote], bool],
    ) -> Commit:
        """Make one commit on top of `parent` with the `uploaded` files and without the `deleted` ones, or none.

        After every failure the branch is read before anything else is done: if `arrived` recognizes
        the commit there, only the answer was lost.
        """
        from huggingface_hub import CommitOperationDelete

        deletions = [CommitOperationDelete(name, is_folder=False) for name in deleted]
        task = f"to commit to {self.repository}"

        def attempt() -> Commit:
            try:
                made = self.api.create_commit(
                    self.repository,
                    [*uploaded, *deletions],
                    commit_message=message,
                    parent_commit=parent,
                    revision=self.revision,
                    create_pr=create_pr,
                )
                return Commit(made.oid, made.pr_revision or made.oid, made.pr_url)
            except Exception as error:
                found = self._arrived(arrived, create_pr, self._explained(error, task))
                if isinstance(found, Commit):
                    return found
                if _status(error) == 412 or (found != parent and not create_pr):
                    raise HubError(
                        f"{self.repository} was changed by someone else in the meantime; look at it, then push again"
                    ) from None
                raise

        return self._ask(attempt, task, sends=True)

    def pull_request(self, arrived: Callable[[Remote], bool]) -> Commit | None:
        """Return an open pull request of this account that `arrived` recognizes."""
        listed = self._ask(
            lambda: list(
                self.api.get_repo_discussions(
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

    @property
    def _state(self) -> str:
        return f"{self.repository} {'was created and is empty' if self.created else 'is unchanged'}"

    def _arrived(self, arrived: Callable[[Remote], bool], create_pr: bool, failure: HubError) -> Commit | str | None:
        """Return the commit if only the answer to it was lost, else the name of the head."""
        try:
            if create_pr:
                return self.pull_request(arrived)
            remote = self.look()
        except HubError as error:
            raise HubError(
                f"{failure}; it is not known whether the commit arrived ({error}): push again, nothing is sent twice"
            ) from None
        if remote is not None and arrived(remote):
            return Commit(remote.head, remote.head)
        return remote.head if remote is not None else None

    def _files(self, revision: str) -> dict[str, RepoFile]:
        from huggingface_hub.hf_api import RepoFile

        tree = self.api.list_repo_tree(self.repository, revision=revision, recursive=True)
        return {file.path: file for file in tree if isinstance(file, RepoFile)}

    def _ask(self, request: Callable[[], T], task: str, sends: bool = False) -> T:
        """Return the answer of the Hub; ask again after errors that may pass.

        Raises `HubError` for all that huggingface_hub raises; if the request `sends` something, the
        message says how it leaves the repository.
        """
        from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

        attempts = Retrying(
            stop=stop_after_attempt(self.attempts),
            wait=wait_exponential(),
            retry=retry_if_exception(_is_transient),
            before=lambda attempt: limit_silence(SILENCE),
            reraise=True,
        )
        try:
            return attempts(request)
        except ConvertError:
            raise
        except Exception as error:
            failure = self._explained(error, task)
            raise (type(failure)(f"{failure}; {self._state}") if sends else failure) from None

    def _explained(self, error: Exception, task: str) -> HubError:
        status, answer = _status(error), getattr(_cause(error), "server_message", None) or str(_cause(error))
        answer = " ".join(answer.split()).rstrip(".") or type(_cause(error)).__name__
        match status:
            case None if _is_transient(error):
                trouble = f"could not be reached ({answer}) when asked {task}; check the network"
            case None:
                trouble = f"could not be asked {task} ({answer})"
            case 401:
                trouble = f"does not know the token ({answer}); create one at {SETTINGS}"
            case 403:
                trouble = f"refused ({answer}) when asked {task}"
            case 429:
                trouble = f"got too many requests (429) when asked {task}; try again later"
            case _ if status in BUSY:
                trouble = f"is out of order ({status}) when asked {task}; try again later"
            case _:
                trouble = f"answered {status} ({answer}) when asked {task}"
        kind = HubUnavailableError if _is_transient(error) else HubError
        return kind(f"the Hub {trouble}".replace(self.token, "…"))


def _cause(error: BaseException) -> Any:
    """Return the error of the Hub or the network in an error of huggingface_hub that contains it."""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return _cause(error.__cause__)
    return error


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of the answer; None if there was no answer."""
    with contextlib.suppress(AttributeError):
        return int(_cause(error).response.status_code)
    return None


def _is_transient(error: BaseException) -> bool:
    """Return whether the Hub did not answer, or was too busy."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    no_answer = isinstance(_cause(error), (http_library().TransportError, OfflineModeIsEnabled))
    return no_answer or _status(error) in BUSY
