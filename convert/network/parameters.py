"""The canonical list of a BiT network's parameters, enumerated from the configuration.

Kernels are `[h, w, i, o]` (height, width, input and output channels), norms `[c]`, the head
`[c, n]` and `[n]`. Every layout is a table over the kinds below, see `layouts`.
"""

from __future__ import annotations

from dataclasses import dataclass

from bit.config import BitConfig

STEM_SIZE = 7

ALL = slice(None)
"""All output channels of a parameter."""

KINDS = {
    "stem/kernel": "hwio",
    "unit/norm1/scale": "c",
    "unit/norm1/bias": "c",
    "unit/conv1/kernel": "hwio",
    "unit/norm2/scale": "c",
    "unit/norm2/bias": "c",
    "unit/conv2/kernel": "hwio",
    "unit/norm3/scale": "c",
    "unit/norm3/bias": "c",
    "unit/conv3/kernel": "hwio",
    "unit/projection/kernel": "hwio",
    "norm/scale": "c",
    "norm/bias": "c",
    "head/kernel": "cn",
    "head/bias": "n",
}
"""The kinds of parameters, with the letters of their canonical axes, in the order of the network."""


@dataclass(frozen=True)
class Place:
    """The place of a parameter in the network: the kind and, inside a unit, the stage and the unit in it, from 0."""

    kind: str
    stage: int = 0
    layer: int = 0

    @property
    def name(self) -> str:
        """The canonical name, `block1/unit01/conv1/kernel` or `head/bias`."""
        if not self.kind.startswith("unit/"):
            return self.kind
        return f"{unit_name(self.stage, self.layer)}/{self.kind.removeprefix('unit/')}"


@dataclass(frozen=True)
class Parameter:
    """A parameter of one network, with the canonical shape."""

    place: Place
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def axes(self) -> str:
        return KINDS[self.place.kind]


def unit_name(stage: int, layer: int) -> str:
    """Return the name of a unit in big_transfer, `block1/unit01`; both arguments count from 0."""
    return f"block{stage + 1}/unit{layer + 1:02d}"


def parameters(config: BitConfig) -> list[Parameter]:
    """Return every parameter of the network, in the order of the forward pass."""
    listed = [Parameter(Place("stem/kernel"), (STEM_SIZE, STEM_SIZE, config.num_channels, config.embedding_size))]
    channels = config.embedding_size
    for stage, (units, size) in enumerate(zip(config.depths, config.hidden_sizes, strict=True)):
        middle = config.bottleneck_size(stage)
        for layer in range(units):
            shapes: dict[str, tuple[int, ...]] = {}
            for n, window, inputs, outputs in ((1, 1, channels, middle), (2, 3, middle, middle), (3, 1, middle, size)):
                shapes[f"norm{n}/scale"] = shapes[f"norm{n}/bias"] = (inputs,)
                shapes[f"conv{n}/kernel"] = (window, window, inputs, outputs)
            if layer == 0:
                shapes["projection/kernel"] = (1, 1, channels, size)
            listed += [Parameter(Place(f"unit/{kind}", stage, layer), shape) for kind, shape in shapes.items()]
            channels = size
    listed += [Parameter(Place(f"norm/{kind}"), (channels,)) for kind in ("scale", "bias")]
    if config.num_labels:
        listed.append(Parameter(Place("head/kernel"), (channels, config.num_labels)))
        listed.append(Parameter(Place("head/bias"), (config.num_labels,)))
    return listed
