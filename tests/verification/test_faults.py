"""Conversions with planted faults are caught, and the faults are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.conversions import convert
from support.faults import FAULTS
from support.planted import outcomes

from bit.config import BitConfig
from convert.sources.synthetic import write_npz

Synthetic = Callable[[str], Path]
QUICK = ("epsilon 1e-8", "one value off by 1 %", "last units' kernels swapped", "mean and deviation of CLIP")


def test_faults_that_a_look_at_the_logits_misses_are_caught_and_named(tmp_path: Path) -> None:
    """On R50 of half the width: the faults are planted into units that a smaller network does not have."""
    write_npz(
        tmp_path / "half.npz",
        BitConfig(embedding_size=32, hidden_sizes=(128, 256, 512, 1024), depths=(3, 4, 6, 3), num_labels=1000),
    )
    chosen = tuple(fault for fault in FAULTS if fault.name in QUICK)
    assert len(chosen) == len(QUICK)
    right = convert(tmp_path / "half.npz", "transformers", tmp_path / "right")
    for found in outcomes(tmp_path / "half.npz", right, tmp_path, chosen):
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
    assert any("1 of 589824 values differ" in item.words for item in found)
    assert any(item.allclose == "missed" for item in found), "or the usual check would do"
