"""From what a user names to a file: a path, seeded weights, or a published checkpoint."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from bit.config import PUBLISHED, BitConfig
from convert import synthetic, zoo
from convert.download import download
from convert.errors import CheckpointError

SYNTHETIC = {f"Synthetic-{architecture}": architecture for architecture in (*PUBLISHED, "R14x1")}
"""Names of seeded checkpoints, for which outputs are recorded, with their architectures."""


def user_path(path: str | Path) -> Path:
    """A path as a user writes it, `~` included. Raises `CheckpointError` for the home of nobody."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {error}") from None


def locate(checkpoint: str, folder: Path, progress: Callable[[str, int, int], None], mirror: str | None = None) -> Path:
    """The path of `checkpoint`. What it names is made or fetched into `folder` unless it is there.

    `checkpoint` is a path, `Synthetic-R50x1` and the like, or a name in `zoo.published`, which is
    fetched from Google's bucket or from `mirror`. Raises `CheckpointError` for anything else.
    """
    path = user_path(checkpoint)
    if checkpoint and path.exists():
        return path
    kept = folder / f"{checkpoint}.npz"
    names = zoo.published()
    if checkpoint in SYNTHETIC:
        if not kept.exists():
            progress("generating seeded weights", 0, 0)
            synthetic.write_npz(kept, BitConfig.from_architecture(SYNTHETIC[checkpoint]))
        return kept
    if checkpoint in names:
        if not kept.exists():
            download(f"{(mirror or zoo.BUCKET).rstrip('/')}/{names[checkpoint]}", kept, progress)
        return kept
    known = {name.lower(): name for name in (*names, *SYNTHETIC)}
    near = difflib.get_close_matches(checkpoint.lower(), known, n=3)
    hint = f"; did you mean {' or '.join(known[name] for name in near)}?" if near else ""
    raise CheckpointError(f"there is no file {checkpoint!r}, and no published checkpoint of that name{hint}")
