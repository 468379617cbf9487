"""The usual mistakes in BiT's forward pass and in its weights, each as the definition with that one mistake."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bit.config import BitConfig
from convert.network.oracle import Array, Arrays, Oracle, pool_windows
from convert.network.parameters import ALL, parameters
from convert.verification.metrics import relative_l2

EPSILONS = (1e-10, 1e-8, 1e-6, 1e-5)
GROUPS = (1, 8, 16, 64)


@dataclass(frozen=True)
class Mistake:
    explanation: str
    definition: Oracle


class _PoolWithoutBorder(Oracle):
    """−∞ around the stem, so that the border never wins: `MaxPool(padding=1)`."""

    def pool(self, x: Array) -> Array:
        return pool_windows(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf))


class _PoolSame(Oracle):
    """TensorFlow's `SAME` around the stem: −∞, and before the first pixel only where the length is odd."""

    def pool(self, x: Array) -> Array:
        margins = [(length % 2, 1) for length in x.shape[1:3]]
        return pool_windows(np.pad(x, ((0, 0), *margins, (0, 0)), constant_values=-np.inf))


class _StridesFirst(Oracle):
    """The stride on the first convolution of a unit, as in ResNet v1."""

    _stride = 1

    def unit(self, inputs: Arrays, layer: str, stride: int, projects: bool) -> dict[str, Array]:
        self._stride = stride
        return super().unit(inputs, layer, stride, projects)

    def convolution(self, inputs: Arrays, layer: str, stride: int = 1) -> dict[str, Array]:
        stride = {"conv1": self._stride, "conv2": 1}.get(layer.rpartition("/")[2], stride)
        return super().convolution(inputs, layer, stride)


class _ProjectsRaw(Oracle):
    """The shortcut projected from the raw input, not from the normalized one."""

    _raw: Arrays

    def unit(self, inputs: Arrays, layer: str, stride: int, projects: bool) -> dict[str, Array]:
        self._raw = inputs
        return super().unit(inputs, layer, stride, projects)

    def convolution(self, inputs: Arrays, layer: str, stride: int = 1) -> dict[str, Array]:
        return super().convolution(self._raw if layer.endswith("/projection") else inputs, layer, stride)


FUNCTIONS: dict[str, type[Oracle]] = {
    "the stem is pooled with a border of −∞ instead of zeros": _PoolWithoutBorder,
    "the stem is pooled with TensorFlow's SAME padding instead of a border of zeros": _PoolSame,
    "the stride is on a unit's first convolution instead of its second": _StridesFirst,
    "the shortcut is projected from the raw input instead of the normalized one": _ProjectsRaw,
}


def functions(right: Oracle) -> Iterator[Mistake]:
    """Mistakes of the network's function, with the right weights."""
    weights, config, folded = right.weights, right.config, right.folded
    for epsilon in EPSILONS:
        if epsilon != config.ws_eps and not folded:
            explanation = f"weights are standardized with epsilon {epsilon:g} instead of {config.ws_eps:g}"
            yield Mistake(explanation, Oracle(weights, config.replace(ws_eps=epsilon)))
    if not folded:
        yield Mistake("kernels are not standardized", Oracle(weights, config, folded=True))
    for explanation, kind in FUNCTIONS.items():
        yield Mistake(explanation, kind(weights, config, folded))
    for groups in GROUPS:
        if groups != config.num_groups and _can_have(config, groups):
            explanation = f"norms have {groups} groups instead of {config.num_groups}"
            yield Mistake(explanation, Oracle(weights, config.replace(num_groups=groups), folded))


