"""No fault makes room for itself, and no rounding has room twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.conversions import convert, verified
from support.faults import plant_weights

from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.options import ConversionOptions
from convert.progress import silent
from convert.verification.verify import verify

Synthetic = Callable[[str], Path]


@pytest.mark.parametrize("source_at_hand", [True, False])
def test_a_fault_makes_no_room_for_itself_where_weights_were_rounded(
    synthetic: Synthetic, tmp_path: Path, source_at_hand: bool
) -> None:
    folder = convert(synthetic("R14x1"), "transformers", tmp_path / "out", changes=ConversionOptions(dtype="float16"))
    plant_weights(folder, lambda state: state["bit.encoder.stages.1.layers.0.conv2.weight"].fill(0.5))
    result = verified(folder, synthetic("R14x1") if source_at_hand else None)
    failed = {check.tap for check in result.checks if not check.passed}
    assert {"block2/unit01", "block3/unit01"} <= failed


def test_weights_that_were_rounded_before_have_no_room_for_rounding_again(synthetic: Synthetic, tmp_path: Path) -> None:
    rounded = convert(
        synthetic("R14x1"), "transformers", tmp_path / "rounded", changes=ConversionOptions(dtype="float16")
    )
    folder = convert(rounded, "timm", tmp_path / "out")
    with Checkpoint(rounded) as source:
        result = verify(folder, source, silent, ("pytorch",))
    assert result.passed
    forced = [check for check in result.checks if check.mode == "isolated"]
    assert max(check.tolerance for check in forced) == pytest.approx(1e-9)
    free = [check for check in result.checks if check.mode == "end-to-end" and check.dtype == "float64"]
    assert max(check.tolerance for check in free) > 1e-6, "held to records of the unrounded weights"
