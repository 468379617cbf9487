"""Convert again from the source, and compare the bytes of every file but the reports."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bit import __version__
from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.manifest import CONVERTER, MANIFEST_NAME, Manifest
from convert.conversion.plan import plan
from convert.conversion.write import write
from convert.errors import CheckpointError, ConvertError
from convert.files.atomic import NewFolder
from convert.layouts import LAYOUTS
from convert.progress import Progress
from convert.verification.results import Replay, Verification

PLACE = "bit-replay"
"""The folder that is never completed; a hidden one beside it is written to, and the next run removes what one left."""


def check_replayable(folder: Path, manifest: Manifest, source: Checkpoint | None) -> None:
    """Raise `CheckpointError` if converting again would show nothing about this folder."""
    ours = f"{CONVERTER} {__version__}"
    if source is None:
        raise CheckpointError(
            f"{folder} cannot be converted again: the source {manifest.source.path} (relative to it) is missing; "
            "name it with --source"
        )
    if manifest.converter != ours:
        raise CheckpointError(
            f"{folder} was written by {manifest.converter}, and only that version writes the same bytes; this is {ours}"
        )
    if not manifest.reproducible:
        raise CheckpointError(f"{folder}: {MANIFEST_NAME} does not call the conversion reproducible; convert it again")


def replayed(verification: Verification, manifest: Manifest, source: Checkpoint, progress: Progress) -> Verification:
    """Return the verification of a folder with the result of converting `source` again, as the manifest says.

    The weights are streamed to a temporary folder, in `TMPDIR`, which is removed. The entries of the manifest that
    name a place are left out of the comparison, see `Manifest.in_place_of`. Raises `OSError`, and `CheckpointError`
    for a source that is damaged and for too little space.
    """
    again = _convert_again(manifest, source, progress)
    names = sorted({*again, *manifest.files})
    different = tuple(name for name in names if again.get(name) != verification.files.get(name))
    identical = tuple(name for name in names if name not in different)
    problems = tuple(f"replay: {name} is not what converting again writes" for name in different)
    return replace(verification, replay=Replay(identical, different), problems=(*verification.problems, *problems))


def _convert_again(manifest: Manifest, source: Checkpoint, progress: Progress) -> Mapping[str, str]:
    """Return the SHA-256 of every file that the conversion writes, by name; empty if the options do not fit."""
    try:
        planned = plan(source, LAYOUTS[manifest.layout], manifest.options, manifest.max_shard_size)
    except ConvertError:  # the verification has reported it
        return {}

    def show(task: str, done: int, total: int) -> None:
        progress("converting again", done, total)

    with NewFolder(Path(tempfile.gettempdir(), PLACE), lambda folder: [], force=True) as output:
        again = write(planned, output, show, allow_nonfinite=True)
        stated = hashlib.sha256(again.in_place_of(manifest).text().encode()).hexdigest()
        return {MANIFEST_NAME: stated, **{name: file.sha256 for name, file in again.files.items()}}
