"""From what a user names to a file: a path, seeded weights, or a published checkpoint."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from bit.config import PUBLISHED, BitConfig
from convert import synthetic, zoo
from convert.download import download
from convert.errors import CheckpointError


def locate(checkpoint: str, folder: Path, progress: Callable[[str, int, int], None], mirror: str | None = None) -> Path:
    """The path of `checkpoint`. What it names is made or fetched into `folder` unless it is there.

    `checkpoint` is a path, `Synthetic-R50x1` and the like, or a name in `zoo.published`, which is
    fetched from Google's bucket or from `mirror`. Raises `CheckpointError` for anything else.
    """
    path = Path(checkpoint)
    if path.exists():
        return path
    kept = folder / f"{checkpoint}.npz"
    names = zoo.published()
    if checkpoint.startswith(synthetic.PREFIX):
        config = _synthetic_config(checkpoint)
        if not kept.exists():
            progress("generating seeded weights", 0, 0)
            synthetic.write_npz(kept, config)
        return kept
    if checkpoint in names:
        if not kept.exists():
            download(f"{(mirror or zoo.BUCKET).rstrip('/')}/{names[checkpoint]}", kept, progress)
        return kept
    near = difflib.get_close_matches(checkpoint, [*names, *_synthetic_names()], n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise CheckpointError(f"there is no file {checkpoint}, and no published checkpoint of that name{hint}")


def _synthetic_names() -> list[str]:
    return [synthetic.PREFIX + architecture for architecture in PUBLISHED]


def _synthetic_config(name: str) -> BitConfig:
    try:
        return BitConfig.from_architecture(name.removeprefix(synthetic.PREFIX))
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}; try {', '.join(_synthetic_names())}") from None
