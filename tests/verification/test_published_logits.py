"""The only published output of a real checkpoint: three logits of `google/bit-50`, from transformers' own tests.

The comparison is tried on seeded weights. The real one is long and runs if `BIT_COCO_IMAGE` names the
image `000000039769.jpg` of COCO's val2017 and `BIT_GOOGLE_BIT_50` a folder with the files of `google/bit-50`.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.conversions import convert

from bit.image_processing import BitImageProcessorPil
from convert.checkpoints.checkpoint import Checkpoint
from convert.network.inputs import images
from convert.network.oracle import Oracle
from convert.network.runner import run_network
from convert.network.taps import Array
from convert.verification.metrics import relative_l2

LOGITS = np.array([-0.6526, -0.5263, -1.4398])
"""The first three logits of the image (transformers, `test_modeling_bit.py`)."""
TOLERANCE = 1e-4 * math.sqrt(len(LOGITS)) / float(np.linalg.norm(LOGITS))
"""Relative L2, if each logit is off by 1e-4, the tolerance of that test."""
EPSILON = 1e-8
"""Epsilon of weight standardization in transformers."""


def logits(checkpoint: Path, image: Path, preprocessing: Path) -> Array:
    """Return the first three logits that the oracle computes of an image, with the epsilon of transformers."""
    processor = BitImageProcessorPil.from_pretrained(preprocessing)
    pixels = processor(Image.open(image), data_format="channels_last", return_tensors="np")["pixel_values"]
    with Checkpoint(checkpoint) as opened:
        config = opened.config.replace(ws_eps=EPSILON)
        *_, (_, found) = run_network(Oracle(opened.weights, config), config, {"image": pixels})
    return np.asarray(found["image"][0, :3], np.float64)


@pytest.mark.long
def test_google_bit_50_gives_the_published_logits(tmp_path: Path) -> None:
    image, source = os.environ.get("BIT_COCO_IMAGE"), os.environ.get("BIT_GOOGLE_BIT_50")
    if not image or not source:
        pytest.skip("BIT_COCO_IMAGE and BIT_GOOGLE_BIT_50 are not set")
    folder = convert(Path(source), "timm", tmp_path / "out")
    assert relative_l2(logits(folder, Path(image), Path(source)), LOGITS) <= TOLERANCE


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.fromarray(((images(5, 1, 80, 90)[0] + 1) * 127).astype(np.uint8)).save(tmp_path / "cats.png")
    BitImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    return tmp_path / "cats.png"


def test_other_weights_do_not_give_the_published_logits(tiny_npz: Path, image: Path) -> None:
    assert relative_l2(logits(tiny_npz, image, image.parent), LOGITS) > TOLERANCE
    assert 5e-5 < TOLERANCE < 2e-4, "each of three logits around 1 may be off by 1e-4"


def test_a_conversion_gives_the_logits_of_its_source(tiny_npz: Path, image: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "transformers", tmp_path / "out")
    expected = logits(tiny_npz, image, tmp_path)
    assert relative_l2(logits(folder, image, tmp_path), expected) <= TOLERANCE


def test_a_file_that_is_not_an_image_is_refused(tiny_npz: Path, image: Path) -> None:
    image.write_bytes(b"text")
    with pytest.raises(OSError, match=r"cats\.png"):
        logits(tiny_npz, image, image.parent)
