"""The checkpoints of a training: one is complete when it is marked so, and only then is it resumed from.

transformers' `Trainer` writes the files of a checkpoint one after the other into their final folder, and takes any
folder of that name for a checkpoint. So `complete` flushes all of them to the disk and then adds a list of them, in
one step. A folder without that list, or with other sizes, is what a killed run or a full disk left, and is removed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bit.files import fsync, read_json, write_json

NAME = re.compile(r"checkpoint-([0-9]{1,9})")
MARK = "complete.json"
"""The list of the files of a checkpoint with their sizes; it is written last."""
CURVE = "curve.json"


def complete(checkpoint: Path, curve: Mapping[str, Any]) -> None:
    """Mark a written checkpoint as complete, with the training's curve so far. Raises `OSError`."""
    write_json(checkpoint / CURVE, curve)
    files = {path.name: path.stat().st_size for path in sorted(checkpoint.iterdir()) if path.is_file()}
    for path in (*(checkpoint / name for name in files), checkpoint):
        fsync(path)
    partial = checkpoint / f".{MARK}"
    write_json(partial, files)
    fsync(partial)
    partial.replace(checkpoint / MARK)
    fsync(checkpoint)
    fsync(checkpoint.parent)


def is_complete(checkpoint: Path) -> bool:
    """Return whether every file of a checkpoint is there, whole."""
    try:
        files = read_json(checkpoint / MARK)
        return bool(files) and all((checkpoint / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError):
        return False


def latest(folder: Path) -> Path | None:
    """Return the complete checkpoint of the highest step in a folder; None if there is none."""
    found = {int(match[1]): path for path in folder.glob("*") if (match := NAME.fullmatch(path.name))}
    return next((found[step] for step in sorted(found, reverse=True) if is_complete(found[step])), None)


def remove_incomplete(folder: Path) -> None:
    """Remove the checkpoints that are not complete."""
    for path in folder.glob("*"):
        if NAME.fullmatch(path.name) and not is_complete(path):
            shutil.rmtree(path)


def step_of(checkpoint: Path) -> int:
    """Return the number of steps that were taken before a checkpoint was written."""
    match = NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint} is not the folder of a checkpoint")
    return int(match[1])
