"""Preprocessing is judged by the pixels that it makes, apart from the network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.conversions import convert, verified
from support.faults import plant_preprocessing

from bit.image_processing import BICUBIC, CLIP_MEAN, CLIP_STD, BitImageProcessorPil
from convert.reporting.text import verdicts
from convert.verification.pixels import compare_image, compare_pixels, inputs, stated_processor

GOOGLE = BitImageProcessorPil()


def test_the_same_settings_make_the_same_pixels() -> None:
    assert [check.error for check in compare_pixels(GOOGLE, GOOGLE)] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_mean": CLIP_MEAN, "image_std": CLIP_STD}, "CLIP's"),
        ({"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}, "ImageNet's"),
        ({"resample": BICUBIC}, "bicubically"),
        ({"do_normalize": False}, r"\[0, 1\]"),
        ({"do_rescale": False}, "not scaled"),
        ({"do_resize": False}, "not resized"),
        ({"size": {"shortest_edge": 256}, "do_center_crop": True}, "those of timm"),
    ],
)
def test_a_known_mistake_is_named(settings: dict[str, Any], words: str) -> None:
    for check in compare_pixels(BitImageProcessorPil(**settings), GOOGLE):
        assert not check.passed
        assert check.explanation is not None
        assert pytest.approx(0) != check.error
        assert re.search(words, check.explanation), check


def test_channels_in_another_order_and_nearest_pixels_are_named() -> None:
    for image in inputs().values():
        right = GOOGLE(image)["pixel_values"][0]
        check = compare_image("", right[::-1], image, GOOGLE)
        assert check.explanation == "the channels are in the order BGR"
        assert "height and width" in str(compare_image("", right.swapaxes(1, 2), image, GOOGLE).explanation)
        assert compare_image("", np.full_like(right, np.nan), image, GOOGLE).explanation is None
        assert not compare_image("", np.full_like(right, np.nan), image, GOOGLE).passed


def test_timms_configuration_states_a_preprocessing_too(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "timm", tmp_path / "out")
    stated = stated_processor({"config.json": json.loads((folder / "config.json").read_text())})
    assert stated is not None
    assert (stated.size, stated.crop_size["height"], stated.do_center_crop) == ({"shortest_edge": 256}, 224, True)


def test_other_preprocessing_and_another_model_are_two_verdicts(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "transformers", tmp_path / "out")
    plant_preprocessing(folder, lambda values: values.update(image_mean=[0.4, 0.4, 0.4]))
    result = verified(folder, tiny_npz)
    assert (result.model_passed, result.pixels_passed, result.passed) == (True, False, False)
    verdict = " ".join(verdicts(result))
    assert "the model is verified" in verdict
    assert "the preprocessing differs" in verdict
    report = json.loads((folder / "verification.json").read_text())
    assert (report["passed"], report["model_passed"], report["pixels_passed"]) == (False, True, False)


def test_invalid_settings_are_a_difference_not_a_crash(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "transformers", tmp_path / "out")
    plant_preprocessing(folder, lambda values: values.update(size="large"))
    result = verified(folder, tiny_npz)
    assert not result.pixels_passed
    json.loads((folder / "verification.json").read_text(), parse_constant=pytest.fail)
