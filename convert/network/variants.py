"""The oracle with one mistake in the function of one layer or of all: what ports of ResNets commonly get wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np

from bit.config import NORM_EPS
from convert.network.changes import (
    ACTIVATIONS,
    NORMALIZATIONS,
    POOLS,
    STANDARDIZATIONS,
    UNITS,
    WINDOWS,
    Change,
    Normalize,
    activated_before,
    other_group_norm,
    pooled_projection,
    same,
    softmax,
    swapped_stride,
    unstrided,
    with_epsilon,
    with_groups,
)
from convert.network.oracle import Arrays, Oracle, group_norm
from convert.network.taps import Array, Part

EPSILONS = (1e-10, 1e-8, 1e-6, 1e-5, 1e-12, 1e-3)
"""Epsilons of weight standardization to try: Google's, that of timm and transformers, and usual defaults."""
NORM_EPSILONS = (1e-6, 1e-3, 1e-5, 1e-8, 1e-12)
"""Epsilons of the norms to try: defaults of other norms in PyTorch, TensorFlow and JAX."""
GROUPS = (1, 8, 16, 64)
"""Numbers of groups of the norms to try, besides one for each channel."""
CONVOLUTIONS, NORMS = ("conv1", "conv2", "conv3", "projection"), ("norm1", "norm2", "norm3")
"""The layers of a unit."""


class Variant(Oracle):
    """The oracle with a change in some layers; None for all."""

    def __init__(self, right: Oracle, change: Change, layers: frozenset[str] | None = None) -> None:
        super().__init__(right.weights, right.config, right.folded)
        self.change, self.layers = change, layers
        self._raw: Arrays = {}

    def bottleneck(self, inputs: Arrays, layer: str, stride: int, projects: bool) -> dict[str, Array]:
        self._raw, change = inputs, self.change
        if change.shortcut is not None and not projects:
            right = super().bottleneck(inputs, layer, stride, projects)
            output = {name: x - inputs[name] + change.shortcut(inputs[name]) for name, x in right.items()}
        else:
            output = super().bottleneck(inputs, layer, stride, projects)
        return {name: change.output(x) for name, x in output.items()} if change.output is not None else output

    def convolution(self, inputs: Arrays, layer: str, stride: int = 1) -> dict[str, Array]:
        change, projects = self.change, layer.endswith("/projection")
        if projects and change.raw:
            inputs = self._raw
        if projects and change.unactivated:
            inputs = self._norm(self._raw, layer.replace("projection", "norm1"), group_norm)
        if self.layers is not None and layer not in self.layers:
            outputs = super().convolution(inputs, layer, stride)
        else:
            kernel = self.weight(f"{layer}/kernel")
            kernel = kernel if self.folded else change.standardize(kernel, self.config.ws_eps)
            outputs = {name: change.convolve(x, kernel, stride) for name, x in inputs.items()}
        if projects and change.shortcut is not None:
            return {name: change.shortcut(x) for name, x in outputs.items()}
        return outputs

    def norm_relu(self, inputs: Arrays, layer: str) -> dict[str, Array]:
        if self.layers is not None and layer not in self.layers:
            return super().norm_relu(inputs, layer)
        normalized = self._norm(inputs, layer, self.change.normalize)
        return {name: self.change.activate(x) for name, x in normalized.items()}

    def pooled(self, x: Arrays) -> list[Arrays]:
        normalized = self.norm_relu(x, "norm")
        return [normalized, {name: self.change.mean(values) for name, values in normalized.items()}]

    def logits(self, x: Arrays) -> dict[str, Array]:
        found = super().logits(x)
        return found if self.change.output is None else {name: self.change.output(y) for name, y in found.items()}

    def pool(self, x: Array) -> Array:
        return self.change.pool(x)

    def _norm(self, inputs: Arrays, layer: str, normalize: Normalize) -> dict[str, Array]:
        scale, bias = self.weight(f"{layer}/scale"), self.weight(f"{layer}/bias")
        return {name: normalize(x, scale, bias, self.config.num_groups) for name, x in inputs.items()}


