"""Image processors, compared with those of transformers with the same settings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.odd import assert_one_line, odd_values
from transformers.models.bit.image_processing_bit import BitImageProcessor as TheirTensor
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil as TheirPil

from bit import BitImageProcessor, BitImageProcessorPil
from bit.image_processing import MAX_AREA, PROFILES

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")

assert transformers

rng = np.random.default_rng(0)


@st.composite
def images(draw: st.DrawFn) -> Any:
    """PIL, NumPy or a tensor; channels first or last; bytes or fractions; 1, 3 or 4 channels."""
    height, width = draw(st.integers(5, 70)), draw(st.integers(5, 70))
    channels = draw(st.sampled_from([1, 3, 4]))
    seeded = np.random.default_rng(draw(st.integers(0, 1000)))
    pixels = seeded.integers(0, 256, (height, width, channels), dtype=np.uint8)
    kind = draw(st.sampled_from(["pil", "palette", "numpy", "fractions", "tensor", "gray"]))
    if kind == "pil":
        return Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    if kind == "palette":
        return Image.fromarray(pixels[:, :, :1].repeat(3, 2)).convert("P")
    if kind == "gray":
        return pixels[:, :, 0]
    if kind == "fractions":
        pixels = pixels.astype(np.float32) / 255
    if draw(st.booleans()):
        pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return torch.from_numpy(pixels) if kind == "tensor" else pixels


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    edge, other = draw(st.integers(4, 60)), draw(st.integers(4, 60))
    return {
        "do_resize": draw(st.booleans()),
        "size": draw(st.sampled_from([{"shortest_edge": edge}, {"height": edge, "width": other}])),
        "resample": draw(st.sampled_from([2, 3])),
        "do_center_crop": draw(st.booleans()),
        "crop_size": {"height": draw(st.integers(1, 50)), "width": draw(st.integers(1, 50))},
        "do_rescale": draw(st.booleans()),
        "do_normalize": draw(st.booleans()),
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.6, 0.7],
    }


def with_channels(image: Any) -> Any:
    """transformers takes no array `[H, W]` by itself."""
    return image[None] if getattr(image, "ndim", 3) == 2 else image


@settings(max_examples=300)
@given(images(), options())
def test_the_pillow_processor_equals_that_of_transformers(image: Any, chosen: dict[str, Any]) -> None:
    (ours,) = BitImageProcessorPil(**chosen)(image)["pixel_values"]
    (theirs,) = TheirPil(**chosen)(with_channels(image))["pixel_values"]
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=300)
@given(images(), options())
def test_the_tensor_processor_is_within_a_level_of_that_of_transformers(image: Any, chosen: dict[str, Any]) -> None:
    """torchvision's byte and float paths differ by up to one of 255 levels, and so may ours and theirs."""
    (ours,) = BitImageProcessor(**chosen)(image)["pixel_values"]
    (theirs,) = TheirTensor(**chosen)(with_channels(image))["pixel_values"]
    assert ours.dtype == theirs.dtype
    level = 1.0 if theirs.dtype == torch.uint8 or not chosen["do_rescale"] else 1 / 255
    if chosen["do_normalize"]:
        level /= min(chosen["image_std"])
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=level + 1e-5)


def test_the_defaults_are_those_of_bit() -> None:
    for processor in (BitImageProcessor(), BitImageProcessorPil()):
        assert processor.image_mean == processor.image_std == (0.5, 0.5, 0.5)
        pixels = processor(np.full((50, 60, 3), 255, np.uint8), return_tensors="np")["pixel_values"]
        assert pixels.shape == (1, 3, 480, 480)
        np.testing.assert_allclose(pixels, 1)


@pytest.mark.parametrize(
    ("profile", "large", "small"),
    [("google", (480, 480), (128, 128)), ("timm", (224, 224), (224, 224)), ("transformers", (224, 224), (224, 224))],
)
def test_each_profile_gives_the_size_of_the_library(
    profile: str, large: tuple[int, int], small: tuple[int, int]
) -> None:
    for kind in (BitImageProcessor, BitImageProcessorPil):
        processor = kind.from_profile(profile)
        for shape, expected in (((97, 96, 3), large), ((95, 96, 3), small)):
            pixels = processor(np.zeros(shape, np.uint8), return_tensors="pt")["pixel_values"]
            assert tuple(pixels.shape[2:]) == expected
            assert pixels.unique().tolist() == [-1]


