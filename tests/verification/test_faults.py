"""What a verification says of conversions with planted faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.conversions import convert
from support.faults import FAULTS
from support.planted import outcomes

Synthetic = Callable[[str], Path]
QUICK = ("epsilon 1e-8", "one value off by 1 %", "last units' kernels swapped", "mean and deviation of CLIP")


def test_faults_that_a_look_at_the_logits_misses_are_caught_and_named(synthetic: Synthetic, tmp_path: Path) -> None:
    chosen = tuple(fault for fault in FAULTS if fault.name in QUICK)
    assert len(chosen) == len(QUICK)
    right = convert(synthetic("R50x1"), "transformers", tmp_path / "right")
    for found in outcomes(synthetic("R50x1"), right, tmp_path, chosen):
        assert found.caught, found
        assert found.part == found.fault.part, found
        assert found.named, found


@pytest.mark.long
def test_every_planted_fault_is_caught_in_its_unit_and_most_are_named(synthetic: Synthetic, tmp_path: Path) -> None:
    right = convert(synthetic("R50x1"), "transformers", tmp_path / "right")
    found = list(outcomes(synthetic("R50x1"), right, tmp_path))
    assert len(found) >= 20
    assert [item.fault.name for item in found if not item.caught] == []
    assert [item.fault.name for item in found if item.part != item.fault.part] == []
    assert sum(item.named for item in found) >= 15
    assert any(item.allclose == "missed" for item in found), "or the usual check would do"
