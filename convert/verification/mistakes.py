"""Common porting mistakes, each as a variant of the oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from convert.network.differences import describe
from convert.network.oracle import Oracle
from convert.network.parameters import ALL, parameters
from convert.network.runner import Batches
from convert.network.taps import Array, Part
from convert.network.variants import variants
from convert.verification.metrics import relative_l2


@dataclass(frozen=True)
class Mistake:
    """A known mistake, and the oracle that makes it."""

    explanation: str
    oracle: Oracle


KERNELS: dict[str, Callable[[Array], Array]] = {
    "height and width exchanged": lambda kernel: kernel.swapaxes(0, 1),
    "turned by 180°, as a convolution instead of a cross-correlation": lambda kernel: kernel[::-1, ::-1],
    "mirrored left to right": lambda kernel: kernel[:, ::-1],
    "mirrored top to bottom": lambda kernel: kernel[::-1],
    "input and output channels exchanged": lambda kernel: kernel.swapaxes(2, 3),
    "input channels in reverse order, BGR for RGB": lambda kernel: kernel[:, :, ::-1],
    "a reshape in the place of a transpose": lambda kernel: kernel.reshape(
        kernel.shape[3], kernel.shape[2], *kernel.shape[:2]
    ).transpose(2, 3, 1, 0),
}
"""Wrong arrangements of a kernel `[h, w, i, o]`."""


def of_functions(right: Oracle, part: Part) -> Iterator[Mistake]:
    """Yield mistakes of the function of a part, with the right weights."""
    for explanation, oracle in variants(right, part):
        yield Mistake(explanation, oracle)


def of_weights(right: Oracle, names: Sequence[str], others: Sequence[str]) -> Iterator[Mistake]:
    """Yield mistakes of the parameters `names`, which may be exchanged with each other and with `others`."""
    for name in names:
        for explanation, changed in _arrangements(right.weights(name)):
            yield _replaced(right, f"{name}: {explanation}", {name: changed})
    shapes = {item.name: item.shape for item in parameters(right.config)}
    for first, second in combinations(dict.fromkeys((*names, *others)), 2):
        if first in names and shapes[first] == shapes[second]:
            exchanged = {first: right.weights(second), second: right.weights(first)}
            yield _replaced(right, _exchange(first, second), exchanged)


def in_words(right: Oracle, names: Iterable[str], differing: Mapping[str, Array]) -> list[str]:
    """Return sentences on how the values of the parameters `names` differ from the right ones.

    `differing` has the values of every parameter that differs from the source.
    """
    return list(dict.fromkeys(_compared(right, name, differing) for name in names))


def seen_in_values(right: Oracle, names: Sequence[str], differing: Mapping[str, Array]) -> Mistake:
    """Return the mistake that the values of the parameters `names` show, see `in_words`."""
    explanations = in_words(right, names, differing)
    return _replaced(right, "; ".join(explanations), {name: differing[name] for name in names})


def seen_in_classes(right: Oracle, logits: Batches, right_logits: Batches) -> Iterator[Mistake]:
    """Yield the mistake that logits `[N, classes]` show if they are the right ones in another order."""
    found, expected = (np.concatenate([side[name] for name in right_logits]) for side in (logits, right_logits))
    if found.shape != expected.shape:
        return
    order = np.lexsort(expected.round(6))[np.argsort(np.lexsort(found.round(6)))]
    moved = int((order != np.arange(len(order))).sum())
    if moved and relative_l2(expected[:, order], found) <= 1e-4:
        reordered = {name: right.weights(name)[..., order] for name in ("head/kernel", "head/bias")}
        yield _replaced(right, f"{moved} classes are in another order", reordered)


def _replaced(right: Oracle, explanation: str, values: Mapping[str, Array]) -> Mistake:
    """Return the oracle with some parameters, by canonical name, replaced."""

    def weights(name: str, channels: slice = ALL) -> Array:
        return values[name][..., channels] if name in values else right.weights(name, channels)

    return Mistake(explanation, Oracle(weights, right.config, right.folded))


def _arrangements(kernel: Array) -> Iterator[tuple[str, Array]]:
    """Yield every wrong arrangement of a kernel that keeps the shape and changes the values."""
    for explanation, change in KERNELS.items() if kernel.ndim == 4 else ():
        changed = change(kernel)
        if changed.shape == kernel.shape and not np.array_equal(changed, kernel):
            yield explanation, changed


def _exchange(first: str, second: str) -> str:
    return " and ".join(sorted((first, second))) + " are exchanged"


def _compared(right: Oracle, name: str, differing: Mapping[str, Array]) -> str:
    """Describe how the values of a parameter differ from the source."""
    values, expected = differing[name], right.weights(name)
    if values.shape != expected.shape:
        return f"{name}: the shape is {list(values.shape)}"
    for explanation, arranged in _arrangements(expected):
        if np.array_equal(arranged, values):
            return f"{name}: {explanation}"
    alike = (item.name for item in parameters(right.config) if item.shape == values.shape)
    first = slice(1)  # of one channel, so that few parameters are read whole
    alike = (item for item in alike if np.array_equal(right.weights(item, first), values[..., first]))
    other = next((item for item in alike if np.array_equal(right.weights(item), values)), None)
    if other is None:
        return f"{name}: {describe(values, expected)}"
    exchanged = other in differing and np.array_equal(differing[other], expected)
    return _exchange(name, other) if exchanged else f"{name} holds the values of {other}"
