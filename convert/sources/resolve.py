"""Find the file that a user names: a path, seeded weights, a published checkpoint or a repository on the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from platformdirs import user_cache_path

from bit.config import PUBLISHED, BitConfig
from convert.errors import CheckpointError, DownloadError, did_you_mean
from convert.progress import Progress
from convert.published import catalogue
from convert.published.catalogue import find
from convert.sources import hub, synthetic

SYNTHETIC = {f"Synthetic-{architecture}": architecture for architecture in (*PUBLISHED, "R14x1")}
"""Architectures of the seeded checkpoints, by name; recordings exist for them."""

ACCEPTED = "a file or folder, a name that `bit list` prints, timm's name of one, Synthetic-R50x1 or hf:owner/name"
HUB = re.compile(r"(?P<prefix>hf:)?(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w./-]+))?")


def locate(checkpoint: str, folder: Path, progress: Progress, mirror: str | None = None, local: bool = True) -> Path:
    """Return the path of a checkpoint; generate or download it into `folder` if it is not there yet.

    `checkpoint` is one of

    - a path, unless `local` is False;
    - `Synthetic-R50x1` and the like, seeded weights;
    - a published checkpoint, by Google's name (`BiT-M-R50x1`) or timm's (`resnetv2_50x1_bit.goog_in21k`, with
      or without `timm/`), from Google's bucket or `mirror`;
    - `hf:owner/name`, or `owner/name` alone, with `@` and a branch, tag or commit other than the main branch.

    Raises `CheckpointError` for any other name and for a downloaded file that was changed since, and
    `DownloadError` for a checkpoint that cannot be fetched.
    """
    path = user_path(checkpoint)
    if local and checkpoint and path.exists():
        return path
    if checkpoint in SYNTHETIC:
        kept = folder / f"{checkpoint}.npz"
        if not kept.exists():
            progress("generating seeded weights", 0, 0)
            synthetic.write_npz(kept, BitConfig.from_architecture(SYNTHETIC[checkpoint]))
        return kept
    if (item := find(checkpoint)) is not None:
        from convert.sources.download import download

        kept = folder / Path(item.address).name
        download(f"{(mirror or catalogue.BUCKET).rstrip('/')}/{item.address}", kept, progress)
        return kept
    if (match := _on_hub(checkpoint)) is not None:
        try:
            return hub.fetch(match["repository"], match["revision"], progress)
        except DownloadError as error:
            missing = "" if match["prefix"] else f"there is no file {checkpoint!r}, and "
            raise DownloadError(f"{missing}{error}") from None
    published = [name for item in catalogue.published().values() for name in (item.name, item.timm_name) if name]
    hint = did_you_mean(checkpoint, (*published, *SYNTHETIC))
    raise CheckpointError(f"there is no file {checkpoint!r}, and it is not a known name{hint}; accepted are {ACCEPTED}")


def hub_name(checkpoint: str) -> str | None:
    """Return the name of a repository on the Hub, without the owner; None for anything else."""
    match = _on_hub(checkpoint)
    return match["repository"].split("/")[1] if match is not None else None


def fetch_repository(
    checkpoint: str, progress: Progress, choose: Callable[[Iterable[str]], list[str]] = hub.everything
) -> Path | None:
    """Fetch the files of a repository given as `hf:owner/name`, and return the folder; None for any other name.

    `choose` returns those to fetch, by default all. Raises `DownloadError` if the repository cannot be fetched, and
    `CheckpointError` for names of files that are not safe.
    """
    match = HUB.fullmatch(checkpoint)
    if match is None or not match["prefix"]:
        return None
    return hub.fetch(match["repository"], match["revision"], progress, choose)


def cache_folder() -> Path:
    """Return the cache folder: the environment variable BIT_CACHE, else the user's cache folder for `bit-convert`."""
    return user_path(os.environ.get("BIT_CACHE") or user_cache_path("bit-convert"))


def user_path(path: str | os.PathLike[str]) -> Path:
    """Expand `~` in a path. Raises `CheckpointError` for the home of an unknown user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _on_hub(checkpoint: str) -> re.Match[str] | None:
    """Match a repository on the Hub. A mistyped path, in an existing folder or with a file's extension, is not one."""
    match = HUB.fullmatch(checkpoint)
    if match is None or match["prefix"]:
        return match
    file = checkpoint.endswith((*hub.WEIGHTS, ".safetensors", ".keras", ".onnx", ".json"))
    local = file or user_path(checkpoint.split("/")[0]).exists()
    return None if local or find(checkpoint) is not None else match
