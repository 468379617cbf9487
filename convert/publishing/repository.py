"""One repository on the Hugging Face Hub: read what it holds, create it, and commit to it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from json import JSONDecodeError
from typing import TYPE_CHECKING, Any, TypeVar

from bit import __version__
from convert.errors import ConvertError, HubError, UsageError, VerificationError
from convert.publishing.gate import Content
from convert.publishing.permissions import SETTINGS, check_permission
from convert.sources.hub import LARGEST_ANSWER, MOST_NAMES
from convert.sources.hub_client import COMMIT, http_library, is_ignored, is_in_commit, limited, quiet_hub
from convert.sources.limits import SLOWEST, AnswerError, Limits
from convert.sources.redaction import redacted, without_credentials

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.hf_api import RepoFile

T = TypeVar("T")

BUSY = (408, 429, 500, 502, 503, 504)
"""HTTP statuses after which another attempt may succeed."""
ATTEMPTS = 4
"""Attempts at a request before it has failed; 1, 2 and 4 seconds lie between them."""
PATIENCE = 30.0
"""Seconds after which a request that failed is not repeated."""
SILENCE, LONGEST_SILENCE = 20.0, 120.0
"""Seconds without a byte after which a look-up has failed, and a request that sends something."""
SECONDS = 60.0
"""Seconds for a request with all pages of the answer, beyond the silence; what is sent has `SLOWEST` in addition."""

LONGEST_TEXT = 1000
"""Characters of a name or an address."""
UNEXPECTED = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RecursionError, TypeError),
    *(JSONDecodeError, UnicodeError),
)
"""Errors that an invalid answer causes in huggingface_hub, such as a list in place of an object."""

STALE = re.compile(
    r"""
    [^/]+\.(safetensors|npz|h5|msgpack|keras|onnx|onnx\.data)
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

        def read() -> tuple[str, str]:
            whoami = api.whoami()
            if token in str(whoami):
                raise AnswerError("repeats the token in the answer")
            return check_permission(whoami, repository, create_pr)

        account, name = hub._ask(read, "who owns the token")
        return replace(hub, account=account, repository=name)

    @property
    def url(self) -> str:
        return f"{without_credentials(self.api.endpoint)}/{self.repository}"

    def look(self) -> Remote | None:
        """Return what the branch holds now; None if there is no such repository."""
        from huggingface_hub import errors

        name, disabled = self.repository, f"{self.repository} is disabled on the Hub; nothing can be pushed to it"

        def read() -> Remote | None:
            try:
                about = self.api.model_info(name, revision=self.revision)
                if getattr(about, "disabled", None):
                    raise HubError(disabled)
                return Remote(_commit(about.sha), bool(about.private), self._files(_commit(about.sha)))
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

        def create() -> None:
            url = self.api.create_repo(self.repository, private=private, exist_ok=True)
            if url.repo_id.lower() != self.repository.lower():
                raise AnswerError("created another repository than the one asked for")

        self._ask(create, f"for a new repository {self.repository}")
        return replace(self, created=True)

    def upload(self, contents: Mapping[str, Content]) -> list[CommitOperationAdd]:
        """Send the files that go to the large file storage, where they are invisible until a commit names them.

        Raises `HubError` also if a file changed while it was read, or is excluded by `.gitignore`.
        """
        from huggingface_hub import CommitOperationAdd

        operations = [CommitOperationAdd(name, content.data) for name, content in contents.items()]
        place: dict[str, Any] = {"revision": self.revision, "create_pr": self.create_pr}
        send = partial(self.api.preupload_lfs_files, self.repository, operations, **place, free_memory=False)
        once = replace(self, attempts=1)  # preupload_lfs_files itself repeats requests
        once._ask(send, f"to take files for {self.repository}", sends=sum(each.size for each in contents.values()))
        for operation in operations:
            name = operation.path_in_repo
            if is_ignored(operation):
                raise HubError(f"the .gitignore of {self.repository} excludes {name}; change that first; {self._state}")
            try:
                if operation.upload_info.sha256.hex() != contents[name].sha256 or not contents[name].unchanged:
                    raise VerificationError("the SHA-256 differs")
                if is_in_commit(operation, contents[name].size):
                    # Otherwise huggingface_hub reads the file again for the commit, and for each attempt at it.
                    operation.path_or_fileobj = contents[name].read()
            except VerificationError:
                raise HubError(f"{name} changed while it was sent; verify it again; {self._state}") from None
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
                return Commit(_commit(made.oid), made.pr_revision or made.oid, made.pr_url and self._text(made.pr_url))
            except Exception as error:
                found, head = self._arrived(contents, self._explained(error, task))
                if found is not None:
                    return found
                if _status(error) == 412 or (head != parent and not self.create_pr):
                    raise HubError(
                        f"{self.repository} was changed by someone else in the meantime; look at it, then push again"
                    ) from None
                raise

        return self._ask(attempt, task, sends=sum(content.size for content in contents.values()))

    def pull_request(self, contents: Mapping[str, Content]) -> Commit | None:
        """Return an open pull request of this account that holds `contents`."""
        task, read = f"for the pull requests of {self.repository}", self.api.get_repo_discussions
        kind: dict[str, Any] = {"discussion_type": "pull_request", "discussion_status": "open"}
        for each in self._ask(lambda: list(read(self.repository, author=self.account, **kind)), task):
            revision = f"refs/pr/{each.num}"
            if not any(self.at(revision).difference(contents)):
                return Commit(revision, revision, self._text(each.url))
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

        files: dict[str, RepoFile] = {}
        for file in self.api.list_repo_tree(self.repository, revision=revision, recursive=True):
            if isinstance(file, RepoFile):
                files[self._text(file.path)] = file
            if len(files) > MOST_NAMES:
                raise AnswerError(f"lists more than {MOST_NAMES} files")
        return files

    def _text(self, text: str) -> str:
        """Return a name or an address from the Hub. Raises `AnswerError` for one that must not be shown."""
        if not text.isprintable() or len(text) > LONGEST_TEXT or self.token in text:
            raise AnswerError("answers with an invalid name or address")
        return text

    def _ask(self, request: Callable[[], T], task: str, sends: int | None = None) -> T:
        """Return the answer of the Hub; ask again after errors that may pass.

        Raises `HubError` for all that huggingface_hub raises, which is anything for an invalid answer; if
        the request `sends` a number of bytes, the message says how it leaves the repository.
        """
        from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_exponential

        silence = SILENCE if sends is None else LONGEST_SILENCE
        seconds = silence + SECONDS + (sends or 0) / SLOWEST

        def attempt() -> T:
            with limited(Limits(silence, seconds, LARGEST_ANSWER, self.api.endpoint.startswith("https://"))):
                return request()

        attempts = Retrying(
            stop=stop_after_attempt(self.attempts) | stop_after_delay(PATIENCE),
            wait=wait_exponential(),
            retry=retry_if_exception(_is_transient),
            reraise=True,
        )
        try:
            return attempts(attempt)
        except ConvertError:
            raise
        except Exception as error:
            failure = self._explained(error, task)
            raise (failure if sends is None else type(failure)(f"{failure}; {self._state}")) from None

    def _explained(self, error: Exception, task: str) -> HubError:
        status, cause = _status(error), _cause(error)
        name = type(cause).__name__
        answer = redacted(getattr(cause, "server_message", None) or cause, [self.token]).rstrip(".") or name
        match status:
            case None if isinstance(cause, AnswerError):
                trouble = f"{answer} when asked {task}"
            case None if isinstance(cause, UNEXPECTED):
                trouble = f"does not answer as a Hub does when asked {task} ({name}); check HF_ENDPOINT"
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
        return kind(f"the Hub {trouble}")


def _commit(name: str | None) -> str:
    """Return the name of a commit. Raises `AnswerError` for anything else."""
    if not COMMIT.fullmatch(name or ""):
        raise AnswerError("answers with an invalid commit")
    return name or ""


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
