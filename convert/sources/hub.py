"""Fetch a repository of the Hugging Face Hub; no answer of the Hub is believed before it is checked."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, urljoin

import msgspec

from convert.errors import CheckpointError, ConvertError, DownloadError
from convert.progress import Progress
from convert.sources.hub_client import COMMIT, http_library, limited, quiet_hub
from convert.sources.limits import SLOWEST, AnswerError, Limits
from convert.sources.redaction import redacted

T = TypeVar("T")

MANIFEST_NAME = "conversion.json"
"""The file in repositories of this program; `convert.checkpoints.manifest` describes it."""

WEIGHTS = (".npz", ".h5", ".bin", ".pth", ".pt", ".tar")
"""Extensions of weights on the Hub in repositories without safetensors."""
SILENCE = 10.0
"""Seconds without a byte after which the Hub does not answer."""
SECONDS = 60.0
"""Seconds for one answer; a file has `SLOWEST` in addition."""
ATTEMPTS, PATIENCE = 3, 3.0
"""Attempts at a look-up, and seconds after which none is begun: a machine without a network should fail at once."""
BUSY = (408, 429, 500, 502, 503, 504)
"""HTTP statuses after which another attempt may succeed."""
HIDDEN = (401, 403, 404)
"""HTTP statuses for a repository that does not exist, or that this account may not see."""
LARGEST_ANSWER = 8_000_000
"""Bytes of an answer in JSON; a page of the list of files has about 400 kB."""
MOST_NAMES = 100_000
"""Files in a repository."""
MOST_FILES = 1000
"""Files to fetch; the largest published models of any library have a few hundred shards."""
LARGEST_SETTINGS = 100_000_000
"""Bytes of a JSON file to fetch; a tokenizer has up to 30 MB."""
NAME = re.compile(r"\w[\w.+=,@() -]{0,199}", re.ASCII)
"""Name of a file to fetch; libraries use no others."""


class _Revision(msgspec.Struct):
    sha: Annotated[str, msgspec.Meta(pattern=rf"^{COMMIT.pattern}\Z")]


class _File(msgspec.Struct):
    """An entry in the Hub's list of files."""

    type: str
    path: str
    size: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] = 0


def wanted(names: Iterable[str]) -> list[str]:
    """Return the names of weights, safetensors if there are any, and of settings in JSON, at the top level."""
    names = [name for name in names if NAME.fullmatch(name)]
    weights = [name for name in names if name.endswith(".safetensors")]
    weights = weights or [name for name in names if name.endswith(WEIGHTS)]
    return weights + [name for name in names if name.endswith(".json")] if weights else []


def a_conversion(names: Iterable[str]) -> list[str]:
    """Return what is to be verified: every file beside a manifest at the top level, else the names of `wanted`."""
    names = [name for name in names if NAME.fullmatch(name)]
    return names if MANIFEST_NAME in names else wanted(names)


def everything(names: Iterable[str]) -> list[str]:
    """Return the names of all files but git's own. Raises `CheckpointError` for folders and odd names."""
    chosen = [name for name in names if name != ".gitattributes"]
    for name in chosen:
        if not NAME.fullmatch(name):
            kind = "folder" if name.endswith("/") else "file with the name"
            raise CheckpointError(f"the repository holds the {kind} {name[:100]!r}, which no signed folder has")
    return chosen


def fetch(
    repository: str,
    revision: str | None,
    progress: Progress,
    choose: Callable[[Iterable[str]], list[str]] = wanted,
) -> Path:
    """Return the folder in huggingface_hub's cache that holds the files of a repository that `choose` names.

    The commit, the list of files and their sizes are asked for and checked first; no file may be larger
    than listed. Raises `CheckpointError` if `choose` names none, and `DownloadError` for everything else.
    """
    from huggingface_hub import get_token
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined, unused-ignore]

    quiet_hub()
    progress(f"fetching {repository}", 0, 0)
    try:
        validate_repo_id(repository)
        commit = _commit(repository, revision)
        found = _files(repository, commit)
        sizes = {file.path: file.size for file in found if file.type == "file"}
        names = choose([*sizes, *(f"{file.path}/" for file in found if file.type != "file")])
        if not names:
            raise CheckpointError(f"hf:{repository} holds no file of weights ({', '.join(('.safetensors', *WEIGHTS))})")
        return _snapshot(repository, commit, {name: sizes[name] for name in names})
    except ConvertError:
        raise
    except Exception as error:  # huggingface_hub raises whatever an invalid answer leads it to
        reason = redacted(explained(error), [get_token() or ""])
        raise DownloadError(f"hf:{repository} could not be fetched: {reason}") from None


