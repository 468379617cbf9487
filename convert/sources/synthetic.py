"""Seeded synthetic BiT checkpoints, in the exact layout of google-research's `.npz` files.

Recordings of Google's own code exist for these weights (see `reference_outputs`), so a conversion can
be verified from start to end without a network. The random numbers come from
`numpy.random.RandomState`, which NumPy keeps frozen, and only exactly rounded arithmetic follows (no
log, sin or pow): the same seed gives the same bits on any machine.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bit.config import BitConfig
from convert.files.atomic import new_file
from convert.files.base import Tensor
from convert.files.npz import NpzWriter
from convert.layouts.google import GOOGLE
from convert.network.dtypes import FLOAT32
from convert.network.parameters import parameters


def parameter(key: str, shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    """Return the array named `key` in google's layout.

    Kernels have a non-zero mean and filters of scale 1 to 1/8, so that weight standardization and
    the epsilon in it make a visible difference.
    """
    rng = np.random.RandomState([seed, zlib.crc32(key.encode())])
    noise = 2 * (rng.random_sample(shape) + rng.random_sample(shape) + rng.random_sample(shape) - 1.5)
    if key.endswith("gamma"):
        array = 1 + 0.1 * noise
    elif key.endswith(("beta", "bias")):
        array = 0.1 * noise
    elif "/head/" in key:
        array = noise / np.sqrt(shape[2])
    else:
        filter_scale = np.ldexp(1.0, -rng.randint(0, 4, shape[-1]))
        array = (noise + 0.3) * np.sqrt(2 / (shape[0] * shape[1] * shape[2])) * filter_scale
    return array.astype(np.float32)


def write_npz(path: Path, config: BitConfig, seed: int = 0) -> None:
    """Write a checkpoint of the network that `config` describes, whole or not at all."""
    shapes = {GOOGLE.key(item.place): GOOGLE.shape(item) for item in parameters(config)}
    tensors = NpzWriter.ordered(Tensor(key, shape, FLOAT32) for key, shape in shapes.items())
    with new_file(path) as partial, NpzWriter(partial, tensors) as writer:
        for tensor in tensors:
            writer.write(tensor, [parameter(tensor.key, tensor.shape, seed).reshape(-1)])
        writer.finish()
