"""Conversions with planted faults are caught, and the faults are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.conversions import convert, verified
from support.faults import FAULTS, plant_weights
from support.planted import outcomes

from bit.config import BitConfig
from convert.checkpoints.checkpoint import Checkpoint
from convert.conversion.plan import plan
from convert.progress import silent
from convert.sources.synthetic import write_npz
from convert.verification.bytes import compare_bytes

State = dict[str, NDArray[np.float32]]
Synthetic = Callable[[str], Path]
Folder = Callable[[str], Path]
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


def swap(state: State) -> None:
    first, second = "bit.encoder.stages.0.layers.0.norm2.weight", "bit.encoder.stages.0.layers.0.norm3.weight"
    state[first], state[second] = state[second], state[first]


def one_percent(state: State) -> None:
    state["bit.encoder.stages.2.layers.0.conv2.weight"][0, 0, 0, 0] *= 1.01


def flip(state: State) -> None:
    kernel = state["bit.encoder.stages.1.layers.0.conv2.weight"]
    kernel[...] = kernel[:, :, ::-1, ::-1].copy()


def transpose(state: State) -> None:
    kernel = state["bit.encoder.stages.3.layers.0.conv2.weight"]
    kernel[...] = kernel.transpose(0, 1, 3, 2).copy()


def bias(state: State) -> None:
    state["classifier.1.bias"] += np.float32(1e-4)


def permute_head(state: State) -> None:
    state["classifier.1.weight"][[3, 4]] = state["classifier.1.weight"][[4, 3]]


@pytest.mark.parametrize(
    ("fault", "tap"),
    [
        (swap, "block1/unit01"),
        (one_percent, "block3/unit01"),
        (flip, "block2/unit01"),
        (transpose, "block4/unit01"),
        (bias, "logits"),
        (permute_head, "logits"),
    ],
)
def test_a_planted_fault_is_caught_at_the_tap_where_it_begins(
    copied: Folder, fault: Callable[[State], None], tap: str
) -> None:
    folder = copied("transformers")
    plant_weights(folder, fault)
    result = verified(folder, None, ("pytorch",) if fault is flip else ())
    assert not result.passed
    assert any(check.implementation == "bit (PyTorch)" for check in result.checks) == (fault is flip)
    runs = {(check.implementation, check.dtype) for check in result.checks if check.dtype == "float64"}
    for run in runs:
        first = next(c for c in result.checks if (c.implementation, c.dtype) == run and not c.passed)
        assert first.tap == tap
    assert not json.loads((folder / "verification.json").read_text())["passed"]


@pytest.mark.parametrize("fault", [swap, one_percent, bias])
def test_a_fault_shows_in_the_bytes_too(synthetic: Synthetic, copied: Folder, fault: Callable[[State], None]) -> None:
    folder = copied("transformers")
    plant_weights(folder, fault)
    with Checkpoint(synthetic("R14x1")) as source, Checkpoint(folder) as changed:
        checks = list(compare_bytes(plan(source, changed.layout), changed, silent))
    problems = [problem for _, problem in checks if problem is not None]
    assert any("does not convert back to" in problem for problem in problems)
    assert len(problems) < len(checks)
