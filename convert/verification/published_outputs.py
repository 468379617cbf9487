"""The one output of a real checkpoint that is public: transformers' own test of `google/bit-50`."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from bit.image_processing import PREPROCESSOR_NAME, BitImageProcessorPil
from convert.errors import CheckpointError
from convert.network.oracle import forward
from convert.verification.candidate import Candidate
from convert.verification.metrics import relative_l2
from convert.verification.results import END_TO_END, Check

REFERENCE = "google/bit-50's published logits"
NAME = "bit-50"
LOGITS, TOLERANCE = np.array([-0.6526, -0.5263, -1.4398]), 1e-4
"""The first three of the image, and how far each may be off (transformers, `test_modeling_bit.py`)."""
IMAGE = "000000039769.jpg"
"""The file of that name in COCO's val2017."""
EPSILON = 1e-8
"""transformers computed them, with its own epsilon."""


def compare(written: Candidate, image: Path | None, preprocessing: Path | None) -> Check | str:
    """Hold the definition on the written file to the published logits, or say why that cannot be.

    `preprocessing` is the folder of the original's `preprocessor_config.json`. Raises
    `CheckpointError` for an image that cannot be read.
    """
    checkpoint = written.checkpoint
    if written.origin.name != NAME or not written.keeps("logits"):
        return "these are other weights"
    changed = checkpoint.record is not None and checkpoint.record.changes.ws_eps != "keep"
    if written.origin.roundings or checkpoint.layout.folded or changed:
        return "its weights were changed"
    if image is None or not image.is_file():
        return f"{image or IMAGE}, an image of COCO's val2017, is not there"
    if preprocessing is None or not (preprocessing / PREPROCESSOR_NAME).is_file():
        return f"what it was converted from is not at hand with its {PREPROCESSOR_NAME}"
    from PIL import Image, UnidentifiedImageError

    try:
        processor = BitImageProcessorPil.from_pretrained(preprocessing)
        pixels = processor(Image.open(image), data_format="channels_last", return_tensors="np")["pixel_values"]
    except (OSError, ValueError, UnidentifiedImageError) as fault:
        raise CheckpointError(f"{image}: {fault}") from None
    config = checkpoint.config.replace(ws_eps=EPSILON)
    *_, (_, logits) = forward(checkpoint.weights, config, {IMAGE: pixels}, checkpoint.layout.folded)
    error = relative_l2(logits[IMAGE][0, :3], LOGITS)
    tolerance = TOLERANCE * math.sqrt(len(LOGITS)) / float(np.linalg.norm(LOGITS))
    return Check(
        REFERENCE,
        f"definition, epsilon {EPSILON:g}",
        written.side,
        "float64",
        END_TO_END,
        IMAGE,
        "logits",
        error,
        tolerance,
    )