def test_a_list_a_batch_and_single_images_give_the_same() -> None:
    batch = rng.integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    processor = BitImageProcessorPil.from_profile("timm")
    together = processor(batch, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(processor(list(batch), return_tensors="np")["pixel_values"], together)
    for image, expected in zip(batch, together, strict=True):
        np.testing.assert_array_equal(processor(image)["pixel_values"][0], expected)


@pytest.mark.parametrize("kind", [BitImageProcessor, BitImageProcessorPil])
def test_the_result_can_have_channels_last(kind: Any) -> None:
    image = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    first = kind()(image, return_tensors="np")["pixel_values"]
    last = kind()(image, return_tensors="np", data_format="channels_last")["pixel_values"]
    np.testing.assert_array_equal(first.transpose(0, 2, 3, 1), last)


def test_input_data_format_decides_for_an_ambiguous_image() -> None:
    image = rng.integers(0, 256, (3, 40, 3), dtype=np.uint8)
    keep = BitImageProcessorPil(do_resize=False, do_rescale=False, do_normalize=False)
    assert keep(image)["pixel_values"][0].shape == (3, 40, 3)
    assert keep(image, input_data_format="channels_last")["pixel_values"][0].shape == (3, 3, 40)


@pytest.mark.parametrize("kind", [BitImageProcessor, BitImageProcessorPil])
def test_settings_survive_their_file_and_are_read_by_transformers(kind: Any, tmp_path: Path) -> None:
    processor = kind.from_profile("transformers", do_rescale=False)
    processor.save_pretrained(tmp_path)
    assert dict(kind.from_pretrained(tmp_path).to_dict()) == processor.to_dict()
    theirs = TheirPil.from_pretrained(tmp_path)
    assert list(theirs.image_mean) == [0.5, 0.5, 0.5]
    assert dict(theirs.size)["shortest_edge"] == 224
    values = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert values["image_processor_type"] == "BitImageProcessor"


@pytest.mark.parametrize("kind", [BitImageProcessor, BitImageProcessorPil])
@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ("cat.jpg", TypeError, "not str"),
        (None, TypeError, "not NoneType"),
        ([], ValueError, "no image in the list"),
        (np.zeros((0, 3, 8, 8), np.uint8), ValueError, "no image in the batch"),
        (np.zeros((2, 2, 2, 2, 2), np.uint8), ValueError, r"not \[2, 2, 2, 2, 2\]"),
        (np.zeros((0, 5, 3), np.uint8), ValueError, r"not \[0, 5, 3\]"),
        (np.zeros((7, 9, 5), np.uint8), ValueError, "must have 1, 3 or 4 channels"),
        (np.zeros((7, 9, 3), bool), ValueError, "not bool"),
        (np.zeros((7, 9, 3), complex), ValueError, "not complex128"),
        (np.array([["a", "b"]]), ValueError, "must be numbers"),
        (np.full((7, 9, 4), 2.5, np.float32), ValueError, "values from 0 to 1"),
    ],
)
def test_anything_but_an_image_is_refused(kind: Any, image: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        kind()(image)


def test_pillow_refuses_values_that_do_not_fit_in_a_byte() -> None:
    with pytest.raises(ValueError, match="from 0 to 255"):
        BitImageProcessorPil()(np.full((7, 9, 3), 300))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"size": {"height": 5}}, "size is"),
        ({"size": {"shortest_edge": 0}}, "size is"),
        ({"crop_size": {"shortest_edge": 5}}, "crop_size is"),
        ({"resample": 9}, "2 is bilinear, 3 bicubic"),
        ({"image_std": [0, 1, 1]}, "image_std"),
        ({"image_mean": [0.5]}, "do not fit"),
        ({"size": 30_000}, "from 1 to 2048"),
        ({"size": {"height": 2049, "width": 1}}, "size is"),
        ({"size": 224.0}, "size is 224.0"),
        ({"size": True}, "size is True"),
        ({"size": float("nan")}, "size is nan"),
        ({"size": {"shortest_edge": 10**400}}, "size is"),
        ({"small_size": {}}, "small_size is {}"),
        ({"small_size": 0}, "small_size is"),
        ({"crop_size": -1}, "crop_size is"),
        ({"crop_size": {"height": 1e9, "width": 1}}, "crop_size is"),
        ({"resample": 2.0}, "resample is 2.0"),
        ({"do_resize": 1}, "do_resize is 1"),
        ({"rescale_factor": 0}, "rescale_factor is 0"),
        ({"rescale_factor": float("nan")}, "rescale_factor is nan"),
        ({"rescale_factor": 10**400}, "rescale_factor is 1000"),
        ({"image_mean": [10**400] * 3}, "image_mean is"),
        ({"image_mean": [float("nan")] * 3}, "image_mean is"),
        ({"image_mean": ["0.5"] * 3}, "image_mean is"),
        ({"image_std": [-1, 1, 1]}, "image_std is"),
        ({"image_std": [1e-300, 1, 1]}, "image_std is"),
        ({"image_std": 1}, "image_std is 1"),
    ],
)
def test_invalid_settings_are_refused(chosen: dict[str, Any], message: str) -> None:
    for kind in (BitImageProcessor, BitImageProcessorPil):
        with pytest.raises(ValueError, match=message) as caught:
            kind(**chosen)
        assert_one_line(caught.value)


