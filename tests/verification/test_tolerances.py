"""No fault enlarges a tolerance, and no rounding is allowed for twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.conversions import convert, verified
from support.faults import plant_weights

from convert.checkpoints.options import ConversionOptions

Synthetic = Callable[[str], Path]
HALF = ConversionOptions(dtype="float16")


@pytest.mark.parametrize("with_source", [True, False])
def test_a_fault_in_rounded_weights_does_not_enlarge_the_tolerance(
    synthetic: Synthetic, tmp_path: Path, with_source: bool
) -> None:
    folder = convert(synthetic("R14x1"), "transformers", tmp_path / "out", options=HALF)
    plant_weights(folder, lambda state: state["bit.encoder.stages.1.layers.0.conv2.weight"].fill(0.5))
    result = verified(folder, synthetic("R14x1") if with_source else None)
    failed = {check.tap for check in result.checks if not check.passed}
    assert {"block2/unit01", "block3/unit01"} <= failed


def test_weights_that_were_rounded_before_get_no_tolerance_for_rounding_again(
    synthetic: Synthetic, tmp_path: Path
) -> None:
    rounded = convert(synthetic("R14x1"), "transformers", tmp_path / "rounded", options=HALF)
    result = verified(convert(rounded, "timm", tmp_path / "out"), rounded, ("pytorch",))
    assert result.passed
    isolated = [check for check in result.checks if check.mode == "isolated"]
    assert max(check.tolerance for check in isolated) == pytest.approx(1e-9)
    float64 = [check for check in result.checks if check.mode == "end-to-end" and check.dtype == "float64"]
    assert max(check.tolerance for check in float64) > 1e-6, "compared with recordings of the unrounded weights"
