"""The seeded images that every network is run on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

INPUTS = {"square": (1, 2, 224, 224), "odd": (2, 1, 193, 257)}
"""Seed, count, height and width of each input, as in the recordings.

The odd sizes of the second reveal mistakes of padding and stride that even sizes hide.
"""


def batches(
    inputs: Mapping[str, tuple[int, int, int, int]] = INPUTS, channels: int = 3
) -> dict[str, NDArray[np.float32]]:
    """Return the images `[N, H, W, channels]` of each input, see `images`."""
    return {name: images(*numbers, channels=channels) for name, numbers in inputs.items()}


def input_sha256(images: NDArray[np.generic]) -> str:
    """Return the SHA-256 of images `[N, H, W, C]` as little-endian float32, in C order."""
    return hashlib.sha256(np.ascontiguousarray(images, "<f4").tobytes()).hexdigest()


def images(seed: int, count: int, height: int, width: int, channels: int = 3) -> NDArray[np.float32]:
    """Return `count` images `[N, H, W, channels]` in [-1, 1]: a smooth field (a bilinear 8×8 grid) plus noise.

    With three channels these are the inputs of the recordings, bit for bit.
    """
    return _images(seed, count, height, width, channels).copy()


@lru_cache(maxsize=8)
def _images(seed: int, count: int, height: int, width: int, channels: int) -> NDArray[np.float32]:
    rng = np.random.RandomState(seed)
    field = rng.uniform(-1, 1, (count, 9, 9, channels))
    for axis, size in ((1, height), (2, width)):
        position = np.arange(size) * 8 / size
        left = position.astype(int)
        weight = (position - left).reshape((-1, 1, 1) if axis == 1 else (-1, 1))
        field = field.take(left, axis) * (1 - weight) + field.take(left + 1, axis) * weight
    noise = rng.uniform(-1, 1, (count, height, width, channels))
    return (0.75 * field + 0.25 * noise).astype(np.float32)
