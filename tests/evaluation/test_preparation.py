from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.conversions import convert
from support.pictures import save_picture

from bit.image_folder import read_images
from bit.image_processing import BitImageProcessorPil
from convert.checkpoints.checkpoint import Checkpoint
from convert.errors import CheckpointError
from convert.evaluation import preparation
from convert.evaluation.preparation import Batches, effective, in_words, stated_preprocessing


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ("transformers", "resized to 480×480 (bilinear), small images to 128×128, values in [-1, 1]"),
        ("timm", "resized to 256 on the shorter edge (bilinear), cropped to 224×224, values in [-1, 1]"),
        ("onnx", "resized to 480×480 (bilinear), small images to 128×128, values in [-1, 1]"),
        ("google", None),
    ],
)
def test_what_a_folder_states_is_read(tiny_npz: Path, tmp_path: Path, layout: str, words: str | None) -> None:
    with Checkpoint(convert(tiny_npz, layout, tmp_path / layout)) as checkpoint:
        found = stated_preprocessing(checkpoint)
    assert (None if found is None else in_words(found)) == words


def test_invalid_settings_are_refused(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "transformers", tmp_path / "out")
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 30_000}))
    with Checkpoint(folder) as checkpoint, pytest.raises(CheckpointError, match="preprocessing that is not valid"):
        stated_preprocessing(checkpoint)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_mean": (0.4, 0.5, 0.6)}, "resized to 480×480 (bilinear), less 0.4/0.5/0.6, divided by 0.5/0.5/0.5"),
        ({"do_rescale": False, "do_normalize": False}, "resized to 480×480 (bilinear), not scaled to [0, 1]"),
        ({"do_resize": False, "do_normalize": False}, "as they are"),
        (
            {"size": {"shortest_edge": 9}, "resample": 3},
            "resized to 9 on the shorter edge (bicubic), values in [-1, 1]",
        ),
    ],
)
def test_words_for_unusual_settings(settings: dict[str, object], words: str) -> None:
    assert in_words(BitImageProcessorPil(**settings)) == words  # type: ignore[arg-type]


@pytest.mark.parametrize("kept", [1 << 29, 0])
def test_batches_hold_every_image_once_with_others_of_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr(preparation, "KEPT_BYTES", kept)
    for number in range(5):
        save_picture(tmp_path / "ab"[number % 2] / f"{number}.png", number, (8, 8 + number % 2, 3))
    images = read_images(tmp_path)
    processor = BitImageProcessorPil(do_resize=False)
    batches = Batches(images, processor, 2)
    for _ in range(2):
        found = list(batches)
        assert sorted(place for batch in found for place in batch.places) == list(range(5))
        assert sorted(batch.images.shape for batch in found) == [(1, 8, 8, 3), (2, 8, 8, 3), (2, 8, 9, 3)]
        for batch in found:
            for place, pixels in zip(batch.places, batch.images, strict=True):
                np.testing.assert_array_equal(pixels, np.asarray(images.open(place), np.float32) / 127.5 - 1)


def test_without_a_processor_images_stay_as_they_are(tmp_path: Path) -> None:
    for label in ("a", "b"):
        save_picture(tmp_path / label / "x.png", 1, (5, 6, 3))
    images = read_images(tmp_path)
    (batch,) = Batches(images, None, 9)
    np.testing.assert_array_equal(batch.images[1], np.asarray(images.open(1)), strict=True)


def test_settings_without_effect_make_no_difference() -> None:
    square = {"height": 32, "width": 32}
    ours = BitImageProcessorPil(size=square, image_mean=[0.5] * 3)
    timms = BitImageProcessorPil(size=square, crop_size=square, small_size=square)
    assert effective(ours) == effective(timms) != effective(BitImageProcessorPil(size=square, do_center_crop=True))
    for settings in ({"do_resize": False}, {"do_normalize": False}, {"do_rescale": False}):
        changed = BitImageProcessorPil(size=square, **settings)  # type: ignore[arg-type]
        assert effective(changed) != effective(ours)
        image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        np.testing.assert_array_equal(*(one(image)["pixel_values"][0] for one in (changed, effective(changed))))
