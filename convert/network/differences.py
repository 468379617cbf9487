"""Explain how the values of one array differ from those that they should be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations, product
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from convert.network.dtypes import BFLOAT16, FLOAT16
from convert.network.oracle import standardize

Array = NDArray[np.float64]

CLOSE = 1e-6
"""Largest relative error of a value that was scaled and stored in float32, with a margin of ten."""
ROUNDED = (BFLOAT16, FLOAT16)
AXES = {1: ("values",), 2: ("input channels", "classes"), 4: ("rows", "columns", "input channels", "output channels")}
"""Names of the canonical axes by the number of axes."""
FEWEST = 32
"""Fewest values of which the correlation says anything."""


def describe(found: Array, expected: Array) -> str:
    """Say what was done to `expected`, see `explain`, or else how large the difference is; they differ somewhere."""
    return explain(found, expected) or _in_size(found, expected)


@np.errstate(all="ignore")
def explain(found: Array, expected: Array) -> str | None:
    """Say what was done to `expected` that gives `found`; None if it is nothing of the usual.

    Both arrays have the canonical axes of a parameter, and the same shape.
    """
    if found.shape != expected.shape:
        return None
    differing = ~((found == expected) | (np.isnan(found) & np.isnan(expected)))
    if not differing.any():
        return None
    explanations: tuple[Callable[[Array, Array, NDArray[np.bool_]], str | None], ...] = (
        _not_finite,
        _simple,
        _rounded,
        _rearranged,
        _exchanged_channels,
        _channels,
        _zeros,
        _bytes_reversed,
        _last_place,
        _scaled,
        _shifted,
        _standardized,
        _rolled,
        _unrelated,
    )
    return next((words for how in explanations if (words := how(found, expected, differing)) is not None), None)


def _not_finite(found: Array, expected: Array, differing: NDArray[np.bool_]) -> str | None:
    count = int((~np.isfinite(found) & np.isfinite(expected)).sum())
    return f"{count} of {found.size} values are not finite" if count else None


def _simple(found: Array, expected: Array, differing: NDArray[np.bool_]) -> str | None:
    if not found.any():
        return "every value is zero"
    if found.size > 1 and found.min() == found.max():
        return f"every value is {found.flat[0]:.6g}"
    return "every value is negated" if np.array_equal(found, -expected) else None


def _rounded(found: Array, expected: Array, differing: NDArray[np.bool_]) -> str | None:
    for dtype in ROUNDED:
        if np.array_equal(found, dtype.to_float64(dtype.from_float64(expected))):
            return f"every value is rounded to {dtype.name}"
    cut = (expected.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return "every value is cut off to bfloat16 instead of rounded" if np.array_equal(found, cut) else None


def _rearranged(found: Array, expected: Array, differing: NDArray[np.bool_]) -> str | None:
    """Explain a wrong order of the axes, mirrored axes, and both together."""
    if found.ndim < 2:
        return "the order of the values is reversed" if np.array_equal(found, expected[::-1]) else None
    names, axes = AXES.get(found.ndim, ()), range(found.ndim)
    for order in permutations(axes):
        turned = expected.transpose(order)
        if turned.shape != found.shape:
            continue
        for steps in product((1, -1), repeat=found.ndim):
            changed = turned[tuple(slice(None, None, step) for step in steps)]
            if found.flat[0] == changed.flat[0] and np.array_equal(found, changed):
                moved = [names[axis] for axis in axes if order[axis] != axis]
                mirrored = [names[axis] for axis in axes if steps[axis] < 0 and found.shape[axis] > 1]
                words = [f"{' and '.join(moved)} are exchanged"] if moved else []
                words += [f"the order of the {' and the '.join(mirrored)} is reversed"] if mirrored else []
                return ", ".join(words)
    return None


def _exchanged_channels(found: Array, expected: Array, differing: NDArray[np.bool_]) -> str | None:
    """Explain channels, classes or values in another order along one axis."""
    for axis, name in reversed(list(enumerate(AXES.get(found.ndim, ())))):
        one, other = ([row.tobytes() for row in np.moveaxis(array, axis, 0)] for array in (found, expected))
        if one != other and sorted(one) == sorted(other):
            moved = sum(x != y for x, y in zip(one, other, strict=True))
            return f"{moved} of {len(one)} {name} are in another order"
    return None


def _channels(found: Array, expected: Array, differing: NDArray[np.bool_]) -> str | None:
    """Explain some whole output or input channels that are zero, negated, scaled, or another's."""
    if found.ndim < 2:
        return None
    for axis in (found.ndim - 1, found.ndim - 2):
        values, right = (np.moveaxis(array, axis, 0) for array in (found, expected))
        wrong = np.moveaxis(differing, axis, 0)
        channels = np.flatnonzero(wrong.reshape(len(wrong), -1).any(axis=1))
        if len(channels) > len(wrong) // 2 or len(channels) == 0:
            continue
        for words, holds in _of_channels(values[channels], right[channels], right):
            if holds:
                return f"{AXES[found.ndim][axis]} {_listed(channels)} of {len(wrong)} {words}"
    return None


