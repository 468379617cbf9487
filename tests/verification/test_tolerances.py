"""No fault enlarges a tolerance, and no rounding is allowed for twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.conversions import convert, verified
from support.faults import plant_weights

from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.options import ConversionOptions
from convert.progress import silent
from convert.references.recorder import record

Synthetic = Callable[[str], Path]
HALF = ConversionOptions(dtype="float16")


def test_a_fault_in_rounded_weights_does_not_enlarge_the_tolerance(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "transformers", tmp_path / "out", options=HALF)
    plant_weights(folder, lambda state: state["bit.encoder.stages.0.layers.1.conv2.weight"].fill(0.5))
    result = verified(folder, tiny_npz)
    failed = {check.tap for check in result.checks if not check.passed}
    assert {"block1/unit02", "block2/unit01"} <= failed


def test_without_the_source_a_fault_does_not_enlarge_the_tolerance_either(synthetic: Synthetic, tmp_path: Path) -> None:
    folder = convert(synthetic("R14x1"), "transformers", tmp_path / "out", options=HALF)
    plant_weights(folder, lambda state: state["bit.encoder.stages.1.layers.0.conv2.weight"].fill(0.5))
    result = verified(folder, None)
    failed = {check.tap for check in result.checks if not check.passed}
    assert {"block2/unit01", "block3/unit01"} <= failed


def test_weights_that_were_rounded_before_get_no_tolerance_for_rounding_again(tiny_npz: Path, tmp_path: Path) -> None:
    with Checkpoint(tiny_npz) as checkpoint:
        record(checkpoint, tmp_path / "recordings", silent, frameworks=())
    rounded = convert(tiny_npz, "transformers", tmp_path / "rounded", options=HALF)
    folder = convert(rounded, "timm", tmp_path / "out")
    result = verified(folder, rounded, ("pytorch",), recordings=(tmp_path / "recordings",))
    assert result.passed
    isolated = [check for check in result.checks if check.mode == "isolated"]
    assert max(check.tolerance for check in isolated) == pytest.approx(1e-12)
    float64 = [check for check in result.checks if check.mode == "end-to-end" and check.dtype == "float64"]
    assert max(check.tolerance for check in float64) > 1e-6, "compared with recordings of the unrounded weights"
