"""Folders of small images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def stripes(folder: Path, count: int, classes: tuple[str, ...] = ("lying", "standing"), size: int = 24) -> Path:
    """Write `count` images of stripes for each class, and return the folder."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            noise = np.random.default_rng([number, index]).integers(0, 60, (size, size, 3))
            lines = np.where(np.arange(size) % (4 + 2 * (number // 2)) < 2, 180, 0)[:, None, None] + noise
            pixels = (lines.swapaxes(0, 1) if number % 2 else lines).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder
