"""What every implementation of the network offers to be compared: to run one part of it at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bit.config import BitConfig
from convert.network.taps import parts

Batches = Mapping[str, NDArray[np.generic]]
"""By the name of an input: images `[N, H, W, C]`, or features `[N, C]`."""

Taps = Iterator[tuple[str, Batches]]
"""Each tap's name and its value for every input."""


AT_ONCE, STEM_AT_ONCE = 40_000_000, 1_000_000
"""Bytes that a part is given at once; several times as many lie between its layers, of the stem's forty times."""

WEIGHTS_AT_ONCE = 50_000_000
"""Bytes of weights with which a layer that can be divided computes at once, see `by_channels`."""


class Implementation(Protocol):
    """The network of one checkpoint, in one dtype. It holds the weights of a part only while that runs."""

    @property
    def name(self) -> str:
        """As a report calls it, `bit (PyTorch)` say."""

    @property
    def dtype(self) -> str:
        """`float64` or `float32`."""

    @property
    def about(self) -> Mapping[str, str]:
        """Versions, device, threads and whether reduced precision is off."""

    def run(self, part: str, inputs: Batches) -> Taps:
        """Yield the taps of one of `taps.parts`, given the last tap of the part before, or the images.

        Every input takes the same way on its own.
        """
        ...


def run(implementation: Implementation, part: str, inputs: Batches) -> Taps:
    """The taps of a part, images that are large there one or a few at a time; images do not see each other."""
    found: dict[str, dict[str, list[NDArray[np.generic]]]] = {}
    for piece in _pieces(inputs, STEM_AT_ONCE if part == "root_block" else AT_ONCE):
        for tap, values in implementation.run(part, piece):
            for name, value in values.items():
                found.setdefault(tap, {}).setdefault(name, []).append(value)
    for tap in list(found):
        images = found.pop(tap)
        yield tap, {name: _joined(images.pop(name)) for name in list(images)}


def _joined(values: list[NDArray[np.generic]]) -> NDArray[np.generic]:
    return values[0] if len(values) == 1 else np.concatenate(values)


def _pieces(inputs: Batches, at_once: int) -> Iterator[Batches]:
    """Views of the images, in order, of so many bytes at most, or of one image."""
    group: dict[str, NDArray[np.generic]] = {}
    left = at_once
    for name, images in inputs.items():
        while len(images):
            count = max(left // images[0].nbytes, 0 if group else 1)
            if count:
                group[name], images = images[:count], images[count:]
                left -= group[name].nbytes
            if len(images):
                yield group
                group, left = {}, at_once
    yield group


def by_channels(count: int, nbytes: int) -> Iterator[slice]:
    """The output channels of a layer that has `nbytes` of weights, some at a time: none sees another's weights.

    The last slice has no end, so that a tensor with more than `count` is noticed.
    """
    step = max(1, count * WEIGHTS_AT_ONCE // nbytes)
    for start in range(0, count, step):
        yield slice(start, start + step if start + step < count else None)


def walk(implementation: Implementation, config: BitConfig, images: Batches) -> Taps:
    """Yield every tap of the network, each part given what the one before made of the images."""
    state = images
    for part in parts(config):
        for tap, values in run(implementation, part, state):
            yield tap, values
            state = values
