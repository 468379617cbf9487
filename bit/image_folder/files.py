"""Open image files that anyone may have written, within stated limits."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bit.files import check_regular, one_line

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
"""Pillow's names of the formats that are read. Others are refused: each decoder is one more that hostile files can
attack, and that of EPS starts a program, Ghostscript."""
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"}
"""Endings of the files in a folder that are taken for images."""
MAX_PIXELS = 25_000_000
"""Most pixels of an image file, as cameras of 24 megapixels make them: Pillow and NumPy take up to 24 bytes for each,
0.6 GB, for the copies that they make."""
MAX_FILE_BYTES = 4 * MAX_PIXELS
"""Largest image file: that of the largest image without compression."""
ADVICE = f"use a JPEG, PNG, WebP, BMP or GIF file of at most {MAX_PIXELS // 10**6} megapixels"

ORIENTATION = 0x0112
"""Number of the EXIF tag that says how a camera was held."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How an image of an orientation (EXIF 2.32, 4.6.5.1.6) is turned; 1 is upright already."""


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files, and every image file in the folders. Raises `ValueError` for a folder without images."""
    files: list[Path] = []
    for path in paths:
        found = [path]
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not found:
            raise ValueError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))})")
        files += found
    return files


def open_image(file: Path) -> Image.Image:
    """Return the first frame of an image file of `FORMATS`: upright as EXIF says, with 8 bits for each channel.

    Raises `OSError` for a file that cannot be opened, and `ValueError`, in one line that names the
    file, for a file that is not an intact image of at most `MAX_PIXELS` and `MAX_FILE_BYTES`.
    """
    _check_bytes(check_regular(file).stat().st_size, str(file))
    return _decode(file, str(file))


def decode_image(content: bytes, name: str) -> Image.Image:
    """Return the image in the content of a file, as `open_image` does; `name` stands for it in messages."""
    _check_bytes(len(content), name)
    return _decode(io.BytesIO(content), name)


def _check_bytes(size: int, name: str) -> None:
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{name} is larger than {MAX_FILE_BYTES >> 20} MiB; make the image smaller")
    if not size:
        raise ValueError(f"{name} cannot be read as an image (it is empty); replace or remove it")


def _decode(source: Path | io.BytesIO, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on metadata, and Pillow's own limit of pixels, which is higher
            with Image.open(source, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width}×{image.height} pixels are too many")
                image.load()
                return _to_bytes(_turn_upright(image))
    except (FileNotFoundError, PermissionError):
        raise
    except Image.DecompressionBombError:  # Pillow's own limit
        raise ValueError(f"{name} cannot be read as an image (it has too many pixels); {ADVICE}") from None
    except Exception as error:  # Pillow's decoders raise errors of every kind for damaged files
        raise ValueError(f"{name} cannot be read as an image ({one_line(error)}); {ADVICE}") from None


def _turn_upright(image: Image.Image) -> Image.Image:
    """Return the image as the camera was held; metadata that cannot be read say nothing."""
    try:
        orientation: Any = image.getexif().get(ORIENTATION)
        method = UPRIGHT.get(orientation)
    except Exception:  # Pillow raises errors of every kind for damaged metadata, which the pixels do not need
        return image
    if method is None:
        return image
    turned = image.transpose(method)
    # Without the metadata, for who reads them would turn it again.
    turned.info = {name: value for name, value in image.info.items() if name == "transparency"}
    return turned


def _to_bytes(image: Image.Image) -> Image.Image:
    """Return the image with at most 256 levels. Of 16 bits the upper 8 count, as Pillow reads 16 bits of colour."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
