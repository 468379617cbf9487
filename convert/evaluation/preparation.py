"""How the images of an evaluation become pixels: what a folder states, in words and as batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bit.config import CONFIG_NAME
from bit.files import one_line, read_json
from bit.image_folder import LabelledImages
from bit.image_processing import BICUBIC, PREPROCESSOR_NAME, BitImageProcessorPil
from convert.checkpoints.checkpoint import Checkpoint
from convert.errors import CheckpointError
from convert.verification.pixels import INVALID_SETTINGS, stated_processor

KEPT_BYTES = 1 << 29
"""Most bytes of prepared images that are kept for the next checkpoint; more are prepared again."""


def stated_preprocessing(checkpoint: Checkpoint) -> BitImageProcessorPil | None:
    """Return the preprocessing that the files of a checkpoint state; None if they state none.

    Raises `CheckpointError` for settings that are invalid.
    """
    folder = checkpoint.file.path.parent
    try:
        if properties := getattr(checkpoint.file, "properties", None):  # of an ONNX file
            stated = properties.get("preprocessing")
            return BitImageProcessorPil.from_dict(json.loads(stated)) if stated else None
        files = {name: folder / name for name in (PREPROCESSOR_NAME, CONFIG_NAME)}
        return stated_processor({name: read_json(file) for name, file in files.items() if file.is_file()})
    except INVALID_SETTINGS as error:
        raise CheckpointError(f"{checkpoint.path} states preprocessing that is not valid: {one_line(error)}") from None


def in_words(processor: BitImageProcessorPil) -> str:
    """Return the steps of a preprocessing."""
    filter_name = "bicubic" if processor.resample == BICUBIC else "bilinear"
    steps = []
    if processor.do_resize:
        steps.append(f"resized to {_size(processor.size)} ({filter_name})")
        if processor.small_size is not None:
            steps[-1] += f", small images to {_size(processor.small_size)}"
    if processor.do_center_crop:
        steps.append(f"cropped to {_size(processor.crop_size)}")
    if processor.do_rescale and processor.rescale_factor != 1 / 255:
        steps.append(f"times {processor.rescale_factor:g}")
    if not processor.do_rescale:
        steps.append("not scaled to [0, 1]")
    if processor.do_normalize:
        centered = set(processor.image_mean) == set(processor.image_std) == {0.5} and processor.do_rescale
        mean, deviation = ("/".join(f"{v:g}" for v in row) for row in (processor.image_mean, processor.image_std))
        steps.append("values in [-1, 1]" if centered else f"less {mean}, divided by {deviation}")
    return ", ".join(steps) or "as they are"


def _size(size: Any) -> str:
    return f"{size['height']}×{size['width']}" if "height" in size else f"{size['shortest_edge']} on the shorter edge"


@dataclass(frozen=True)
class Batch:
    """Some of the images, ready for a network."""

    places: list[int]
    """Their numbers among the images."""
    images: Any
    """Pixels `[N, H, W, 3]`, float32; or a list of `[H, W, 3]`, uint8, which the library prepares."""


class Batches:
    """The images in batches, prepared by `processor`; without one they stay as they are, RGB of 8 bits.

    What fits into `KEPT_BYTES` is prepared once, and kept for the next iteration.
    """

    def __init__(self, images: LabelledImages, processor: BitImageProcessorPil | None, size: int) -> None:
        self._images, self._processor, self._size = images, processor, min(size, len(images))
        self._kept: list[Batch] | None = None

    @property
    def size(self) -> int:
        """Number of images in a batch; the last of each size of images may have fewer."""
        return self._size

    @property
    def total(self) -> int:
        """Number of images."""
        return len(self._images)

    def __iter__(self) -> Iterator[Batch]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Batch] = []
        left = KEPT_BYTES
        for batch in self._prepared():
            left -= sum(image.nbytes for image in batch.images)
            if left >= 0:
                kept.append(batch)
            else:
                kept.clear()
            yield batch
        self._kept = kept if left >= 0 else None

    def _prepared(self) -> Iterator[Batch]:
        """Yield batches of images that have the same size once they are prepared."""
        waiting: dict[tuple[int, ...], Batch] = {}
        for place in range(len(self._images)):
            pixels = self._pixels(place)
            shape = pixels.shape if self._processor is not None else ()
            batch = waiting.setdefault(shape, Batch([], []))
            batch.places.append(place)
            batch.images.append(pixels)
            if len(batch.places) == self._size:
                yield self._stacked(waiting.pop(shape))
        for batch in waiting.values():
            yield self._stacked(batch)

    def _pixels(self, place: int) -> NDArray[Any]:
        image = self._images.open(place)
        if self._processor is None:
            return np.asarray(image)
        try:
            return np.asarray(self._processor(image, data_format="channels_last")["pixel_values"][0], np.float32)
        except ValueError as error:
            raise CheckpointError(f"{self._images.name(place)} cannot be prepared ({one_line(error)})") from None

    def _stacked(self, batch: Batch) -> Batch:
        return Batch(batch.places, np.stack(batch.images)) if self._processor is not None else batch
