"""Two checkpoints of any layouts, held against each other tensor by tensor and tap by tap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.checkpoints.checkpoint import Checkpoint
from convert.errors import CheckpointError
from convert.network import oracle
from convert.network.inputs import batches
from convert.network.parameters import Parameter, parameters
from convert.network.taps import tap_names
from convert.progress import Progress
from convert.verification.metrics import relative_l2, relative_l2_of
from convert.verification.tolerances import FLOAT64_TOLERANCE

IDENTICAL, EQUAL, DIFFERENT, MISSING = "identical", "equal", "different", "missing"


@dataclass(frozen=True)
class TensorDifference:
    """One parameter in both."""

    parameter: str
    status: str
    """`identical`: the same bytes under the same name; `equal`: the same numbers, stored otherwise;
    `different`; `missing` in one of them."""
    largest: float | None = None
    """The largest absolute difference, None where there are no numbers to compare."""
    relative_l2: float | None = None
    """Relative to the first; None likewise."""


@dataclass(frozen=True)
class TapDifference:
    """What both networks compute, each with its own epsilon, in float64."""

    input: str
    tap: str
    relative_l2: float | None
    """Relative to the first; None where there is no such number."""

    @property
    def alike(self) -> bool:
        """Whether the difference is no more than float64's own rounding."""
        return self.relative_l2 is not None and self.relative_l2 <= FLOAT64_TOLERANCE


@dataclass(frozen=True)
class Difference:
    tensors: tuple[TensorDifference, ...]
    taps: tuple[TapDifference, ...]

    @property
    def equal(self) -> bool:
        """Whether every parameter holds the same numbers, and every tap that was compared is alike."""
        same = all(tensor.status in (IDENTICAL, EQUAL) for tensor in self.tensors)
        return same and all(tap.alike for tap in self.taps)

    def to_dict(self) -> dict[str, Any]:
        return {"equal": self.equal, **asdict(self)}


def compare(first: Checkpoint, second: Checkpoint, progress: Progress, taps: bool = True) -> Difference:
    """Compare all that both have. Without `taps` the networks are not run.

    Raises `CheckpointError` for two networks of different sizes; their heads may differ.
    """
    ours, theirs = ({item.name: item for item in parameters(opened.config)} for opened in (first, second))
    bodies = [{name: item for name, item in side.items() if not _of_head(name)} for side in (ours, theirs)]
    if bodies[0] != bodies[1]:
        raise CheckpointError(
            f"{first.name} is a {first.config.architecture}, {second.name} a {second.config.architecture}: "
            "two networks of different sizes have nothing to compare"
        )
    tensors = []
    for number, name in enumerate(dict.fromkeys((*ours, *theirs)), 1):
        tensors.append(_compare_tensor(name, ours.get(name), theirs.get(name), first, second))
        progress("comparing tensors", number, len(ours))
    found = tuple(_compare_taps(first, second, ours == theirs, progress)) if taps else ()
    return Difference(tuple(tensors), found)


def _of_head(name: str) -> bool:
    return name.startswith("head/")


def _compare_tensor(
    name: str, ours: Parameter | None, theirs: Parameter | None, first: Checkpoint, second: Checkpoint
) -> TensorDifference:
    if ours is None or theirs is None:
        return TensorDifference(name, MISSING)
    if ours.shape != theirs.shape:
        return TensorDifference(name, DIFFERENT)

    def pieces() -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        return ((x, second.weights(name, channels)) for channels, x in first.pieces(name))

    found = [(np.array_equal(x, y, equal_nan=True), np.array_equal(np.signbit(x), np.signbit(y))) for x, y in pieces()]
    equal, same_signs = (all(column) for column in zip(*found, strict=True))
    if equal:
        was, now = first.tensor(ours.place), second.tensor(ours.place)
        stored = [(item.key, item.shape, item.dtype, item.order, item.big_endian) for item in (was, now)]
        alike = stored[0] == stored[1] and same_signs
        return TensorDifference(name, IDENTICAL if alike else EQUAL, 0.0, 0.0)
    with np.errstate(invalid="ignore"):
        largest = float(np.max([np.abs(x - y).max() for x, y in pieces()]))
        error = relative_l2_of((y, x) for x, y in pieces())
    return TensorDifference(name, DIFFERENT, _finite(largest), _finite(error))


def _compare_taps(
    first: Checkpoint, second: Checkpoint, heads_too: bool, progress: Progress
) -> Iterator[TapDifference]:
    names, images = tap_names(first.config), batches(channels=first.config.num_channels)
    runs = [
        oracle.forward(opened.weights, opened.config, images, folded=opened.layout.folded) for opened in (first, second)
    ]
    with np.errstate(invalid="ignore", over="ignore"):
        for number, ((tap, ours), (_, theirs)) in enumerate(zip(*runs, strict=False), 1):
            progress("comparing taps", number, len(names))
            if tap != "logits" or heads_too:
                for name, value in ours.items():
                    yield TapDifference(name, tap, _finite(relative_l2(theirs[name], value)))


def _finite(number: float) -> float | None:
    return number if np.isfinite(number) else None
