"""Compare a converted checkpoint with the source, bit by bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from convert.checkpoints.checkpoint import Checkpoint
from convert.conversion.plan import Plan, Step
from convert.files.base import StoredTensor
from convert.network.axes import Transform, Workspace
from convert.progress import Progress


def compare_bytes(plan: Plan, converted: Checkpoint, progress: Progress) -> Iterator[tuple[Step, str | None]]:
    """Read every converted tensor back, compare it with the source of the plan, and yield the problem, if there is one.

    A tensor that was only moved must convert back to the source exactly, by the inverse transform;
    any other must equal what the plan makes of the source once more.
    """
    workspace, done = Workspace(), 0
    for step in plan.steps:
        yield step, _problem(step, plan.checkpoint, converted, workspace)
        done += converted.tensor(step.place).nbytes
        progress("comparing bytes", done, converted.nbytes)


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
