"""From what a user names to a file: a path, seeded weights, or a published checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from bit.config import PUBLISHED, BitConfig
from convert.errors import CheckpointError, did_you_mean
from convert.published import catalogue
from convert.sources import synthetic

SYNTHETIC = {f"Synthetic-{architecture}": architecture for architecture in (*PUBLISHED, "R14x1")}
"""Names of seeded checkpoints, for which outputs are recorded, with their architectures."""


WEIGHTS = (".npz", ".h5", ".bin", ".pth", ".pt", ".tar")
"""Endings of weights on the Hub, where there are no safetensors."""
HUB = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


def hub_name(checkpoint: str) -> str | None:
    """What a repository on the Hub is called, without its owner; None for anything else."""
    match = HUB.fullmatch(checkpoint)
    return match["repository"].split("/")[1] if match is not None else None


def user_path(path: str | Path) -> Path:
    """A path as a user writes it, `~` included. Raises `CheckpointError` for the home of nobody."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {error}") from None


def locate(checkpoint: str, folder: Path, progress: Callable[[str, int, int], None], mirror: str | None = None) -> Path:
    """The path of `checkpoint`. What it names is made or fetched into `folder` unless it is there.

    `checkpoint` is a path, `Synthetic-R50x1` and the like, a name in `zoo.published`, which is
    fetched from Google's bucket or from `mirror`, or `hf:owner/name`, with `@` and a branch, tag or
    commit if it is not the main one. Raises `CheckpointError` for anything else, and for a fetched
    file that was changed since.
    """
    path = user_path(checkpoint)
    if checkpoint and path.exists():
        return path
    if (match := HUB.fullmatch(checkpoint)) is not None:
        return _from_hub(match["repository"], match["revision"], progress)
    if checkpoint in SYNTHETIC:
        kept = folder / f"{checkpoint}.npz"
        if not kept.exists():
            progress("generating seeded weights", 0, 0)
            synthetic.write_npz(kept, BitConfig.from_architecture(SYNTHETIC[checkpoint]))
        return kept
    known = catalogue.published()
    if checkpoint in known:
        from convert.sources.download import download

        address = known[checkpoint].address
        kept = folder / Path(address).name
        download(f"{(mirror or catalogue.BUCKET).rstrip('/')}/{address}", kept, progress)
        return kept
    hint = did_you_mean(checkpoint, (*known, *SYNTHETIC))
    raise CheckpointError(f"there is no file {checkpoint!r}, and no published checkpoint of that name{hint}")


def _from_hub(repository: str, revision: str | None, progress: Callable[[str, int, int], None]) -> Path:
    """The folder in huggingface_hub's cache that holds a repository's configuration and weights."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import httpx, logging  # type: ignore[attr-defined, unused-ignore]

    # What it tries again is no concern, what comes of it is.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    progress(f"fetching {repository}", 0, 0)
    try:
        names = HfApi().list_repo_files(repository, revision=revision)
        weights = [name for name in names if name.endswith(".safetensors")]
        weights = weights or [name for name in names if name.endswith(WEIGHTS)]
        wanted = [name for name in (*weights, *names) if name in weights or name.endswith(".json")]
        top = [name for name in dict.fromkeys(wanted) if "/" not in name]
        return Path(snapshot_download(repository, revision=revision, allow_patterns=top))
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"hf:{repository} could not be fetched: {reason}") from None
