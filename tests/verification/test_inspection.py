from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.command import assert_refused, run_here
from support.conversions import arrays_of, convert
from support.networks import TINY

from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.options import ConversionOptions
from convert.layouts import READABLE
from convert.network.oracle import standardize
from convert.progress import silent
from convert.verification.inspection import Inspection, inspect

NARROW = "resnet/block1/unit02/b/standardized_conv2d/kernel"


def inspected(path: Path) -> Inspection:
    with Checkpoint(path) as checkpoint:
        return inspect(checkpoint, silent)


@pytest.mark.parametrize("layout", list(READABLE))
def test_a_checkpoint_of_any_layout_is_described(tiny_npz: Path, tmp_path: Path, layout: str) -> None:
    found = inspected(convert(tiny_npz, layout, tmp_path / "out"))
    assert (found.layout, found.container) == (layout, READABLE[layout].export.container)
    assert (found.architecture, found.classes, found.dtype) == (TINY.architecture, 5, "float32")
    assert found.parameters == sum(array.size for array in arrays_of(TINY).values())
    assert found.bytes == 4 * found.parameters
    assert not found.zero_head
    assert found.nonfinite == ()


def test_the_filter_that_another_epsilon_affects_most_is_named(tmp_path: Path) -> None:
    arrays = arrays_of(TINY)
    arrays[NARROW][..., 7] *= 1e-4
    np.savez(tmp_path / "a.npz", **arrays)
    found = inspected(tmp_path / "a.npz")
    assert found.worst_filter == "block1/unit02/conv2/kernel[…, 7]"
    assert found.least_variance == pytest.approx(arrays[NARROW][..., 7].astype(np.float64).var())
    assert [cost.layout for cost in found.epsilon_costs] == ["transformers", "timm"]
    kernel = arrays[NARROW].astype(np.float64)
    googles, theirs = (np.abs(standardize(kernel, eps)[..., 7]).max() for eps in (1e-10, 1e-8))
    for cost in found.epsilon_costs:
        assert cost.deviation == pytest.approx(1 - theirs / googles)
        assert cost.deviation > 0.5


def test_a_head_of_zeros_and_values_that_are_not_finite_are_reported(tmp_path: Path) -> None:
    arrays = arrays_of(TINY)
    arrays["resnet/head/conv2d/kernel"][:] = arrays["resnet/head/conv2d/bias"][:] = 0
    arrays[NARROW][0, 0, 0, 0] = np.nan
    np.savez(tmp_path / "a.npz", **arrays)
    found = inspected(tmp_path / "a.npz")
    assert found.zero_head
    assert found.nonfinite == (NARROW,)


def test_weights_of_extreme_values_are_described_without_a_warning(tmp_path: Path) -> None:
    arrays = {key: array.astype(np.float64) for key, array in arrays_of(TINY).items()}
    arrays[NARROW] *= 1e300
    bias = arrays["resnet/head/conv2d/bias"]
    bias[:] = np.full(bias.shape, 0x7FF4 << 48, np.uint64).view(np.float64)  # a NaN that signals
    np.savez(tmp_path / "a.npz", **arrays)
    assert inspected(tmp_path / "a.npz").nonfinite == ("resnet/head/conv2d/bias",)


def test_a_missing_head_is_not_a_head_of_zeros(tiny_npz: Path, tmp_path: Path) -> None:
    found = inspected(convert(tiny_npz, "timm", tmp_path / "out", options=ConversionOptions(head="drop")))
    assert (found.classes, found.zero_head) == (0, False)


def test_compensated_weights_are_not_affected_by_the_epsilon_of_timm(tiny_npz: Path, tmp_path: Path) -> None:
    found = inspected(convert(tiny_npz, "timm", tmp_path / "out", options=ConversionOptions(ws_eps="compensate")))
    assert found.ws_eps == 1e-8
    assert {cost.layout for cost in found.epsilon_costs} == {"google", "google-tf2"}, "the others read it"


def test_the_command_prints_the_description_and_writes_nothing(tiny_npz: Path, tmp_path: Path) -> None:
    result = run_here("inspect", tiny_npz, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "layout google, npz, float32, 34 tensors" in result.stdout
    assert "timm standardizes with epsilon 1e-08, which makes the output of that filter" in result.stdout
    values = json.loads(run_here("inspect", tiny_npz, "--json", cwd=tmp_path).stdout)
    assert (values["layout"], values["parameters"]) == ("google", inspected(tiny_npz).parameters)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_a_checkpoint_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_text("text")
    assert_refused(run_here("inspect", "a.npz", cwd=tmp_path), "is not a file of weights", tmp_path)
