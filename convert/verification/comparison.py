"""Compare two checkpoints of any layouts, tensor by tensor and tap by tap (`bit compare`)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from convert.checkpoints.checkpoint import Checkpoint
from convert.errors import CheckpointError
from convert.network.inputs import batches
from convert.network.parameters import parameters
from convert.network.runner import run_network
from convert.progress import Progress, tracked
from convert.verification.metrics import finite, relative_l2, relative_l2_of
from convert.verification.oracle_taps import run_oracle
from convert.verification.results import (
    DIFFERENT,
    EQUAL,
    IDENTICAL,
    MISSING,
    Difference,
    TapDifference,
    TensorDifference,
)


def compare(first: Checkpoint, second: Checkpoint, progress: Progress, taps: bool = True) -> Difference:
    """Compare every tensor and, with `taps`, run both networks and compare every tap.

    Raises `CheckpointError` for networks of different sizes; the heads may differ.
    """
    shapes = [{item.name: item.shape for item in parameters(opened.config)} for opened in (first, second)]
    bodies = [{name: shape for name, shape in side.items() if not name.startswith("head/")} for side in shapes]
    if bodies[0] != bodies[1]:
        raise CheckpointError(
            f"{first.name} is a {first.config.architecture}, {second.name} a {second.config.architecture}: "
            "networks of different sizes cannot be compared"
        )
    names = list(dict.fromkeys(name for side in shapes for name in side))
    tensors = []
    for name in tracked(names, "comparing tensors", len(names), progress):
        one, other = (side.get(name) for side in shapes)
        if one == other:
            tensors.append(_compare_tensor(name, first, second))
        else:
            tensors.append(TensorDifference(name, DIFFERENT if one and other else MISSING))
    same_head = shapes[0] == shapes[1]
    return Difference(tuple(tensors), tuple(_compare_taps(first, second, same_head, progress)) if taps else ())


def _compare_tensor(name: str, first: Checkpoint, second: Checkpoint) -> TensorDifference:
    def pieces() -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        return ((x, second.weights(name, channels)) for channels, x in first.pieces(name))

    found = [(np.array_equal(x, y, equal_nan=True), np.array_equal(np.signbit(x), np.signbit(y))) for x, y in pieces()]
    equal, same_signs = (all(column) for column in zip(*found, strict=True))
    if equal:
        tensors = [opened.tensor(opened.place(name)) for opened in (first, second)]
        stored = [(item.key, item.shape, item.dtype, item.order, item.big_endian) for item in tensors]
        identical = stored[0] == stored[1] and same_signs
        return TensorDifference(name, IDENTICAL if identical else EQUAL, 0.0, 0.0)
    with np.errstate(invalid="ignore"):
        largest = float(np.max([np.abs(x - y).max() for x, y in pieces()]))
        error = relative_l2_of((y, x) for x, y in pieces())
    return TensorDifference(name, DIFFERENT, finite(largest), finite(error))


def _compare_taps(
    first: Checkpoint, second: Checkpoint, same_head: bool, progress: Progress
) -> Iterator[TapDifference]:
    images = batches(channels=first.config.num_channels)
    reference = run_oracle(first.oracle(), images, "comparing taps", progress)
    taps = zip(reference, run_network(second.oracle(), second.config, images), strict=False)
    with np.errstate(invalid="ignore", over="ignore"):
        for (tap, ours), (_, theirs) in taps:
            if tap != "logits" or same_head:
                for name, value in ours.items():
                    yield TapDifference(name, tap, finite(relative_l2(theirs[name], value)))
