"""Comparing what two implementations compute inside the network.

A tap is a named intermediate result. A record keeps small ones whole and of large ones statistics
and a sample, so that 50 layers of two inputs fit in half a megabyte.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bit.config import BitConfig
from convert.network.parameters import unit_name

SAMPLE_SIZE = 512
WHOLE = ("pooled", "logits")

Array = NDArray[np.float64]
Key = tuple[str, str]
"""An input's name and a tap's."""
Summary = Mapping[str, Array]
"""`{"": array}` for a tap kept whole, else its `stats` (mean, standard deviation, minimum, maximum)
and a `sample` of 512 values."""


def parts(config: BitConfig) -> dict[str, tuple[str, ...]]:
    """The network in parts that run one after the other, with the taps of each.

    A part is called as its last tap, which is what the next part is given.
    """
    units = [unit_name(stage, layer) for stage, depth in enumerate(config.depths) for layer in range(depth)]
    return {
        "root_block": ("root_block/conv", "root_block"),
        **{unit: (unit,) for unit in units},
        "pooled": ("pre_head", "pooled"),
        **({"logits": ("logits",)} if config.num_labels else {}),
    }


def unit_place(name: str) -> tuple[int, int]:
    """The stage and the layer, both from 0, of the unit that is called `blockB/unitUU`."""
    block, unit = name.split("/")
    return int(block.removeprefix("block")) - 1, int(unit.removeprefix("unit")) - 1


def tap_names(config: BitConfig) -> list[str]:
    """Every tap of a network, in the order of the forward pass."""
    return [tap for taps in parts(config).values() for tap in taps]


def summarize(tap: str, array: NDArray[np.generic]) -> Summary:
    """The summary of a tap, `[N, H, W, C]` or `[N, C]`, in float64.

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
