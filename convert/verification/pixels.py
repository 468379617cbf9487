"""Compare the pixels that the stated preprocessing makes with the expected ones.

This is judged apart from the network: with other pixels than those of training, the right weights
lose accuracy too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bit.config import CONFIG_NAME
from bit.image_processing import (
    BICUBIC,
    BILINEAR,
    CLIP_MEAN,
    CLIP_STD,
    PREPROCESSOR_NAME,
    PROFILES,
    BitImageProcessorPil,
)
from convert.network.inputs import images
from convert.verification.results import PIXEL_TOLERANCE, PixelCheck

LEVELS = 127.5
"""8-bit levels in 1 of [-1, 1]."""
SIZES = {"landscape": (3, 300, 400), "small": (4, 90, 77)}
"""Seed, height and width of each image, by name."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of ResNet v1 in torchvision and timm (`timm.data.constants`)."""

TIMM_KEYS = {"input_size", "pool_size", "crop_pct", "crop_mode", "interpolation", "mean", "std"}
"""The keys of timm's `pretrained_cfg` that describe preprocessing."""

RANGE: dict[str, Any] = {
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": (0.5,) * 3,
    "image_std": (0.5,) * 3,
}
"""The settings that give pixels in [-1, 1], as BiT was trained (big_transfer, `bit_pytorch/train.py`)."""

INVALID_SETTINGS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, MemoryError)
"""Exceptions that invalid settings raise, when they are read or when the pixels are made."""

Pixels = NDArray[np.float32]


def stated_processor(companions: Mapping[str, Mapping[str, Any]]) -> BitImageProcessorPil | None:
    """Return the preprocessing that the companion files state; None if they state none.

    Raises `ValueError`, `TypeError` or `KeyError` for invalid settings.
    """
    if PREPROCESSOR_NAME in companions:
        return BitImageProcessorPil.from_dict(companions[PREPROCESSOR_NAME])
    evaluation = companions.get(CONFIG_NAME, {}).get("pretrained_cfg")
    if evaluation is None:
        return None
    length = evaluation["input_size"][1]
    crop_size = {"height": length, "width": length}
    square = evaluation.get("crop_mode") == "squash"
    return BitImageProcessorPil(
        size=crop_size if square else {"shortest_edge": math.floor(length / evaluation["crop_pct"])},
        crop_size=crop_size,
        do_center_crop=not square,
        resample={"bilinear": BILINEAR, "bicubic": BICUBIC}[evaluation["interpolation"]],
        image_mean=evaluation["mean"],
        image_std=evaluation["std"],
    )


def without_preprocessing(name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a companion file without preprocessing settings."""
    if name == PREPROCESSOR_NAME:
        return {}
    evaluation = content.get("pretrained_cfg")
    if not isinstance(evaluation, Mapping):
        return dict(content)
    return {**content, "pretrained_cfg": {key: value for key, value in evaluation.items() if key not in TIMM_KEYS}}


def compare_pixels(found: BitImageProcessorPil, expected: BitImageProcessorPil) -> Iterator[PixelCheck]:
    """Compare the pixels that two preprocessings make of the same two images."""
    stated, right = dataclasses.asdict(found), dataclasses.asdict(expected)
    different = [f"{key} is {stated[key]} instead of {right[key]}" for key in stated if stated[key] != right[key]]
    for name, image in inputs().items():
        check = compare_image(name, found(image)["pixel_values"][0], image, expected)
        if not check.passed and check.explanation is None and different:
            check = dataclasses.replace(check, explanation="; ".join(different))
        yield check


def compare_image(name: str, found: Pixels, image: NDArray[np.uint8], expected: BitImageProcessorPil) -> PixelCheck:
    """Compare pixels `[C, H, W]`, made of an image `[H, W, C]`, with those of the expected preprocessing."""
    error = _levels(found, expected(image)["pixel_values"][0])
    if error <= PIXEL_TOLERANCE:
        return PixelCheck(name, error, None)
    mistakes = (why for why, made in _known_mistakes(image, expected) if _levels(found, made) <= PIXEL_TOLERANCE)
    return PixelCheck(name, error, next(mistakes, None))


def compare_stated(
    stated: BitImageProcessorPil, usual: Sequence[BitImageProcessorPil]
) -> tuple[tuple[PixelCheck, ...], str | None]:
    """Compare stated preprocessing with the usual ones of the weights; return the checks, and a remark on the size.

    Any of the usual ones passes. The range of the pixels belongs to the weights, while their size and crop are a
    choice: others than the usual ones are a remark.
    """
    for right in usual:
        if all(
            _levels(*(made(image)["pixel_values"][0] for made in (stated, right))) <= PIXEL_TOLERANCE
            for image in inputs().values()
        ):
            return tuple(compare_pixels(stated, right)), None
    right = dataclasses.replace(stated, **RANGE)
    return tuple(compare_pixels(stated, right)), "size, crop or filter of the images is none of the usual ones of BiT"


def inputs() -> dict[str, NDArray[np.uint8]]:
    """Return two seeded images `[H, W, 3]` of 8 bits."""
    return {
        name: ((images(seed, 1, height, width)[0] + 1) * LEVELS).round().astype(np.uint8)
        for name, (seed, height, width) in SIZES.items()
    }


SETTINGS: dict[str, dict[str, Any]] = {
    "mean and deviation are CLIP's": {"image_mean": CLIP_MEAN, "image_std": CLIP_STD},
    "mean and deviation are ImageNet's": {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
    "mean and deviation are left out, pixels are in [0, 1]": {"do_normalize": False},
    "pixels are not scaled to [0, 1] before they are normalized": {"do_rescale": False},
    "the image is resized bilinearly": {"resample": BILINEAR},
    "the image is resized bicubically": {"resample": BICUBIC},
    "the image is not resized": {"do_resize": False},
    "the image is not cropped": {"do_center_crop": False},
}
"""Known mistakes in the settings of preprocessing."""


def _known_mistakes(image: NDArray[np.uint8], right: BitImageProcessorPil) -> Iterator[tuple[str, Pixels]]:
    """Yield each known mistake with the pixels that it makes of an image."""
    for explanation, settings in SETTINGS.items():
        yield explanation, dataclasses.replace(right, **settings)(image)["pixel_values"][0]
    for name in PROFILES:
        processor = BitImageProcessorPil.from_profile(name, image_mean=right.image_mean, image_std=right.image_std)
        yield f"size and crop are those of {name}", processor(image)["pixel_values"][0]
    pixels = right(image)["pixel_values"][0]
    yield "the channels are in the order BGR", pixels[::-1]
    yield "height and width are exchanged", pixels.swapaxes(1, 2)
    size = image.shape[:2]
    rows, columns = (np.arange(n) * length // n for n, length in zip(right.resized_to(*size), size, strict=True))
    nearest = dataclasses.replace(right, do_resize=False)(image[rows][:, columns])["pixel_values"][0]
    yield "the image is resized to the nearest pixels", nearest


def _levels(found: Pixels, expected: Pixels) -> float:
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max()) * LEVELS
