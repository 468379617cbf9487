"""The preprocessing of images for a checkpoint, in each of three profiles."""

from __future__ import annotations

import math
from typing import Any

from bit.image_processing import BICUBIC, BILINEAR, BitImageProcessor
from convert.published.catalogue import Evaluation, evaluation, google_size, published

FILTERS = {"bilinear": BILINEAR, "bicubic": BICUBIC}


def evaluated_by(profile: str, name: str) -> Evaluation:
    """Return how `profile`, one of `bit.image_processing.PROFILES`, evaluates the checkpoint of that name.

    `google` resizes to a square of 480 pixels, or 128 for a task with small images, and does not crop.
    `timm` evaluates as timm does, see `Published.evaluation`. `transformers` uses the defaults of the
    library's image processor.
    """
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
    square = {"height": how.size, "width": how.size}
    short_edge = {"shortest_edge": math.floor(how.size / how.crop_pct)}  # rounded down as in timm
    settings = {"size": square} if how.square else {"size": short_edge, "crop_size": square}
    return BitImageProcessor.from_profile(profile, **settings, resample=FILTERS[how.interpolation]).to_dict()