def variants(right: Oracle, part: Part) -> Iterator[tuple[str, Oracle]]:
    """Yield every mistake in the function of a part, and the oracle that makes it; those of several layers first."""
    for explanation, change in _of_part(right, part).items():
        yield explanation, Variant(right, change)
    changes = _of_layers(right)
    of_kind = {"stem": (("stem",), ()), "unit": (CONVOLUTIONS, NORMS), "pooled": ((), ("norm",))}
    convolutions, norms = of_kind.get(part.kind, ((), ()))
    if part.kind == "unit":
        convolutions = tuple(f"{part.prefix}/{name}" for name in convolutions[: 4 if part.layer == 0 else 3])
        norms = tuple(f"{part.prefix}/{name}" for name in norms)
    for layers, made in zip((convolutions, norms), changes, strict=True):
        for explanation, change in made.items() if len(layers) > 1 else ():
            yield explanation, Variant(right, change)
        for layer in layers:
            for explanation, change in made.items():
                yield f"{layer}: {explanation}", Variant(right, change, frozenset({layer}))
    windows = {"stem": ["stem"], "unit": [f"{part.prefix}/conv2"]}.get(part.kind, [])
    for layer in windows:
        for explanation, changed in WINDOWS.items():
            yield f"{layer}: {explanation}", Variant(right, Change(convolve=changed), frozenset({layer}))
    if part.kind == "unit":
        yield from _strides(right, part)


def _of_layers(right: Oracle) -> tuple[dict[str, Change], dict[str, Change]]:
    """Return the mistakes that any convolution and that any norm can have."""
    config, folded = right.config, right.folded
    convolutions: dict[str, Change] = {}
    if not folded:
        for epsilon in EPSILONS:
            if epsilon != config.ws_eps:
                explanation = f"weights are standardized with epsilon {epsilon:g} instead of {config.ws_eps:g}"
                convolutions[explanation] = Change(standardize=with_epsilon(epsilon))
        convolutions |= {explanation: Change(standardize=made) for explanation, made in STANDARDIZATIONS.items()}
    norms: dict[str, Change] = {}
    for epsilon in NORM_EPSILONS:
        if epsilon != NORM_EPS:
            explanation = f"norms have epsilon {epsilon:g} instead of {NORM_EPS:g}"
            norms[explanation] = Change(normalize=partial(other_group_norm, eps=epsilon))
    norms["norms have the unbiased variance instead of the biased"] = Change(
        normalize=partial(other_group_norm, ddof=1)
    )
    for groups in GROUPS:
        if groups != config.num_groups:
            explanation = f"norms have {groups} groups instead of {config.num_groups}"
            norms[explanation] = Change(normalize=with_groups(groups))
    norms[f"norms have a group for each channel instead of {config.num_groups}"] = Change(normalize=with_groups(0))
    norms |= {explanation: Change(activate=activate) for explanation, activate in ACTIVATIONS.items()}
    norms |= {explanation: Change(normalize=normalize) for explanation, normalize in NORMALIZATIONS.items()}
    norms["the ReLU comes before the norm instead of after it"] = Change(normalize=activated_before, activate=same)
    return convolutions, norms


def _of_part(right: Oracle, part: Part) -> Mapping[str, Change]:
    match part.kind:
        case "stem":
            return POOLS
        case "unit":
            return UNITS if part.layer == 0 else {name: UNITS[name] for name in UNITS if "projected" not in name}
        case "pooled":
            return {"the image is pooled by the maximum instead of the mean": Change(mean=partial(np.max, axis=(1, 2)))}
    return {
        "the bias of the head is left out": Change(output=lambda x: x - right.weight("head/bias")),
        "a softmax follows the logits": Change(output=softmax),
    }


def _strides(right: Oracle, part: Part) -> Iterator[tuple[str, Oracle]]:
    """Yield the mistakes of the stride of a unit: on another convolution, or missing."""
    names = {name: f"{part.prefix}/{name}" for name in CONVOLUTIONS}
    for name, ordinal in (("conv1", "first"), ("conv3", "third")):
        moved = frozenset({names[name], names["conv2"]})
        explanation = f"the stride is on a unit's {ordinal} convolution instead of the second"
        yield explanation, Variant(right, Change(convolve=swapped_stride), moved)
    pooled = Change(convolve=pooled_projection)
    explanation = "the projection's stride is an average pooling before it"
    yield explanation, Variant(right, pooled, frozenset({names["projection"]}))
    both = frozenset({names["conv2"], names["projection"]})
    yield "the stride of the unit is 1 instead of 2", Variant(right, Change(convolve=unstrided), both)
    yield "the stride of the unit is 2 instead of 1", Variant(right, Change(convolve=swapped_stride), both)
