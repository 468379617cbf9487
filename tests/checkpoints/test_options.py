"""Conversion options change values as asked, and results stay within their tolerances."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.command import assert_refused, run_here
from support.conversions import VERIFIED_LAYOUTS, arrays_of, bits_of, convert, verified
from support.networks import TINY

from bit.config import BitConfig
from convert import layouts
from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.options import ConversionOptions
from convert.errors import UsageError
from convert.files.base import file_sha256
from convert.layouts import LAYOUTS, READABLE
from convert.sources.synthetic import write_npz
from convert.verification.results import Verification


def errors(result: Verification, tap: str) -> list[tuple[float, float]]:
    return [(check.error, check.tolerance) for check in result.checks if check.tap == tap and check.side == "converted"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_every_weight_is_rounded_to_the_nearest(tiny_npz: Path, tmp_path: Path, dtype: str) -> None:
    plain = load_file(convert(tiny_npz, "timm", tmp_path / "plain") / "model.safetensors")
    found = bits_of(convert(tiny_npz, "timm", tmp_path / "rounded", options=ConversionOptions(dtype=dtype)))
    for key, array in plain.items():
        assert found[key] == array.astype(getattr(ml_dtypes, dtype, dtype)).tobytes(), key


@pytest.mark.parametrize("architecture", ["R14x1", pytest.param("R50x1", marks=pytest.mark.long)])
@pytest.mark.usefixtures("small_inputs")
@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 1e-4), ("float16", 1e-5)])
def test_rounding_stays_within_the_tolerance_and_uses_part_of_it(
    synthetic: Callable[[str], Path], tmp_path: Path, architecture: str, dtype: str, least: float
) -> None:
    folder = convert(synthetic(architecture), "timm", tmp_path / "out", options=ConversionOptions(dtype=dtype))
    result = verified(folder, synthetic(architecture), recordings=())
    assert result.passed
    assert (result.tensors_exact, result.tensors_changed) == (0, len(result_rows(folder)))
    for error, tolerance in errors(result, "logits"):
        assert least < error < tolerance < 1


def result_rows(folder: Path) -> list[object]:
    return list(json.loads((folder / "conversion.json").read_text())["tensors"])


@pytest.mark.long
def test_rounded_weights_that_are_converted_again_have_the_same_tolerance(
    synthetic: Callable[[str], Path], tmp_path: Path
) -> None:
    first = convert(synthetic("R14x1"), "timm", tmp_path / "first", options=ConversionOptions(dtype="bfloat16"))
    second = convert(first, "transformers", tmp_path / "second")
    result = verified(second, first)
    assert result.passed
    assert result.tensors_changed == 0
    once = errors(verified(first, synthetic("R14x1")), "logits")
    for (error, tolerance), (error_once, tolerance_once) in zip(errors(result, "logits"), once, strict=True):
        assert error == pytest.approx(error_once)
        assert tolerance == pytest.approx(tolerance_once, rel=0.02), "measured on the weights that were rounded before"


def test_values_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    arrays = arrays_of(TINY)
    arrays["resnet/head/conv2d/bias"][2] = 7e4
    np.savez(tmp_path / "a.npz", **arrays)
    result = run_here("convert", "a.npz", "--dtype", "float16", cwd=tmp_path)
    assert_refused(result, "resnet/head/conv2d/bias holds values up to 7e+04, which float16 cannot hold", tmp_path)


def test_values_that_are_too_small_for_float16_are_refused(tmp_path: Path) -> None:
    arrays = arrays_of(TINY)
    arrays["resnet/root_block/standardized_conv2d/kernel"] *= np.float32(1e-6)
    np.savez(tmp_path / "a.npz", **arrays)
    result = run_here("convert", "a.npz", "--dtype", "float16", cwd=tmp_path)
    assert_refused(result, "standardized_conv2d/kernel holds values so small that float16 is", tmp_path)


def test_a_value_that_was_rounded_wrongly_is_found(tiny_npz: Path, tmp_path: Path) -> None:
    from support.faults import forge

    folder = convert(tiny_npz, "timm", tmp_path / "out", options=ConversionOptions(dtype="bfloat16"))
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1  # the last bit of one weight
    path.write_bytes(content)
    forge(folder, "model.safetensors")
    result = verified(folder, tiny_npz)
    assert not result.passed
    assert any("is not what the recorded options make of the source" in problem for problem in result.problems)


@pytest.fixture(params=["without recordings", "with recordings"])
def source(request: pytest.FixtureRequest, tiny_npz: Path, synthetic: Callable[[str], Path]) -> Path:
    return tiny_npz if request.param == "without recordings" else synthetic("R14x1")


def test_a_head_is_dropped(source: Path, tmp_path: Path) -> None:
    assert_head_is_dropped(source, "transformers", tmp_path / "out")


@pytest.mark.usefixtures("small_inputs")
@pytest.mark.parametrize("layout", VERIFIED_LAYOUTS)
def test_a_head_is_dropped_in_every_layout(tiny_npz: Path, tmp_path: Path, layout: str) -> None:
    assert_head_is_dropped(tiny_npz, layout, tmp_path / "out")


def assert_head_is_dropped(source: Path, layout: str, target: Path) -> None:
    folder = convert(source, layout, target, options=ConversionOptions(head="drop"))
    with Checkpoint(folder) as converted:
        assert converted.config.num_labels == 0
    result = verified(folder, source)
    assert result.passed
    assert {check.tap for check in result.checks} >= {"pre_head", "pooled"}
    assert not errors(result, "logits")


def test_a_new_head_is_filled_with_zeros(source: Path, tmp_path: Path) -> None:
    assert_new_head_is_zeros(source, "transformers", tmp_path / "out")


@pytest.mark.usefixtures("small_inputs")
@pytest.mark.parametrize("layout", VERIFIED_LAYOUTS)
def test_a_new_head_is_filled_with_zeros_in_every_layout(tiny_npz: Path, tmp_path: Path, layout: str) -> None:
    assert_new_head_is_zeros(tiny_npz, layout, tmp_path / "out")


def assert_new_head_is_zeros(source: Path, layout: str, target: Path) -> None:
    folder = convert(source, layout, target, options=ConversionOptions(head="new:7"))
    with Checkpoint(folder) as converted:
        assert converted.config.num_labels == 7
        assert not converted.weights("head/kernel").any()
        assert not converted.weights("head/bias").any()
    result = verified(folder, source)
    assert result.passed
    assert {error for error, _ in errors(result, "logits")} == {0.0}


def test_a_new_head_has_no_class_names() -> None:
    named = TINY.replace(id2label=dict(enumerate("abcde")))
    assert ConversionOptions(head="new:5").config(named, LAYOUTS["timm"]).id2label is None
    assert ConversionOptions().config(named, LAYOUTS["timm"]).id2label == named.id2label


def test_a_dropped_head_can_be_added_again(tiny_npz: Path, tmp_path: Path) -> None:
    bare = convert(tiny_npz, "timm", tmp_path / "bare", options=ConversionOptions(head="drop"))
    assert verified(bare, tiny_npz).passed
    headed = convert(bare, "transformers", tmp_path / "headed", options=ConversionOptions(head="new:3"))
    assert verified(headed, bare).passed


@pytest.mark.parametrize("layout", ["timm", pytest.param("transformers", marks=pytest.mark.long)])
@pytest.mark.parametrize(("dtype", "most"), [("float64", 1e-12), ("float32", 1e-5)])
def test_compensated_kernels_compute_googles_function_with_the_librarys_epsilon(
    synthetic: Callable[[str], Path], tmp_path: Path, layout: str, dtype: str, most: float
) -> None:
    options = ConversionOptions(dtype=dtype, ws_eps="compensate")
    folder = convert(synthetic("R14x1"), layout, tmp_path / "out", options=options)
    with Checkpoint(folder) as converted, Checkpoint(synthetic("R14x1")) as source:
        assert converted.config.ws_eps == 1e-8
        stem = source.weights("stem/kernel")
        np.testing.assert_allclose(converted.weights("stem/kernel"), 10 * stem, rtol=1e-7)
        np.testing.assert_array_equal(converted.weights("head/kernel"), source.weights("head/kernel"))
    result = verified(folder, synthetic("R14x1"))
    assert result.passed
    assert result.network.epsilon is None, "the library computes Google's function, so there is no effect to report"
    assert max(error for error, _ in errors(result, "logits")) < most


def test_compensation_can_be_undone(tiny_npz: Path, tmp_path: Path) -> None:
    there = convert(
        tiny_npz, "timm", tmp_path / "there", options=ConversionOptions(dtype="float64", ws_eps="compensate")
    )
    back = convert(there, "google", tmp_path / "back", options=ConversionOptions(dtype="float32", ws_eps="compensate"))
    assert file_sha256(back / "tiny.npz") == file_sha256(tiny_npz)
    kept = convert(there, "google", tmp_path / "kept")
    result = verified(kept, there)
    assert result.passed
    assert result.network.epsilon is not None, "not undone, Google's code computes another function, which is reported"


def test_a_layout_that_does_not_state_the_epsilon_keeps_it_in_the_manifest(tiny_npz: Path, tmp_path: Path) -> None:
    there = convert(tiny_npz, "timm", tmp_path / "there", options=ConversionOptions(ws_eps="compensate"))
    for layout in READABLE:
        with Checkpoint(convert(there, layout, tmp_path / layout)) as converted:
            assert converted.config.ws_eps == 1e-8


@pytest.mark.parametrize("head", ["new", "new:0", "new:-1", "new:1e3", "zero", ""])
def test_an_invalid_head_is_refused(head: str) -> None:
    with pytest.raises(UsageError, match="keep, drop, or new:N"):
        ConversionOptions(head=head)


@pytest.mark.parametrize(
    ("option", "value", "suggestion"),
    [
        ("head", "dropp", "drop"),
        ("dtype", "fp16", "float16"),
        ("dtype", "FP32", "float32"),
        ("dtype", "bf16", "bfloat16"),
        ("dtype", "half", "float16"),
        ("dtype", "double", "float64"),
        ("dtype", "flot64", "float64"),
        ("ws_eps", "compensated", "compensate"),
        ("profile", "Transformer", "transformers"),
    ],
)
def test_an_invalid_value_gets_a_suggestion(option: str, value: str, suggestion: str) -> None:
    with pytest.raises(UsageError, match=f"invalid {option} '{value}': .*; did you mean {suggestion}"):
        ConversionOptions(**{option: value})


def test_an_unknown_layout_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"unknown layout 'tranformers'.*; did you mean transformers"):
        layouts.find("tranformers")
    assert layouts.find("timm") is LAYOUTS["timm"]


def test_the_command_reports_what_it_changed(tiny_npz: Path, tmp_path: Path) -> None:
    arguments = ("--to", "timm", "--head", "new:3", "--dtype", "bfloat16", "--ws-eps", "compensate")
    result = run_here("convert", tiny_npz, *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "34 tensors are exactly the source's after the stated change" in result.stdout
    assert "use them for inference" in result.stderr
    manifest = json.loads((tmp_path / "converted" / "tiny" / "timm" / "conversion.json").read_text())
    options = {"head": "new:3", "dtype": "bfloat16", "ws_eps": "compensate", "profile": "timm", "labels": None}
    assert manifest["options"] == options
    assert (manifest["classes"], manifest["ws_eps"]) == (3, 1e-8)
    assert [row["scale"] for row in manifest["tensors"] if "scale" in row] == [10.0] * 12


@pytest.mark.usefixtures("small_inputs")
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(TINY, id="small"),
        *(
            pytest.param(BitConfig.from_architecture(name, num_labels=9), marks=pytest.mark.long, id=name)
            for name in ("R14x1", "R26x1")
        ),
    ],
)
def test_the_tolerance_for_rounding_holds_for_any_seed(tmp_path: Path, config: BitConfig) -> None:
    for seed in range(1, 5):
        write_npz(tmp_path / f"{seed}.npz", config, seed)
        folder = convert(
            tmp_path / f"{seed}.npz", "timm", tmp_path / f"out{seed}", options=ConversionOptions(dtype="bfloat16")
        )
        assert verified(folder, tmp_path / f"{seed}.npz").passed
