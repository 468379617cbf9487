"""How the images of an evaluation become pixels: what a folder states, in words and as batches."""

from __future__ import annotations

import dataclasses
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
from convert.published.preprocessing import preprocessor
from convert.verification.pixels import INVALID_SETTINGS, stated_processor

KEPT_BYTES = 1 << 29
"""Most bytes of prepared images that are kept for the next checkpoint; more are prepared again."""


def stated_preprocessing(checkpoint: Checkpoint) -> BitImageProcessorPil | None:
    """Return the preprocessing that a checkpoint states, see `effective`; None if it states none.

    It is that of the files beside the weights, of an ONNX file's properties, or of the manifest's profile. Raises
    `CheckpointError` for settings that are invalid.
    """
    try:
        found = _stated(checkpoint)
    except INVALID_SETTINGS as error:
        raise CheckpointError(f"{checkpoint.path} states preprocessing that is not valid: {one_line(error)}") from None
    profile = checkpoint.manifest.options.profile if checkpoint.manifest is not None else None
    if found is None and profile:
        found = BitImageProcessorPil.from_dict(preprocessor(profile, checkpoint.name))
    return None if found is None else effective(found)


def _stated(checkpoint: Checkpoint) -> BitImageProcessorPil | None:
    if properties := getattr(checkpoint.file, "properties", None):  # of an ONNX file
        stated = properties.get("preprocessing")
        return BitImageProcessorPil.from_dict(json.loads(stated)) if stated else None
    files = {name: checkpoint.file.path.parent / name for name in (PREPROCESSOR_NAME, CONFIG_NAME)}
    return stated_processor({name: read_json(file) for name, file in files.items() if file.is_file()})


def effective(processor: BitImageProcessorPil) -> BitImageProcessorPil:
    """Return the processor with the settings that have no effect at their defaults.

    Two that make the same pixels of every image are then equal, whatever the library in whose words they were stated.
    """
    usual = BitImageProcessorPil()
    without: dict[str, Any] = {"image_mean": tuple(processor.image_mean), "image_std": tuple(processor.image_std)}
    if not processor.do_normalize:
        without |= {"image_mean": usual.image_mean, "image_std": usual.image_std}
    if not processor.do_center_crop:
        without["crop_size"] = usual.crop_size
    if not processor.do_resize:
        without |= {"size": usual.size, "small_size": None, "resample": usual.resample}
    elif processor.small_size == processor.size:
        without["small_size"] = None
    if not processor.do_rescale:
        without["rescale_factor"] = usual.rescale_factor
    return dataclasses.replace(processor, do_convert_rgb=True, **without)


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
