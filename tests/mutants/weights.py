"""Operators on the values of one parameter, for every kind of parameter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import numpy as np
from mutants.mutant import Operator
from mutants.networks import Base, Weights, seeded
from numpy.typing import NDArray

from convert.network.dtypes import BFLOAT16, FLOAT16

Array = NDArray[np.float32]
Change = Callable[[Array, Random], Array]


def _any(array: Array) -> bool:
    return True


def _kernel(array: Array) -> bool:
    return array.ndim == 4


def _window(array: Array) -> bool:
    return array.ndim == 4 and array.shape[0] > 1


def _filters(array: Array) -> bool:
    return array.ndim > 1


def _square(array: Array) -> bool:
    return array.ndim > 1 and array.shape[-1] == array.shape[-2]


def _at(array: Array, rng: Random) -> tuple[int, ...]:
    """Return the index of a value that is not 0."""
    chosen = [int(index) for index in np.flatnonzero(array)]
    return tuple(int(i) for i in np.unravel_index(rng.choice(chosen), array.shape))


def _one(change: Callable[[np.float32], np.float32]) -> Change:
    def apply(array: Array, rng: Random) -> Array:
        index = _at(array, rng)
        array[index] = change(array[index])
        return array

    return apply


def _ulp(value: np.float32) -> np.float32:
    return np.nextafter(value, np.float32(np.inf))


def _every_ulp(array: Array, rng: Random) -> Array:
    return np.nextafter(array, np.float32(np.inf))


def _zeroed(array: Array, rng: Random) -> Array:
    array[..., rng.randrange(array.shape[-1])] = 0
    return array


def _permuted(axis: int) -> Change:
    def apply(array: Array, rng: Random) -> Array:
        return np.roll(array, rng.randrange(1, array.shape[axis]), axis)

    return apply


def _exchanged(axis: int) -> Change:
    def apply(array: Array, rng: Random) -> Array:
        order = np.arange(array.shape[axis])
        first, second = rng.sample(range(array.shape[axis]), 2)
        order[[first, second]] = order[[second, first]]
        return array.take(order, axis)

    return apply


def _rounded(dtype: object) -> Change:
    def apply(array: Array, rng: Random) -> Array:
        values = dtype.to_float64(dtype.from_float64(array.astype(np.float64)))  # type: ignore[attr-defined]
        return np.asarray(values, np.float32)

    return apply


def _unwritten(array: Array, rng: Random) -> Array:
    flat = array.reshape(-1).copy()
    flat[-max(1, flat.size // rng.choice((3, 10, 100))) :] = 0
    return flat.reshape(array.shape)


def _swapped(array: Array, rng: Random) -> Array:
    while True:
        index = _at(array, rng)
        swapped = array[index].byteswap()
        if np.isfinite(swapped) and swapped != array[index]:
            array[index] = swapped
            return array


def _noisy(array: Array, rng: Random) -> Array:
    noise = np.random.default_rng(rng.randrange(1 << 30)).uniform(0.99, 1.01, array.shape)
    return np.asarray(array * noise, np.float32)


def _reshaped(array: Array, rng: Random) -> Array:
    if array.ndim == 2:
        return array.T.reshape(array.shape)
    return array.transpose(3, 2, 0, 1).reshape(array.shape)


CHANGES: dict[str, tuple[str, Callable[[Array], bool], Change]] = {
    "scaled by 1.001": (r"1\.001 times", _any, lambda a, rng: a * np.float32(1.001)),
    "scaled by 0.999": (r"0\.999 times", _any, lambda a, rng: a * np.float32(0.999)),
    "scaled by 2": ("2 times", _any, lambda a, rng: a * np.float32(2)),
    "off by 1e-4": (r"off by 0\.0001", lambda a: a.ndim < 3, lambda a, rng: a + np.float32(1e-4)),
    "one value off by 1 %": (
        r"^.*1 of \d+ values differ, by up to (1\.00|0\.99)%",
        _any,
        _one(lambda v: v * np.float32(1.01)),
    ),
    "one value negated": (r"1 of \d+ values differ", _any, _one(lambda v: -v)),
    "one value zeroed": ("(1 of .*|every) values? (are|is) zero", _any, _one(lambda v: np.float32(0))),
    "one value not a number": (r"1 of \d+ values are not finite", _any, _one(lambda v: np.float32(np.nan))),
    "one ulp in one value": (r"1 of \d+ values differ by a unit in the last place", _any, _one(_ulp)),
    "one ulp in every value": ("differ by a unit in the last place", _any, _every_ulp),
    "one filter zeroed": ("(channels|classes) .*are zero", _filters, _zeroed),
    "negated": ("negated", _any, lambda a, rng: -a),
    "output channels rolled": ("(output channels|classes|values) are in another order", _any, _permuted(-1)),
    "two output channels exchanged": (
        r"2 of \d+ (output channels|classes|values) are in another order",
        _any,
        _exchanged(-1),
    ),
    "input channels rolled": ("input channels are in another order", _filters, _permuted(-2)),
    "two input channels exchanged": (r"2 of \d+ input channels are in another order", _filters, _exchanged(-2)),
    "turned by 180°": ("turned by 180°", _window, lambda a, rng: a[::-1, ::-1]),
    "mirrored left to right": ("mirrored left to right", _window, lambda a, rng: a[:, ::-1]),
    "mirrored top to bottom": ("mirrored top to bottom", _window, lambda a, rng: a[::-1]),
    "rounded through bfloat16": ("rounded to bfloat16", _any, _rounded(BFLOAT16)),
    "rounded through float16": ("rounded to float16", _any, _rounded(FLOAT16)),
    "tail unwritten": ("are zero", _any, _unwritten),
    "bytes of one value swapped": (r"1 of \d+ values have their bytes in reverse order", _any, _swapped),
    "noise of 1 %": (r"values differ, by up to (1\.00|0\.9\d)%", _any, _noisy),
    "shifted by one": ("shifted by|in another order", _any, lambda a, rng: np.roll(a.reshape(-1), 1).reshape(a.shape)),
    "filled with the mean": ("every value is", _any, lambda a, rng: np.full_like(a, a.mean())),
    "zeroed": ("zero", _any, lambda a, rng: np.zeros_like(a)),
    "a reshape in the place of a transpose": ("reshape|shifted|unrelated|values differ", _filters, _reshaped),
}
"""The words that name it, the arrays that it can be applied to, and the change; arrays are in canonical axes."""


def _operator(name: str) -> Operator:
    words, fits, change = CHANGES[name]

    def places(base: Base) -> Sequence[str]:
        return [key for key, array in base.weights.items() if fits(array)]

    def apply(base: Base, place: str, rng: Random) -> Weights:
        return {**base.weights, place: np.ascontiguousarray(change(base.weights[place].copy(), rng), np.float32)}

    return Operator("weights", name, words, places, apply)


def _stale(base: Base, place: str, rng: Random) -> Weights:
    if "stale" not in base.caches:
        base.caches["stale"] = seeded(base.config, 5000 + base.number)
    return {**base.weights, place: base.caches["stale"][place]}


def _twins(base: Base) -> list[str]:
    """Return pairs of parameters of one shape."""
    shapes: dict[tuple[int, ...], list[str]] = {}
    for name, array in base.weights.items():
        shapes.setdefault(array.shape, []).append(name)
    return [f"{a} and {b}" for names in shapes.values() for i, a in enumerate(names) for b in names[i + 1 :]]


def _exchange(base: Base, place: str, rng: Random) -> Weights:
    first, _, second = place.partition(" and ")
    return {**base.weights, first: base.weights[second], second: base.weights[first]}


def _copy(base: Base, place: str, rng: Random) -> Weights:
    first, _, second = place.partition(" and ")
    return {**base.weights, first: base.weights[second]}


OPERATORS = (
    *map(_operator, CHANGES),
    Operator(
        "weights",
        "stale tensor of another seed",
        "unrelated|values differ",
        lambda base: list(base.weights),
        _stale,
    ),
    Operator("weights", "two tensors exchanged", "are exchanged", _twins, _exchange),
    Operator("weights", "one tensor in place of another", "holds the values of", _twins, _copy),
)
