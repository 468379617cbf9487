"""Seeded networks in memory, without a file."""

from __future__ import annotations

import numpy as np
from support.conversions import GOOGLE

from bit.config import BitConfig
from convert.network.axes import Transform
from convert.network.parameters import KINDS, parameters
from convert.references.training import WeightsInMemory
from convert.sources.synthetic import parameter


def seeded(config: BitConfig, seed: int = 0) -> WeightsInMemory:
    """Return the network of `config` with seeded weights."""
    values = {
        item.name: Transform(GOOGLE.axes(item.place), KINDS[item.place.kind])(
            parameter(GOOGLE.key(item.place), GOOGLE.shape(item), seed)
        ).astype(np.float64)
        for item in parameters(config)
    }
    return WeightsInMemory(config, values)
