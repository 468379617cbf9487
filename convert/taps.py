"""Comparing what two implementations compute inside the network.

A tap is a named intermediate result. A record keeps small ones whole and of large ones statistics
and a sample, so that 50 layers of two inputs fit in half a megabyte.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bit.config import BitConfig
from convert.parameters import unit_name

SAMPLE_SIZE = 512
WHOLE = ("pooled", "logits")

Array = NDArray[np.float64]
Summary = Mapping[str, Array]
"""`{"": array}` for a tap kept whole, else its `stats` (mean, standard deviation, minimum, maximum)
and a `sample` of 512 values."""


def tap_names(config: BitConfig) -> list[str]:
    """Every tap of a network, in the order of the forward pass."""
    units = [unit_name(stage, layer) for stage, depth in enumerate(config.depths) for layer in range(depth)]
    return ["root_block/conv", "root_block", *units, "pre_head", "pooled", *(["logits"] if config.num_labels else [])]


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
    x, y = found.astype(np.float64, copy=False), expected.astype(np.float64, copy=False)
    difference, norm = float(np.linalg.norm(x - y)), float(np.linalg.norm(y))
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
    dtype: str
    input: str
    tap: str
    error: float
    """Relative L2."""
    budget: float

    @property
    def passed(self) -> bool:
        return math.isfinite(self.budget) and self.error <= self.budget
