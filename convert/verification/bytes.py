"""Compare a converted checkpoint with the source, bit by bit, with fingerprints of it, and with converting it again."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bit import __version__
from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.fingerprints import changed_parameters, of_classes
from convert.checkpoints.manifest import CONVERTER, MANIFEST_NAME, Manifest
from convert.conversion.plan import Plan, Step
from convert.conversion.plan import plan as make_plan
from convert.conversion.write import write
from convert.errors import CheckpointError, ConvertError
from convert.files.atomic import NewFolder
from convert.files.base import StoredTensor
from convert.layouts import LAYOUTS
from convert.network.axes import Transform, Workspace
from convert.network.oracle import Oracle, Weights
from convert.network.parameters import ALL
from convert.network.taps import Array
from convert.progress import Progress
from convert.references.recordings import Recordings
from convert.verification.mistakes import seen_in_values
from convert.verification.results import Replay, Verification

MOST_EXPLAINED = 50
"""Tensors that are explained one by one; where more are wrong, they have one cause."""
PLACE = "bit-replay"
"""The folder that is never completed; a hidden one beside it is written to, and the next run removes what one left."""


def compare_bytes(plan: Plan, converted: Checkpoint, progress: Progress) -> Iterator[tuple[Step, str | None]]:
    """Read every converted tensor back, compare it with the source of the plan, and yield the problem, if there is one.

    A tensor that was only moved must convert back to the source exactly, by the inverse transform;
    any other must equal what the plan makes of the source once more.
    """
    workspace, done = Workspace(), 0
    for step in plan.steps:
        try:
            yield step, _problem(step, plan.checkpoint, converted, workspace)
        except CheckpointError as error:  # a value that the dtype cannot hold, or the end of the file comes too early
            yield step, str(error)
        done += converted.tensor(step.place).nbytes
        progress("comparing bytes", done, converted.nbytes)


def compare_fingerprints(recordings: Recordings, converted: Checkpoint) -> Iterator[str]:
    """Yield where parameters and classes are not those of the recorded checkpoint, for which no source is needed.

    Recordings of Google's code have no fingerprints, and weights that were rounded or scaled no longer have them.
    """
    manifest, about = converted.manifest, recordings.float64.about
    assert manifest is not None, "it was opened with one"
    kept = manifest.origin.head == "keep"
    if "parameters" in about and not manifest.origin.roundings and not converted.layout.folded:
        for name in changed_parameters(about["parameters"], converted, None if kept else "head/"):
            yield f"{converted.layout.key(converted.place(name))} does not have the recorded values of {name}"
    stores = kept and converted.layout.export.labelled and not manifest.origin.labelled
    if stores and "labels" in about and about["labels"] != of_classes(converted.config):
        yield "class names or problem type are not those of the recorded checkpoint"


def _problem(step: Step, source: Checkpoint, converted: Checkpoint, workspace: Workspace) -> str | None:
    tensor = converted.tensor(step.place)
    if tensor.dtype != step.target.dtype:
        return f"{tensor.key} is {tensor.dtype.name} instead of {step.target.dtype.name}"
    if step.exact:
        assert step.source is not None

        def read(start: int, out: NDArray[np.generic]) -> None:
            converted.file.read(tensor, start, out)

        inverse = Transform(converted.stored_axes(step.place), source.stored_axes(step.place))
        blocks = inverse.blocks(tensor.stored_shape, tensor.dtype.bits, read, workspace)
        if not _holds(source, step.source, blocks):
            return f"{tensor.key} does not convert back to {step.source.key} of the source"
    elif not _holds(converted, tensor, step.blocks(source, workspace, allow_nonfinite=True)):
        return f"{tensor.key} is not what the recorded options make of the source"
    return None


def _holds(checkpoint: Checkpoint, tensor: StoredTensor, blocks: Iterable[NDArray[np.generic]]) -> bool:
    """Return whether a tensor has these bits, in the order in which it is stored."""
    position = 0
    for block in blocks:
        stored = np.empty_like(block)
        checkpoint.file.read(tensor, position, stored)
        if not np.array_equal(block.view(np.uint8), stored.view(np.uint8)):
            return False
        position += block.size
    return position == tensor.size


@dataclass(frozen=True)
class StoredValues(Mapping[str, Array]):
    """Parameters of a checkpoint by canonical name, in float64, each read when it is asked for."""

    checkpoint: Checkpoint
    names: Collection[str]

    def __getitem__(self, name: str) -> Array:
        if name not in self.names:
            raise KeyError(name)
        return self.checkpoint.weights(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def explained(plan: Plan, differing: StoredValues, problems: Mapping[str, str]) -> Iterator[str]:
    """Yield for each tensor that another program wrote wrongly what it should hold, and what explains the difference.

    `problems` are those of `compare_bytes` by canonical name; one remains where the values are those of the plan,
    as where the dtype cannot hold them. Only the first `MOST_EXPLAINED` are explained.
    """
    right = Oracle(_planned_weights(plan), plan.config)
    steps = {step.place.name: step for step in plan.steps}
    for number, name in enumerate(differing):
        step, key = steps[name], differing.checkpoint.tensor(steps[name].place).key
        assert step.source is not None, "an inferred plan has no new head"
        change = f", times {step.scale:g}" if step.scale != 1 else ""
        change += f", rounded to {step.target.dtype.name}" if step.rounds else ""
        change += ", standardized" if step.fold is not None else ""
        words = f"{key} does not hold {step.source.key} of the source{change}"
        if number < MOST_EXPLAINED and step.fold is None:
            if np.array_equal(differing[name], right.weights(name), equal_nan=True):
                yield problems[name].partition("; choose another")[0]
                continue
            words += f": {seen_in_values(right, [name], differing).explanation.removeprefix(f'{name}: ')}"
        yield words


def _planned_weights(plan: Plan) -> Weights:
    """Return the source's parameters, scaled and rounded as the plan says."""
    steps = {step.place.name: step for step in plan.steps}

    def weights(name: str, channels: slice = ALL) -> Array:
        values, step = plan.checkpoint.weights(name, channels), steps.get(name)
        if step is None or step.exact or step.fold is not None:
            return values
        dtype = step.target.dtype
        return dtype.to_float64(dtype.from_float64(values * step.scale))

    return weights


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
        planned = make_plan(source, LAYOUTS[manifest.layout], manifest.options, manifest.max_shard_size)
    except ConvertError:  # the verification has reported it
        return {}

    def show(task: str, done: int, total: int) -> None:
        progress("converting again", done, total)

    with NewFolder(Path(tempfile.gettempdir(), PLACE), lambda folder: [], force=True) as output:
        again = write(planned, output, show, allow_nonfinite=True)
        stated = hashlib.sha256(again.in_place_of(manifest).text().encode()).hexdigest()
        return {MANIFEST_NAME: stated, **{name: file.sha256 for name, file in again.files.items()}}
