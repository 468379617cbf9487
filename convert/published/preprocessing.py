"""The preprocessing of images for a checkpoint, in each of three profiles."""

from __future__ import annotations

import math
import re
from typing import Any

from bit.image_processing import BICUBIC, BILINEAR, MAX_EDGE, PROFILES, BitImageProcessor
from convert.published.catalogue import Evaluation, evaluation, google_size, published

FILTERS = {"bilinear": BILINEAR, "bicubic": BICUBIC}


SIZED = re.compile(r"google:([1-9][0-9]{0,3})")
"""The profile of a network that was fine-tuned at another size than Google's: the edge in pixels follows."""


def is_profile(name: str) -> bool:
    """Return whether this is the name of a profile: one of `bit.image_processing.PROFILES`, or `google:SIZE`."""
    match = SIZED.fullmatch(name)
    return name in PROFILES if match is None else int(match[1]) <= MAX_EDGE


def evaluated_by(profile: str, name: str) -> Evaluation:
    """Return how `profile`, see `is_profile`, evaluates the checkpoint of that name.

    `google` resizes to a square of 480 pixels, or 128 for a task with small images, and does not crop; `google:32`
    to one of 32 pixels. `timm` evaluates as timm does, see `Published.evaluation`. `transformers` uses the defaults
    of the library's image processor.
    """
    if match := SIZED.fullmatch(profile):
        return Evaluation(int(match[1]), 1.0, square=True)
    match profile:
        case "google":
            found = published().get(name)
            return Evaluation(google_size(found.task if found is not None else None), 1.0, square=True)
        case "transformers":
            return Evaluation(224, 1.0, "bicubic")
    return evaluation(name)


def preprocessor(profile: str, name: str) -> dict[str, Any]:
    """Return the content of `preprocessor_config.json`, as transformers and `bit` read it."""
    how = evaluated_by(profile, name)
    settings: dict[str, Any]
    square = {"height": how.size, "width": how.size}
    short_edge = {"shortest_edge": math.floor(how.size / how.crop_pct)}  # rounded down as in timm
    settings = {"size": square} if how.square else {"size": short_edge, "crop_size": square}
    if SIZED.fullmatch(profile):
        profile, settings["small_size"] = "google", None
    return BitImageProcessor.from_profile(profile, **settings, resample=FILTERS[how.interpolation]).to_dict()