def _can_have(config: BitConfig, groups: int) -> bool:
    widths = (config.embedding_size, *config.hidden_sizes, *(size // 4 for size in config.hidden_sizes))
    return all(width % groups == 0 for width in widths)


def with_weights(right: Oracle, explanation: str, replaced: Mapping[str, Callable[[], Array]]) -> Mistake:
    """The definition with some of its parameters, by canonical name, replaced."""

    def weights(name: str, channels: slice = ALL) -> NDArray[np.float64]:
        return replaced[name]()[..., channels] if name in replaced else right.weights(name, channels)

    return Mistake(explanation, Oracle(weights, right.config, right.folded))


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
"""What is done to kernels `[h, w, i, o]` by mistake."""


def functions_and_weights(right: Oracle, names: Sequence[str], others: Sequence[str]) -> Iterator[Mistake]:
    """What can be tried without a look at the weights: mistakes of the function, then of the parameters `names`.

    They may have been exchanged among themselves and with `others`.
    """
    yield from functions(right)
    yield from _arranged(right, names)
    yield from _exchanged(right, names, others)


def of_values(right: Oracle, names: Sequence[str], written: Mapping[str, Array]) -> Mistake:
    """The mistake that is seen in the parameters `names`; `written` has all that differ from the source's."""
    replaced = {name: partial(_same, written[name]) for name in names}
    return with_weights(right, "; ".join(_seen(right, names, written)), replaced)


def of_classes(right: Oracle, found: Array, expected: Array) -> Mistake | None:
    """The order of classes in which logits `[N, classes]` are those expected; None if they are others."""
    if found.shape != expected.shape:
        return None
    order = np.lexsort(expected.round(6))[np.argsort(np.lexsort(found.round(6)))]
    if relative_l2(expected[:, order], found) > 1e-4 or (order == np.arange(len(order))).all():
        return None
    kernel, bias = right.weights("head/kernel")[:, order], right.weights("head/bias")[order]
    moved = int((order != np.arange(len(order))).sum())
    replaced = {"head/kernel": partial(_same, kernel), "head/bias": partial(_same, bias)}
    return with_weights(right, f"{moved} classes are in another order", replaced)


def _same(values: Array) -> Array:
    return values


def _arranged(right: Oracle, names: Sequence[str]) -> Iterator[Mistake]:
    for name in names:
        for explanation, changed in _arrangements(right.weights(name)):
            yield with_weights(right, f"{name}: {explanation}", {name: partial(_same, changed)})


def _arrangements(kernel: Array) -> Iterator[tuple[str, Array]]:
    """A kernel in every wrong arrangement that keeps its shape and is another than it."""
    for explanation, change in KERNELS.items() if kernel.ndim == 4 else ():
        changed = change(kernel)
        if changed.shape == kernel.shape and not np.array_equal(changed, kernel):
            yield explanation, changed


def _exchanged(right: Oracle, names: Sequence[str], others: Sequence[str]) -> Iterator[Mistake]:
    shapes = {name: right.weights(name).shape for name in dict.fromkeys((*names, *others))}
    for first in names:
        for second in shapes:
            if shapes[first] == shapes[second] and first != second and (second not in names or first < second):
                replaced = {first: partial(right.weights, second), second: partial(right.weights, first)}
                yield with_weights(right, _exchange(first, second), replaced)


def _exchange(first: str, second: str) -> str:
    return " and ".join(sorted((first, second))) + " are exchanged"


def _seen(right: Oracle, names: Sequence[str], written: Mapping[str, Array]) -> list[str]:
    """In words, each once, how every parameter differs from the source's."""
    found: dict[str, None] = {}
    for name in names:
        values, true = written[name], right.weights(name)
        if values.shape != true.shape:
            found[f"{name}: its shape is {list(values.shape)}"] = None
        elif (match := next((said for said, x in _arrangements(true) if np.array_equal(x, values)), None)) is not None:
            found[f"{name}: {match}"] = None
        elif (other := _holder(right, values)) is not None:
            exchanged = other in written and np.array_equal(written[other], true)
            found[_exchange(name, other) if exchanged else f"{name} holds the values of {other}"] = None
        else:
            found[f"{name}: {_difference(values, true)}"] = None
    return list(found)


def _holder(right: Oracle, values: Array) -> str | None:
    """The parameter of the source that has these values."""
    alike = (item.name for item in parameters(right.config) if item.shape == values.shape)
    return next((name for name in alike if np.array_equal(right.weights(name), values)), None)


def _difference(values: Array, true: Array) -> str:
    if values.ndim == 2 and np.array_equal(np.sort(values, axis=1), np.sort(true, axis=1)):
        return f"{int((values != true).any(axis=0).sum())} classes are in another order"
    if values.ndim == 1 and np.array_equal(np.sort(values), np.sort(true)):
        return f"{int((values != true).sum())} values are in another order"
    with np.errstate(all="ignore"):
        shift, ratio = values - true, values / true
        if (np.abs(shift - np.median(shift)) <= 1e-6 * np.abs(true).max()).all():
            return f"every value is off by {np.median(shift):.2g}"
        if true.all() and (np.abs(ratio / np.median(ratio) - 1) <= 1e-6).all():
            return f"every value is {np.median(ratio):.6g} times what it should be"
        largest = float(np.nanmax(np.abs(ratio - 1)[true != 0], initial=0.0))
    count = f"{int((values != true).sum())} of {true.size} values differ"
    return (
        f"{count}, by up to {largest:.2%}"
        if largest < 1
        else f"{count}, {relative_l2(values, true):.2g} in relative L2"
    )
