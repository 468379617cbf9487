"""Common porting mistakes, each as a variant of the oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from convert.network.oracle import Arrays, Oracle, pool_windows
from convert.network.parameters import ALL, parameters
from convert.network.runner import Batches
from convert.network.taps import Array
from convert.verification.metrics import relative_l2

EPSILONS = (1e-10, 1e-8, 1e-6, 1e-5)
"""Epsilons of weight standardization to try: Google's, that of timm and transformers, and usual defaults."""
GROUPS = (1, 8, 16, 64)
"""Numbers of groups of the norms to try."""


@dataclass(frozen=True)
class Mistake:
    """A known mistake, and the oracle that makes it."""

    explanation: str
    oracle: Oracle


class _PoolWithoutBorder(Oracle):
    """Pads the stem with −∞, so that the border never wins: `MaxPool(padding=1)`."""

    same = False
    """Pad before the first pixel only if the length is odd, as TensorFlow's `SAME`."""

    def pool(self, x: Array) -> Array:
        margins = [(length % 2 if self.same else 1, 1) for length in x.shape[1:3]]
        return pool_windows(np.pad(x, ((0, 0), *margins, (0, 0)), constant_values=-np.inf))


class _PoolSame(_PoolWithoutBorder):
    same = True


class _InUnit(Oracle):
    """Remembers the input and the stride of the unit that runs."""

    _raw: Arrays
    _stride = 1

    def bottleneck(self, inputs: Arrays, layer: str, stride: int, projects: bool) -> dict[str, Array]:
        self._raw, self._stride = inputs, stride
        return super().bottleneck(inputs, layer, stride, projects)


class _StridesFirst(_InUnit):
    """Has the stride on the first convolution of a unit, as ResNet v1."""

    def convolution(self, inputs: Arrays, layer: str, stride: int = 1) -> dict[str, Array]:
        stride = {"conv1": self._stride, "conv2": 1}.get(layer.rpartition("/")[2], stride)
        return super().convolution(inputs, layer, stride)


class _ProjectsRaw(_InUnit):
    """Projects the shortcut from the raw input, not from the normalized one."""

    def convolution(self, inputs: Arrays, layer: str, stride: int = 1) -> dict[str, Array]:
        return super().convolution(self._raw if layer.endswith("/projection") else inputs, layer, stride)


FUNCTIONS: dict[str, type[Oracle]] = {
    "the stem is pooled with a border of −∞ instead of zeros": _PoolWithoutBorder,
    "the stem is pooled with TensorFlow's SAME padding instead of a border of zeros": _PoolSame,
    "the stride is on a unit's first convolution instead of the second": _StridesFirst,
    "the shortcut is projected from the raw input instead of the normalized one": _ProjectsRaw,
}
"""Mistakes in the structure of the network."""

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


def of_functions(right: Oracle) -> Iterator[Mistake]:
    """Yield mistakes of the network's function, with the right weights."""
    weights, config, folded = right.weights, right.config, right.folded
    for epsilon in EPSILONS:
        if epsilon != config.ws_eps and not folded:
            explanation = f"weights are standardized with epsilon {epsilon:g} instead of {config.ws_eps:g}"
            yield Mistake(explanation, Oracle(weights, config.replace(ws_eps=epsilon)))
    if not folded:
        yield Mistake("kernels are not standardized", Oracle(weights, config, folded=True))
    for explanation, kind in FUNCTIONS.items():
        yield Mistake(explanation, kind(weights, config, folded))
    widths = (config.embedding_size, *config.hidden_sizes, *(size // 4 for size in config.hidden_sizes))
    for groups in GROUPS:
        if groups != config.num_groups and all(width % groups == 0 for width in widths):
            explanation = f"norms have {groups} groups instead of {config.num_groups}"
            yield Mistake(explanation, Oracle(weights, config.replace(num_groups=groups), folded))


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


def seen_in_values(right: Oracle, names: Sequence[str], differing: Mapping[str, Array]) -> Mistake:
    """Return the mistake that the values of the parameters `names` show.

    `differing` has the values of every parameter that differs from the source.
    """
    explanations = dict.fromkeys(_compared(right, name, differing) for name in names)
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
    other = next((item for item in alike if np.array_equal(right.weights(item), values)), None)
    if other is None:
        return f"{name}: {_difference(values, expected)}"
    exchanged = other in differing and np.array_equal(differing[other], expected)
    return _exchange(name, other) if exchanged else f"{name} holds the values of {other}"


def _difference(values: Array, expected: Array) -> str:
    if values.ndim < 3 and np.array_equal(np.sort(values), np.sort(expected)):
        moved = np.atleast_2d(values != expected).any(axis=0).sum()
        return f"{moved} {'classes' if values.ndim == 2 else 'values'} are in another order"
    with np.errstate(all="ignore"):
        shift, ratio = values - expected, values / expected
        if (np.abs(shift - np.median(shift)) <= 1e-6 * np.abs(expected).max()).all():
            return f"every value is off by {np.median(shift):.2g}"
        if expected.all() and (np.abs(ratio / np.median(ratio) - 1) <= 1e-6).all():
            return f"every value is {np.median(ratio):.6g} times the expected one"
        largest = float(np.nanmax(np.abs(ratio - 1)[expected != 0], initial=0.0))
    count = f"{int((values != expected).sum())} of {expected.size} values differ"
    if largest < 1:
        return f"{count}, by up to {largest:.2%}"
    return f"{count}, {relative_l2(values, expected):.2g} in relative L2"
