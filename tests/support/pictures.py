"""Seeded images in folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def save_picture(path: Path, seed: int = 0, shape: Sequence[int] = (24, 31, 3), **options: Any) -> Path:
    """Write an image of random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, tuple(shape), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def save_classes(folder: Path, classes: Sequence[str], each: int = 3) -> Path:
    """Write a folder with some images for each class."""
    for number, name in enumerate(classes):
        for image in range(each):
            save_picture(folder / name / f"{image}.png", 100 * number + image)
    return folder
