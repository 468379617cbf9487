"""Each profile prepares images in the same way in every library."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.command import assert_refused, run_here
from support.conversions import convert, verified
from support.faults import forge
from support.networks import TINY

from bit.image_processing import PROFILES, BitImageProcessorPil
from convert.checkpoints.options import ConversionOptions
from convert.errors import UsageError
from convert.layouts import LAYOUTS
from convert.published.preprocessing import evaluated_by, is_profile, preprocessor

NAMES = ("mine", "BiT-M-R50x1", "BiT-M-R50x1-ILSVRC2012", "BiT-M-R50x1-CIFAR10", "R50x1_160")


@pytest.mark.parametrize("profile", PROFILES)
def test_a_checkpoint_that_was_not_published_gets_the_unchanged_profile(profile: str) -> None:
    assert preprocessor(profile, "mine") == BitImageProcessorPil.from_profile(profile).to_dict()


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("BiT-M-R50x1-ILSVRC2012", 480),
        ("BiT-M-R50x1-CIFAR10", 128),
        ("BiT-M-R50x3-run0-svhn", 128),
        ("BiT-M-R50x3-run0-dtd", 480),
    ],
)
def test_google_resizes_small_images_to_a_smaller_square(name: str, size: int) -> None:
    found = preprocessor("google", name)
    assert (found["size"], found["do_center_crop"]) == ({"height": size, "width": size}, False)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("profile", PROFILES)
def test_timm_and_bit_prepare_an_image_in_the_same_way(profile: str, name: str, tmp_path: Path) -> None:
    import timm.data

    config = LAYOUTS["timm"].export.companions(TINY, "float32", name, profile)["config.json"]
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=config["pretrained_cfg"]))
    files = LAYOUTS["transformers"].export.companions(TINY, "float32", name, profile)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(files["preprocessor_config.json"]))
    # Twice as wide as high: an odd margin is cropped half a pixel more on different sides by the two.
    image = Image.fromarray(np.random.default_rng(7).integers(0, 256, (150, 300, 3), np.uint8))
    (ours,) = BitImageProcessorPil.from_pretrained(tmp_path)(image)["pixel_values"]
    np.testing.assert_allclose(ours, transform(image).numpy(), atol=1e-6)


def test_the_profile_is_in_the_manifest_and_the_file_must_agree(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "transformers", tmp_path / "out", options=ConversionOptions(profile="timm"))
    path = folder / "preprocessor_config.json"
    assert json.loads((folder / "conversion.json").read_text())["options"]["profile"] == "timm"
    assert json.loads(path.read_text()) == preprocessor("timm", "tiny")
    assert verified(folder, tiny_npz).passed
    path.write_text(json.dumps(preprocessor("google", "tiny")))
    forge(folder, path.name)
    result = verified(folder, tiny_npz)
    assert (result.model_passed, result.pixels_passed) == (True, False)
    assert result.pixels[0].explanation == "size and crop are those of google"


@pytest.mark.parametrize(
    ("layout", "profile"),
    [("transformers", "google"), ("timm", "timm"), ("onnx", "google"), ("keras-saved", "google"), ("google", None)],
)
def test_each_layout_has_a_default_profile(tiny_npz: Path, tmp_path: Path, layout: str, profile: str | None) -> None:
    folder = convert(tiny_npz, layout, tmp_path / "out")
    assert json.loads((folder / "conversion.json").read_text())["options"]["profile"] == profile


def test_a_manifest_without_a_profile_means_the_layouts_default(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "timm", tmp_path / "out")
    manifest = json.loads((folder / "conversion.json").read_text())
    del manifest["options"]["profile"]
    (folder / "conversion.json").write_text(json.dumps(manifest))
    assert verified(folder, tiny_npz).passed


def test_an_onnx_model_states_the_profile(tiny_npz: Path, tmp_path: Path) -> None:
    import onnx

    folder = convert(tiny_npz, "onnx", tmp_path / "out", options=ConversionOptions(profile="transformers"))
    properties = {item.key: item.value for item in onnx.load(folder / "model.onnx").metadata_props}
    assert json.loads(properties["preprocessing"]) == preprocessor("transformers", "tiny")
    assert verified(folder, tiny_npz).passed


def test_an_invalid_profile_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="invalid profile 'clip': choose from google, timm, transformers"):
        ConversionOptions(profile="clip")
    result = run_here("convert", "Synthetic-R14x1", "--to", "google", "--profile", "timm", cwd=tmp_path)
    assert_refused(result, "google does not state how images are prepared; leave --profile out", tmp_path)


def test_a_size_of_its_own_replaces_both_of_google() -> None:
    settings = preprocessor("google:32", "BiT-M-R50x1")
    assert settings["size"] == {"height": 32, "width": 32}
    assert "small_size" not in settings
    assert settings["do_center_crop"] is False
    how = evaluated_by("google:32", "BiT-M-R50x1")
    assert (how.size, how.crop_pct, how.square, how.interpolation) == (32, 1.0, True, "bilinear")
    assert [is_profile(name) for name in ("google", "timm", "google:1", "google:2048")] == [True] * 4
    assert [is_profile(name) for name in ("google:0", "google:2049", "timm:32", "google:", "google:3.5")] == [False] * 5
