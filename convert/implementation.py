"""What every implementation of the network offers to be compared: to run one part of it at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bit.config import BitConfig
from convert.taps import parts

Batches = Mapping[str, NDArray[np.generic]]
"""By the name of an input: images `[N, H, W, C]`, or features `[N, C]`."""

Taps = Iterator[tuple[str, Batches]]
"""Each tap's name and its value for every input."""


AT_ONCE, STEM_AT_ONCE = 40_000_000, 1_000_000
"""Bytes that a part is given at once; several times as many lie between its layers, of the stem's forty times."""


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
    pieces = list(_pieces(inputs, STEM_AT_ONCE if part == "root_block" else AT_ONCE))
    if len(pieces) == 1:
        yield from implementation.run(part, inputs)
        return
    for taps in zip(*[list(implementation.run(part, piece)) for piece in pieces], strict=True):
        found = [values for _, values in taps]
        yield taps[0][0], {name: np.concatenate([v[name] for v in found if name in v]) for name in inputs}


def _pieces(inputs: Batches, at_once: int) -> Iterator[Batches]:
    """The images in groups of so many bytes, in order."""
    group: dict[str, list[NDArray[np.generic]]] = {}
    size = 0
    for name, images in inputs.items():
        for image in images:
            if group and size + image.nbytes > at_once:
                yield {key: np.stack(values) for key, values in group.items()}
                group, size = {}, 0
            group.setdefault(name, []).append(image)
            size += image.nbytes
    yield {key: np.stack(values) for key, values in group.items()}


def walk(implementation: Implementation, config: BitConfig, images: Batches) -> Taps:
    """Yield every tap of the network, each part given what the one before made of the images."""
    state = images
    for part in parts(config):
        for tap, values in run(implementation, part, state):
            yield tap, values
            state = values