def _of_channels(values: Array, right: Array, every: Array) -> Iterator[tuple[str, bool]]:
    yield "are zero", not values.any()
    yield "are negated", np.array_equal(values, -right)
    ratio = float((values * right).sum() / (right * right).sum()) if right.any() else 0.0
    yield f"are {ratio:.6g} times the expected ones", _is_multiple(values, right, ratio)
    others = {row.tobytes() for row in every}
    yield "hold the values of others", all(row.tobytes() in others for row in values)


def _zeros(found: Array, expected: Array, differing: NDArray[np.bool_]) -> str | None:
    """Explain zeros, at the end of the array as it may have been stored or anywhere."""
    if found[differing].any():
        return None
    count = int(differing.sum())
    for order in permutations(range(found.ndim)):
        wrong, right = (np.ascontiguousarray(array.transpose(order)).reshape(-1) for array in (differing, expected))
        first = int(wrong.argmax())
        if count > 1 and np.array_equal(wrong[first:], right[first:] != 0):
            return f"the last {wrong.size - first} of {wrong.size} values are zero, as if they had not been written"
    return f"{count} of {found.size} values are zero"


def _bytes_reversed(found: Array, expected: Array, differing: NDArray[np.bool_]) -> str | None:
    for kind in ("<f4", "<f2", "<f8"):
        stored = expected[differing].astype(kind)
        if np.array_equal(stored.astype(np.float64), expected[differing]):
            swapped = stored.byteswap().astype(np.float64)
            if np.array_equal(swapped, found[differing], equal_nan=True):
                return f"{int(differing.sum())} of {found.size} values have their bytes in reverse order"
    return None


def _last_place(found: Array, expected: Array, differing: NDArray[np.bool_]) -> str | None:
    """Explain values that are one unit in the last place of float32 off."""
    values, right = found[differing].astype(np.float32), expected[differing].astype(np.float32)
    if (np.abs(values.astype(np.float64) - right) > 1.01 * np.spacing(np.abs(right))).any():
        return None
    return f"{int(differing.sum())} of {found.size} values differ by a unit in the last place of float32"


def _scaled(found: Array, expected: Array, differing: NDArray[np.bool_]) -> str | None:
    norm = float((expected * expected).sum())
    if not norm or found.size == 1:
        return None
    ratio = float((found * expected).sum()) / norm
    return f"every value is {ratio:.6g} times the expected one" if _is_multiple(found, expected, ratio) else None


def _shifted(found: Array, expected: Array, differing: NDArray[np.bool_]) -> str | None:
    shift = float(np.median(found - expected))
    close = np.abs(found - expected - shift) <= CLOSE * np.abs(expected).max()
    return (
        f"every value is off by {shift:.2g}"
        if abs(shift) > 10 * CLOSE * np.abs(expected).max() and close.all()
        else None
    )


def _standardized(found: Array, expected: Array, differing: NDArray[np.bool_]) -> str | None:
    if found.ndim != 4:
        return None
    for epsilon in (1e-10, 1e-8, 1e-6, 1e-5):
        right = standardize(expected, epsilon)
        if np.linalg.norm(found - right) <= 10 * CLOSE * np.linalg.norm(right):
            return f"every filter is standardized already, with epsilon {epsilon:g}"
    return None


def _rolled(found: Array, expected: Array, differing: NDArray[np.bool_]) -> str | None:
    """Explain values that are read from a place too early or too late."""
    values, right = found.reshape(-1), expected.reshape(-1)
    for start in np.flatnonzero(values == right[0])[:1]:
        if np.array_equal(np.roll(right, start), values):
            return f"the values are shifted by {start} places"
    return None


def _unrelated(found: Array, expected: Array, differing: NDArray[np.bool_]) -> str | None:
    """Explain values that have nothing to do with the expected ones."""
    if found.size < FEWEST or differing.sum() < found.size * 0.9:
        return None
    x, y = ((array - array.mean()).reshape(-1) for array in (found, expected))
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    correlation = float(x @ y) / norms if norms else 0.0
    if abs(correlation) > 4 / sqrt(found.size):  # four standard deviations of unrelated noise
        return None
    return f"the values are unrelated, as from another seed or training (correlation {correlation:.2g})"


@np.errstate(all="ignore")
def _in_size(found: Array, expected: Array) -> str:
    count = f"{int((found != expected).sum())} of {expected.size} values differ"
    largest = float(np.nanmax(np.abs(found / expected - 1)[expected != 0], initial=0.0))
    if largest < 1:
        return f"{count}, by up to {largest:.2%}"
    return f"{count}, {np.linalg.norm(found - expected) / np.linalg.norm(expected):.2g} in relative L2"


def _is_multiple(found: Array, expected: Array, ratio: float) -> bool:
    """Return whether values are the expected ones times a ratio that rounding does not explain."""
    close = np.abs(found - ratio * expected) <= CLOSE * np.abs(ratio * expected)
    return abs(ratio - 1) > CLOSE and bool(close.all())


def _listed(channels: NDArray[np.int64], most: int = 5) -> str:
    rest = len(channels) - most
    return ", ".join(map(str, channels[:most])) + (f" and {rest} more" if rest > 0 else "")
