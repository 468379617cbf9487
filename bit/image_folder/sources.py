"""The places of the images of a data set: files, rows of a `datasets` table, or an array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bit.image_folder.files import decode_image, open_image


class Source(Protocol):
    """Images by their numbers, none of which is held in memory as pixels."""

    def open(self, index: int) -> Image.Image:
        """Return an image as it is stored. Raises `OSError`, or `ValueError` that names it."""

    def name(self, index: int) -> str:
        """Return the name of an image for messages: a path, or `row 17`."""

    def key(self, index: int) -> str:
        """Return a name that is the same on every machine."""

    def content(self, index: int) -> bytes:
        """Return the bytes of an image as it is stored."""


@dataclass(frozen=True)
class Files:
    """Image files below a folder."""

    folder: Path
    paths: Sequence[Path]

    def open(self, index: int) -> Image.Image:
        """Return the image in a file."""
        return open_image(self.paths[index])

    def name(self, index: int) -> str:
        """Return the path of a file."""
        return str(self.paths[index])

    def key(self, index: int) -> str:
        """Return the path of a file below the folder, with slashes."""
        return self.paths[index].relative_to(self.folder).as_posix()

    def content(self, index: int) -> bytes:
        """Return the bytes of a file."""
        return self.paths[index].read_bytes()


@dataclass(frozen=True)
class Rows:
    """The image column of a table of the library `datasets`, which holds encoded images or paths."""

    table: Any
    """A `datasets.Dataset` whose image column is not decoded: each value is `{"bytes": …, "path": …}`."""
    column: str
    folder: Path
    """The folder from which relative paths count."""

    def open(self, index: int) -> Image.Image:
        """Return the image in a row."""
        content, path = self._stored(index)
        return decode_image(content, self.name(index)) if content is not None else open_image(path)

    def name(self, index: int) -> str:
        """Return the number of a row, from 0, and the path if the image lies in a file."""
        content, path = self._stored(index)
        return f"row {index}" if content is not None else f"row {index} ({path})"

    def key(self, index: int) -> str:
        """Return the number of a row, from 0."""
        return f"row {index}"

    def content(self, index: int) -> bytes:
        """Return the bytes of an encoded image."""
        content, path = self._stored(index)
        return content if content is not None else path.read_bytes()

    def _stored(self, index: int) -> tuple[bytes | None, Path]:
        value = self.table[index][self.column]
        if not isinstance(value, dict):
            raise ValueError(f"row {index} holds no image in the column {self.column!r}")
        return value.get("bytes"), self.folder / (value.get("path") or "")


@dataclass(frozen=True)
class Arrays:
    """Images in one array `[N, H, W]` or `[N, H, W, 3]`, uint8."""

    pixels: NDArray[np.uint8]

    def open(self, index: int) -> Image.Image:
        """Return an image as a PIL image."""
        return Image.fromarray(self.pixels[index])

    def name(self, index: int) -> str:
        """Return the number of an image, from 0."""
        return f"row {index}"

    def key(self, index: int) -> str:
        """Return the number of an image, from 0."""
        return self.name(index)

    def content(self, index: int) -> bytes:
        """Return the bytes of the pixels, row by row."""
        return bytes(self.pixels[index].tobytes())