def explained(error: Exception) -> str:
    """Return why a request to the Hub failed, with the server's words, which may repeat the token."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return explained(error.__cause__)
    match error:
        case AnswerError():
            return f"the Hub {error}"
        case errors.HfHubHTTPError():
            status = error.response.status_code
            hint = "; check the name, and log in with hf auth login if it is private" if status in HIDDEN else ""
            return f"the Hub answers {status} ({_words(error)}){hint}"
        case _ if isinstance(error, http_library().HTTPError):
            return f"the Hub could not be reached ({_first_line(error).rstrip('.')}); check the network"
        case errors.FileMetadataError():
            trouble = "no metadata"
        case OSError() | errors.HFValidationError():
            return _first_line(error)
        case msgspec.ValidationError():
            trouble = _first_line(error)
        case _:
            trouble = type(error).__name__
    return f"the server does not answer as a Hub does ({trouble}); check HF_ENDPOINT and the network"


def _words(error: Any) -> str:
    return " ".join(str(error.server_message or _first_line(error)).split()).rstrip(".")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _commit(repository: str, revision: str | None) -> str:
    """Return the commit that a branch, tag or commit stands for."""
    about = f"/api/models/{repository}/revision/{quote(revision or 'main', safe='')}"
    commit = _ask(about, _Revision, _limits(SECONDS, LARGEST_ANSWER))[0].sha
    if COMMIT.fullmatch(revision or "") and commit != revision:
        raise AnswerError("answers with another commit than the one asked for")
    return commit


def _files(repository: str, commit: str) -> list[_File]:
    """Return the list of files at the top level of a commit."""
    files: list[_File] = []
    following: str | None = f"/api/models/{repository}/tree/{commit}"
    limits = _limits(SECONDS, LARGEST_ANSWER)
    while following is not None:
        page, following = _ask(following, list[_File], limits)
        files += page
        if len(files) > MOST_NAMES:
            raise AnswerError(f"lists more than {MOST_NAMES} files")
    return files


def _ask(address: str, answer: type[T], limits: Limits) -> tuple[T, str | None]:
    """Return the answer to a look-up, and the address of the next page; None if this is the last."""
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined, unused-ignore]  # exported on access
        build_hf_headers,
        get_session,
        hf_raise_for_status,
    )

    url = urljoin(f"{constants.ENDPOINT}/", address)

    def attempt() -> tuple[T, str | None]:
        with limited(limits):
            response = get_session().get(url, headers=build_hf_headers())
            hf_raise_for_status(response)
        following = response.links.get("next", {}).get("url")
        if following is not None and not following.startswith(f"{constants.ENDPOINT}/"):
            raise AnswerError("continues the list of files at another address")
        return msgspec.json.decode(response.content, type=answer), following

    return _retried(attempt)


def _retried(attempt: Callable[[], T]) -> T:
    """Return what the attempt returns; repeat it after errors that may pass."""
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_exponential

    retry, wait = retry_if_exception(_is_transient), wait_exponential(0.5)
    stop = stop_after_attempt(ATTEMPTS) | stop_after_delay(PATIENCE)
    return Retrying(stop=stop, wait=wait, retry=retry, reraise=True)(attempt)


def _is_transient(error: BaseException) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(error, http_library().TransportError) or status in BUSY


def _snapshot(repository: str, commit: str, sizes: dict[str, int]) -> Path:
    """Fetch files of a commit into huggingface_hub's cache, and return their folder."""
    from huggingface_hub import constants, hf_hub_download

    large = [name for name, size in sizes.items() if name.endswith(".json") and size > LARGEST_SETTINGS]
    if large or len(sizes) > MOST_FILES:
        trouble = f"{large[0]} of {sizes[large[0]] / 1e6:.0f} MB" if large else f"{len(sizes)} files"
        raise AnswerError(f"lists {trouble}, more than is fetched")
    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    present = cache / f"models--{repository.replace('/', '--')}" / "snapshots" / commit
    missing = sum(size for name, size in sizes.items() if not (present / name).exists())
    if missing > (available := shutil.disk_usage(cache).free):
        raise AnswerError(f"lists {missing / 1e9:.2f} GB, but {available / 1e9:.2f} GB are available in {cache}")
    for name, size in sizes.items():
        with limited(_limits(SECONDS + size / SLOWEST, size)):
            path = Path(_retried(partial(hf_hub_download, repository, name, revision=commit)))
        if path.parent.name != commit or path.stat().st_size != size:
            raise AnswerError(f"sends another {name} than it lists; delete {path} and fetch it again")
    return path.parent


def _limits(seconds: float, size: float) -> Limits:
    from huggingface_hub import constants

    return Limits(SILENCE, seconds, size, constants.ENDPOINT.startswith("https://"))
