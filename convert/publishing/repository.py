"""One repository on the Hugging Face Hub: read what it holds, create it, and commit to it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from bit import __version__
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

STALE = re.compile(
    r"""
    [^/]+\.(safetensors|npz|h5|msgpack|onnx|onnx\.data)
    | [^/]+\.(safetensors|bin)\.index\.json
    | (open_clip_)?(pytorch_)?model([-_.][^/]*)?\.(bin|pth|pt|pth\.tar)
    | (config|preprocessor_config|conversion|verification)\.json | verification\.html
    | model\.sig | conversion\.intoto\.json
    """,
    re.VERBOSE,
)
"""Files of an earlier commit that a library could load together with the new weights, or instead of them: the
names that transformers (`utils/__init__.py`), timm (`models/_hub.py`) and this converter use. All others stay."""


class HubUnavailableError(HubError):
    """No token, or no answer from the Hub."""


@dataclass(frozen=True)
class Remote:
    """The files of a branch or commit."""

    head: str
    private: bool
    files: Mapping[str, RepoFile]

    def difference(self, contents: Mapping[str, Content]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names of the files that are missing or hold other bytes, and of those that must not stay."""
        missing = tuple(name for name, content in contents.items() if not self._holds(name, content))
        return missing, tuple(sorted(name for name in self.files if name not in contents and STALE.fullmatch(name)))

    def _holds(self, name: str, content: Content) -> bool:
        file = self.files.get(name)
        if file is None or file.size != content.size:
            return False
        return file.lfs.sha256 == content.sha256 if file.lfs is not None else file.blob_id == content.git_oid()


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
    create_pr: bool
    """Open a pull request instead of changing the branch."""
    attempts: int = ATTEMPTS
    account: str = ""
    created: bool = False
    """True if the repository was created a moment ago."""

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
        api = api or huggingface_hub.HfApi(token=token, library_name="bit-convert", library_version=__version__)
        hub = cls(api, token, repository, revision, create_pr, attempts)
        account, name = check_permission(hub._ask(api.whoami, "who owns the token"), repository, create_pr)
        return replace(hub, account=account, repository=name)

    @property
    def url(self) -> str:
        return f"{self.api.endpoint}/{self.repository}"

    def look(self) -> Remote | None:
        """Return what the branch holds now; None if there is no such repository."""
        from huggingface_hub import errors

        name, disabled = self.repository, f"{self.repository} is disabled on the Hub; nothing can be pushed to it"

        def read() -> Remote | None:
            try:
                about = self.api.model_info(name, revision=self.revision)
                if getattr(about, "disabled", None):
                    raise HubError(disabled)
                return Remote(about.sha or "", bool(about.private), self._files(about.sha or "main"))
            except errors.GatedRepoError:
                raise HubError(f"{name} is gated and {self.account} has no access; request it on {self.url}") from None
            except errors.DisabledRepoError:
                raise HubError(disabled) from None
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
        create = partial(self.api.create_repo, self.repository, private=private, exist_ok=True)
        url = self._ask(create, f"for a new repository {self.repository}")
        return replace(self, repository=url.repo_id, created=True)

    def upload(self, contents: Mapping[str, Content]) -> list[CommitOperationAdd]:
        """Send the files that go to the large file storage, where they are invisible until a commit names them.

        Raises `HubError` also if a file changed while it was read, or is excluded by `.gitignore`.
        """
        from huggingface_hub import CommitOperationAdd

        operations = [CommitOperationAdd(name, content.data) for name, content in contents.items()]
        place: dict[str, Any] = {"revision": self.revision, "create_pr": self.create_pr}
        send = partial(self.api.preupload_lfs_files, self.repository, operations, **place, free_memory=False)
        once = replace(self, attempts=1)  # preupload_lfs_files itself repeats requests
        once._ask(send, f"to take files for {self.repository}", sends=True)
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
        contents: Mapping[str, Content],
    ) -> Commit:
        """Make one commit on top of `parent` with the `uploaded` files and without the `deleted` ones, or none.

        After every failure the branch is read before anything else is done: if it holds `contents`,
        only the answer was lost.
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
                    create_pr=self.create_pr,
                )
                return Commit(made.oid, made.pr_revision or made.oid, made.pr_url)
            except Exception as error:
                found, head = self._arrived(contents, self._explained(error, task))
                if found is not None:
                    return found
                if _status(error) == 412 or (head != parent and not self.create_pr):
                    raise HubError(
                        f"{self.repository} was changed by someone else in the meantime; look at it, then push again"
                    ) from None
                raise

        return self._ask(attempt, task, sends=True)

    def pull_request(self, contents: Mapping[str, Content]) -> Commit | None:
        """Return an open pull request of this account that holds `contents`."""
        task, read = f"for the pull requests of {self.repository}", self.api.get_repo_discussions
        kind: dict[str, Any] = {"discussion_type": "pull_request", "discussion_status": "open"}
        for each in self._ask(lambda: list(read(self.repository, author=self.account, **kind)), task):
            revision = f"refs/pr/{each.num}"
            if not any(self.at(revision).difference(contents)):
                return Commit(revision, revision, each.url)
        return None

    @property
    def _state(self) -> str:
        return f"{self.repository} {'was created and is empty' if self.created else 'is unchanged'}"

    def _arrived(self, contents: Mapping[str, Content], failure: HubError) -> tuple[Commit | None, str | None]:
        """Return the commit if only the answer to it was lost, and the head of the branch if that was read."""
        try:
            if self.create_pr:
                return self.pull_request(contents), None
            remote = self.look()
        except HubError as error:
            raise HubError(
                f"{failure}; it is not known whether the commit arrived ({error}): push again, nothing is sent twice"
            ) from None
        if remote is None:
            return None, None
        commit = None if any(remote.difference(contents)) else Commit(remote.head, remote.head)
        return commit, remote.head

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
