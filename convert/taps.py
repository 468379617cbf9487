"""Comparing what two implementations compute inside the network.

A tap is a named intermediate result. A record keeps small ones whole and of large ones statistics
and a sample, so that 50 layers of two inputs fit in half a megabyte.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bit.config import BitConfig
from convert.parameters import unit_name

FREE, FORCED = "free-running", "teacher-forced"
"""The modes of a check, see `Check.mode`."""

SAMPLE_SIZE = 512
AT_ONCE = 1 << 20
"""Values that are compared at once, so that what lies between stays small."""
WHOLE = ("pooled", "logits")

Array = NDArray[np.float64]
Key = tuple[str, str]
"""An input's name and a tap's."""
Summary = Mapping[str, Array]
"""`{"": array}` for a tap kept whole, else its `stats` (mean, standard deviation, minimum, maximum)
and a `sample` of 512 values."""


def parts(config: BitConfig) -> dict[str, tuple[str, ...]]:
    """The network in parts that run one after the other, with the taps of each.

    A part is called as its last tap, which is what the next part is given.
    """
    units = [unit_name(stage, layer) for stage, depth in enumerate(config.depths) for layer in range(depth)]
    return {
        "root_block": ("root_block/conv", "root_block"),
        **{unit: (unit,) for unit in units},
        "pooled": ("pre_head", "pooled"),
        **({"logits": ("logits",)} if config.num_labels else {}),
    }


def unit_place(name: str) -> tuple[int, int]:
    """The stage and the layer, both from 0, of the unit that is called `blockB/unitUU`."""
    block, unit = name.split("/")
    return int(block.removeprefix("block")) - 1, int(unit.removeprefix("unit")) - 1


def tap_names(config: BitConfig) -> list[str]:
    """Every tap of a network, in the order of the forward pass."""
    return [tap for taps in parts(config).values() for tap in taps]


def summarize(tap: str, array: NDArray[np.generic]) -> Summary:
    """The summary of a tap, `[N, H, W, C]` or `[N, C]`, in float64.

    The sampled indices are those of the recorded outputs: drawn with the tap's name as the seed.
    """
    values = array.astype(np.float64, copy=False)
    if tap in WHOLE:
        return {"": values}
    indices = np.random.RandomState(zlib.crc32(tap.encode())).randint(0, values.size, SAMPLE_SIZE)
    return {
        "stats": np.array([values.mean(), values.std(), values.min(), values.max()]),
        "sample": values.reshape(-1)[indices],
    }


@np.errstate(invalid="ignore", over="ignore")
def relative_l2(found: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    """‖found − expected‖ / ‖expected‖ in float64; infinite for other shapes or values that are not finite."""
    if found.shape != expected.shape or not found.size:
        return float("inf")
    x, y = found.reshape(-1), expected.reshape(-1)
    blocks = (slice(start, start + AT_ONCE) for start in range(0, x.size, AT_ONCE))
    return relative_l2_of((x[block], y[block]) for block in blocks)


def relative_l2_of(pieces: Iterable[tuple[NDArray[np.generic], NDArray[np.generic]]]) -> float:
    """The same of arrays that are given in pieces, found and expected, of any shape."""
    difference = norm = 0.0
    for found, expected in pieces:
        x, y = (array.astype(np.float64, copy=False).reshape(-1) for array in (found, expected))
        difference = math.hypot(difference, np.linalg.norm(x - y))
        norm = math.hypot(norm, np.linalg.norm(y))
    if not np.isfinite(difference) or not np.isfinite(norm):
        return float("inf")
    return difference / norm if norm else (0.0 if difference == 0 else float("inf"))


def summary_error(found: Summary, expected: Summary) -> float:
    """The largest relative L2 error among the parts of a summary; infinite if parts are missing."""
    if not expected or found.keys() != expected.keys():
        return float("inf")
    return max(relative_l2(found[part], expected[part]) for part in expected)


@dataclass(frozen=True)
class Check:
    """One tap of one input, held to a reference."""

    reference: str
    implementation: str
    side: str
    """Whose weights it ran: `written`, or `source`."""
    dtype: str
    mode: str
    """`free-running`: each part was given what the one before made, so that errors add up as they
    do for a user; `teacher-forced`: what the reference made, so that the error is of this part alone."""
    input: str
    tap: str
    error: float
    """Relative L2."""
    budget: float

    @property
    def passed(self) -> bool:
        return math.isfinite(self.budget) and self.error <= self.budget

    @property
    def run(self) -> str:
        """What it has in common with the checks of the other taps."""
        where = " on the source" if self.side == "source" else ""
        forced = ", teacher-forced" if self.mode == FORCED else ""
        return f"{self.implementation}{where} {self.dtype}{forced}"


@dataclass(frozen=True)
class Agreement:
    """Whether an implementation puts the images of one input into the classes that the reference does."""

    implementation: str
    side: str
    dtype: str
    input: str
    images: int
    top1: int
    """Images whose most probable class is the reference's."""
    top5: int
    """Images whose five most probable classes are the reference's, in whatever order."""
    margin: float
    """The least difference of the reference's first two logits, which an error must not reach."""
    largest_error: float
    """The largest absolute error of a logit; a margin over twice that cannot be overturned."""


def agreement(found: Array, expected: Array) -> tuple[int, int, float, float]:
    """Of logits `[N, classes]`: images with the same first class and the same first five, margin, largest error."""
    ranks, wanted = (np.argsort(-logits, axis=1, kind="stable")[:, :5] for logits in (found, expected))
    same = [set(x) == set(y) for x, y in zip(ranks.tolist(), wanted.tolist(), strict=True)]
    ordered = np.sort(expected, axis=1)
    margin = float((ordered[:, -1] - ordered[:, -2]).min()) if expected.shape[1] > 1 else 0.0
    return int((ranks[:, 0] == wanted[:, 0]).sum()), sum(same), margin, float(np.abs(found - expected).max())
