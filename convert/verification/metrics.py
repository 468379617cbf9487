"""Measures of the error between two arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from convert.network.taps import Summary

AT_ONCE = 1 << 20
"""Values compared at once, so that temporary arrays stay small."""


@np.errstate(invalid="ignore", over="ignore")
def relative_l2(found: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    """Return ‖found − expected‖ / ‖expected‖ in float64.

    Infinite for arrays of different shapes, empty arrays, and values that are not finite.
    """
    if found.shape != expected.shape or not found.size:
        return float("inf")
    x, y = found.reshape(-1), expected.reshape(-1)
    blocks = (slice(start, start + AT_ONCE) for start in range(0, x.size, AT_ONCE))
    return relative_l2_of((x[block], y[block]) for block in blocks)


def relative_l2_of(pieces: Iterable[tuple[NDArray[np.generic], NDArray[np.generic]]]) -> float:
    """Return the relative L2 error of arrays given in pieces, (found, expected), of any shape."""
    difference = norm = 0.0
    for found, expected in pieces:
        x, y = (array.astype(np.float64, copy=False).reshape(-1) for array in (found, expected))
        difference = math.hypot(difference, np.linalg.norm(x - y))
        norm = math.hypot(norm, np.linalg.norm(y))
    if not np.isfinite(difference) or not np.isfinite(norm):
        return float("inf")
    return difference / norm if norm else (0.0 if difference == 0 else float("inf"))


def finite(number: float) -> float | None:
    """Return a number, or None if it is not finite."""
    return number if math.isfinite(number) else None


def summary_error(found: Summary, expected: Summary) -> float:
    """Return the largest relative L2 error among the parts of a summary; infinite if parts are missing."""
    if not expected or found.keys() != expected.keys():
        return float("inf")
    return max(relative_l2(found[part], expected[part]) for part in expected)
