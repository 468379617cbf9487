"""The parts of the network, the named activations (taps) of each, and their summaries.

A summary keeps a small tap whole, and of a large one statistics and a sample, so that the 50 layers
of two inputs fit into half a megabyte.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bit.config import BitConfig
from convert.network.parameters import unit_name

SAMPLE_SIZE = 512
WHOLE = ("pooled", "logits")
"""Taps that a summary keeps whole."""

Array = NDArray[np.float64]
Key = tuple[str, str]
"""The name of an input and of a tap."""
Summary = Mapping[str, Array]
"""`{"": array}` for a tap kept whole, else `stats` (mean, standard deviation, minimum, maximum) and
a `sample` of 512 values."""


@dataclass(frozen=True)
class Part:
    """A part of the network that runs as one step; the next part is given the last tap."""

    kind: str
    """`stem`, `unit`, `pooled` or `logits`."""
    taps: tuple[str, ...]
    prefix: str
    """The start of the parameters' canonical names, `block1/unit01` or `head`."""
    stage: int = 0
    """The stage of a unit, from 0."""
    layer: int = 0
    """The number of the unit in the stage, from 0."""

    @property
    def name(self) -> str:
        """The name of the last tap."""
        return self.taps[-1]


def parts(config: BitConfig) -> list[Part]:
    """Return the parts of a network in the order of the forward pass; names are big_transfer's.

    The stem has taps after the convolution and the pooling, the last norm after the ReLU and the mean over the image.
    """
    places = ((stage, layer) for stage, depth in enumerate(config.depths) for layer in range(depth))
    units = [Part("unit", (unit_name(*place),), unit_name(*place), *place) for place in places]
    head = [Part("logits", ("logits",), "head")] if config.num_labels else []
    stem = Part("stem", ("root_block/conv", "root_block"), "stem")
    pooled = Part("pooled", ("pre_head", "pooled"), "norm")
    return [stem, *units, pooled, *head]


def tap_names(config: BitConfig) -> list[str]:
    """Return every tap of a network in the order of the forward pass."""
    return [tap for part in parts(config) for tap in part.taps]


def summarize(tap: str, array: NDArray[np.generic]) -> Summary:
    """Return the summary of a tap `[N, H, W, C]` or `[N, C]`, in float64.

    The sampled indices are those of the recorded outputs: drawn with the tap's name as the seed.
    """
    values = array.astype(np.float64, copy=False)
    if tap in WHOLE:
        return {"": values}
    indices = np.random.RandomState(zlib.crc32(tap.encode())).randint(0, values.size, SAMPLE_SIZE)
    return {
        "stats": np.array([values.mean(), values.std(), values.min(), values.max()]),
        "sample": values.reshape(-1)[indices],
    }