@settings(max_examples=600)
@given(
    st.sampled_from(list(PROFILES)),
    st.dictionaries(
        st.sampled_from([field.name for field in dataclasses.fields(BitImageProcessor)]), odd_values, max_size=3
    ),
)
def test_odd_settings_prepare_finite_pixels_or_give_one_line(profile: str, values: dict[str, Any]) -> None:
    image = np.zeros((6, 9, 3), np.uint8)
    for kind in (BitImageProcessor, BitImageProcessorPil):
        try:
            (pixels,) = kind.from_dict({**PROFILES[profile], **values})(image)["pixel_values"]
        except ValueError as error:
            assert_one_line(error)
        else:
            assert np.isfinite(np.asarray(pixels)).all()


@pytest.mark.parametrize("kind", [BitImageProcessor, BitImageProcessorPil])
def test_a_prepared_image_has_a_limit(kind: Any) -> None:
    """A large image that is not resized, and a long one whose short edge is scaled up."""
    assert MAX_AREA == 2048 * 2048
    large = np.zeros((2049, 2048, 1), np.uint8)
    with pytest.raises(ValueError, match="2049×2048 pixels"):
        kind(do_resize=False)(large)
    assert kind(do_resize=False, do_center_crop=True)(large)["pixel_values"][0].shape == (3, 224, 224)
    with pytest.raises(ValueError, match="256×2560000 pixels"):
        kind.from_profile("timm")(np.zeros((2, 20_000, 3), np.uint8))


def test_an_invalid_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"size": 30000}')
    with pytest.raises(ValueError, match=rf"^{tmp_path}/preprocessor_config.json: size is {{'shortest_edge': 30000}}"):
        BitImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", [BitImageProcessor, BitImageProcessorPil])
@pytest.mark.parametrize("values", [{}, {"size": 100, "crop_size": 90}, {"size": {"height": 30, "width": 40}}])
def test_missing_settings_are_those_of_transformers(kind: Any, values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    image = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    reference = TheirPil if kind is BitImageProcessorPil else TheirTensor
    (theirs,) = reference.from_pretrained(tmp_path)(image)["pixel_values"]
    (ours,) = kind.from_pretrained(tmp_path)(image)["pixel_values"]
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=0 if kind is BitImageProcessorPil else 0.02)


def test_changing_a_processor_does_not_change_the_profile() -> None:
    BitImageProcessor.from_profile("google").size["height"] = 7
    assert BitImageProcessor.from_profile("google").size["height"] == 480


def test_images_of_more_than_256_levels_are_refused_not_saturated() -> None:
    with pytest.raises(ValueError, match="more than 256 levels"):
        BitImageProcessor()(Image.fromarray(np.zeros((8, 8), np.uint16)))


def test_images_of_several_sizes_do_not_form_a_batch() -> None:
    several = [np.zeros((8, 9, 3), np.uint8), np.zeros((9, 9, 3), np.uint8)]
    with pytest.raises(ValueError, match="do not form a batch"):
        BitImageProcessorPil(do_resize=False)(several, return_tensors="np")
