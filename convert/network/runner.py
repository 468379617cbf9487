"""The interface of every implementation of the network, and running one part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bit.config import BitConfig
from bit.images import check_images
from convert.network.taps import Part, parts

Batches = Mapping[str, NDArray[Any]]
"""For each input by name: images or activations `[N, H, W, C]`, or features `[N, C]`."""
Taps = Iterator[tuple[str, Batches]]
"""The name of a tap and the value for every input."""

AT_ONCE, STEM_AT_ONCE = 40_000_000, 1_000_000
"""Bytes of input that a part is given at once. The layers hold several times as much, those of the
stem forty times."""
WEIGHTS_AT_ONCE = 50_000_000
"""Bytes of weights with which a layer that can be divided computes at once, see `by_channels`."""


class Implementation(Protocol):
    """The network of one checkpoint in one dtype, run one part at a time.

    It holds the weights of a part only while that part runs. Inputs do not see each other.
    """

    @property
    def name(self) -> str:
        """Name in reports, such as `bit (PyTorch)`."""

    @property
    def dtype(self) -> str:
        """`float64` or `float32`."""

    @property
    def about(self) -> Mapping[str, str]:
        """Versions, device, threads and whether reduced precision is off."""

    def run(self, part: Part, x: Batches) -> Sequence[Batches]:
        """Return the values of the part's taps, in order.

        The stem is given images in [-1, 1], every other part the last tap of the part before.
        """


class Network(Protocol):
    """The four steps of a network, on arrays of one library."""

    def stem(self, x: Any) -> Sequence[Any]:
        """Return the convolution of images in [-1, 1], and the pooled convolution."""

    def unit(self, stage: int, layer: int, x: Any) -> Any:
        """Return the output of one unit; `stage` and `layer` count from 0."""

    def pooled(self, x: Any) -> Sequence[Any]:
        """Return the last norm with ReLU, and the mean of that over the image."""

    def logits(self, x: Any) -> Any:
        """Return the logits of pooled features."""


def compute(network: Network, part: Part, x: Any) -> Sequence[Any]:
    """Return the values of a part's taps, in order."""
    match part.kind:
        case "stem":
            return network.stem(x)
        case "unit":
            return [network.unit(part.stage, part.layer, x)]
        case "pooled":
            return network.pooled(x)
    return [network.logits(x)]


def run_each(
    compute: Callable[[NDArray[Any]], Sequence[Any]], inputs: Batches, dtype: str, channels: int = -1
) -> list[Batches]:
    """Run a part on one input after the other; return the values of the taps in order.

    `compute` is given a new array of the `dtype` with the axis of the channels at `channels`, and
    returns the values of the taps, arranged in the same way.
    """
    outputs = []
    for images in inputs.values():
        given = np.array(np.moveaxis(images, -1, channels), dtype, order="C")
        outputs.append([np.moveaxis(np.asarray(value), channels, -1) for value in compute(given)])
    return [dict(zip(inputs, values, strict=True)) for values in zip(*outputs, strict=True)]


def run_part(implementation: Implementation, part: Part, inputs: Batches) -> Taps:
    """Yield the taps of a part. Large images go one or a few at a time."""
    at_once = STEM_AT_ONCE if part.kind == "stem" else AT_ONCE
    results = [[dict(values) for values in implementation.run(part, piece)] for piece in _pieces(inputs, at_once)]
    for index, tap in enumerate(part.taps):
        joined = {}
        for name in inputs:  # each piece is freed once it is joined
            values = [result[index].pop(name) for result in results if name in result[index]]
            joined[name] = values[0] if len(values) == 1 else np.concatenate(values)
            del values
        yield tap, joined
        del joined


def run_network(implementation: Implementation, config: BitConfig, images: Batches) -> Taps:
    """Yield every tap of the network, each part given the output of the one before.

    Raises `ValueError` for images that the network does not accept, see `check_images`.
    """
    for batch in images.values():
        check_images(config, batch.shape)
    state = images
    for part in parts(config):
        for tap, values in run_part(implementation, part, state):
            yield tap, values
            state = values


def by_channels(count: int, nbytes: int) -> Iterator[slice]:
    """Yield the output channels of a layer with `nbytes` of weights, some at a time.

    No output channel sees the weights of another. The last slice has no end, so that a tensor with
    more than `count` channels is noticed.
    """
    step = max(1, count * WEIGHTS_AT_ONCE // nbytes)
    for start in range(0, count, step):
        yield slice(start, start + step if start + step < count else None)


def _pieces(inputs: Batches, at_once: int) -> Iterator[Batches]:
    """Yield views of the images, in order, with at most `at_once` bytes or one image each."""
    group: dict[str, NDArray[Any]] = {}
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
