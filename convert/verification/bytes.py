"""Comparing a written checkpoint with its source, bit by bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.options import ConversionOptions
from convert.conversion.plan import plan
from convert.files.base import StoredTensor
from convert.network.axes import Transform, Workspace
from convert.network.parameters import Place
from convert.progress import Progress


@dataclass(frozen=True)
class Compared:
    """One written tensor, held to the source."""

    name: str
    """The canonical one."""
    exact: bool
    """Whether it was only moved."""
    problem: str | None = None


def compare_bytes(
    source: Checkpoint, written: Checkpoint, changes: ConversionOptions, progress: Progress
) -> Iterator[Compared]:
    """Read every written tensor back and hold it to the source, bit by bit.

    What was only moved is moved back, by the inverse transform; what was changed as well must be
    what the source gives once more.
    """
    workspace, done = Workspace(), 0
    for step in plan(source, written.layout, changes):
        now = written.tensor(step.place)
        problem: str | None
        if now.dtype != step.target.dtype:
            problem = f"{now.key} is {now.dtype.name} instead of {step.target.dtype.name}"
            yield Compared(step.place.name, step.exact, problem)
        elif step.exact:
            assert step.source is not None
            equal = _gives_back(source, step.source, written, step.place, workspace)
            problem = None if equal else f"{now.key} does not give back the bytes of {step.source.key}"
            yield Compared(step.place.name, True, problem)
        else:
            blocks = step.blocks(source, workspace, allow_nonfinite=True)
            equal = _holds(written, now, blocks)
            problem = None if equal else f"{now.key} is not what its source gives when it is changed as recorded"
            yield Compared(step.place.name, False, problem)
        done += now.nbytes
        progress("comparing bytes", done, written.nbytes)


def _gives_back(source: Checkpoint, was: StoredTensor, written: Checkpoint, place: Place, workspace: Workspace) -> bool:
    now = written.tensor(place)
    inverse = Transform(written.stored_axes(place), source.stored_axes(place))

    def read(start: int, out: NDArray[np.generic]) -> None:
        written.file.read(now, start, out)

    return _holds(source, was, inverse.blocks(now.stored_shape, now.dtype.bits, read, workspace))


def _holds(checkpoint: Checkpoint, tensor: StoredTensor, blocks: Iterable[NDArray[np.generic]]) -> bool:
    """Whether the tensor has these bits, in its stored order."""
    position = 0
    for block in blocks:
        stored = np.empty_like(block)
        checkpoint.file.read(tensor, position, stored)
        if not np.array_equal(block.view(np.uint8), stored.view(np.uint8)):
            return False
        position += block.size
    return position == tensor.size
