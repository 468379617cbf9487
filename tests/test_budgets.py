"""No fault makes room for itself, and no rounding has room twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import quiet
from faults import plant_weights
from test_conversion import convert
from test_verification import verified

from convert.changes import Changes
from convert.checkpoint import Checkpoint
from convert.verification import verify

Synthetic = Callable[[str], Path]


@pytest.mark.parametrize("source_at_hand", [True, False])
def test_a_fault_makes_no_room_for_itself_where_weights_were_rounded(
    synthetic: Synthetic, tmp_path: Path, source_at_hand: bool
) -> None:
    folder = convert(synthetic("R14x1"), "transformers", tmp_path / "out", changes=Changes(dtype="float16"))
    plant_weights(folder, lambda state: state["bit.encoder.stages.1.layers.0.conv2.weight"].fill(0.5))
    result = verified(folder, synthetic("R14x1") if source_at_hand else None)
    failed = {check.tap for check in result.checks if not check.passed}
    assert {"block2/unit01", "block3/unit01"} <= failed


def test_weights_that_were_rounded_before_have_no_room_for_rounding_again(synthetic: Synthetic, tmp_path: Path) -> None:
    rounded = convert(synthetic("R14x1"), "transformers", tmp_path / "rounded", changes=Changes(dtype="float16"))
    folder = convert(rounded, "timm", tmp_path / "out")
    with Checkpoint(rounded) as source:
        result = verify(folder, source, quiet, ("pytorch",))
    assert result.passed
    forced = [check for check in result.checks if check.mode == "teacher-forced"]
    assert max(check.budget for check in forced) == pytest.approx(1e-9)
    free = [check for check in result.checks if check.mode == "free-running" and check.dtype == "float64"]
    assert max(check.budget for check in free) > 1e-6, "held to records of the unrounded weights"
