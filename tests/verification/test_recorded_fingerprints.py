"""Without the source, a recording of this project tells what no activation shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.conversions import verified
from support.faults import plant_weights

from convert.checkpoints.checkpoint import Checkpoint
from convert.progress import silent
from convert.references.recorder import record


@pytest.fixture
def recordings(tiny_npz: Path, tmp_path: Path) -> Path:
    with Checkpoint(tiny_npz) as checkpoint:
        record(checkpoint, tmp_path / "recordings", silent, frameworks=())
    return tmp_path / "recordings"


def nudge(state: dict[str, np.ndarray]) -> None:
    kernel = state["bit.encoder.stages.1.layers.0.conv2.weight"]
    kernel[0, 0, 0, 0] = np.nextafter(kernel[0, 0, 0, 0], np.float32(9))


def test_a_unit_in_the_last_place_fails_without_the_source(tiny: Path, recordings: Path) -> None:
    assert verified(tiny, None, recordings=(recordings,)).passed
    plant_weights(tiny, nudge)
    result = verified(tiny, None, recordings=(recordings,))
    assert [problem for problem in result.problems if "recorded values of block2/unit01/conv2/kernel" in problem]


def test_a_difference_that_no_output_shows_is_described_with_the_source(
    tiny: Path, tiny_npz: Path, recordings: Path
) -> None:
    plant_weights(tiny, nudge)
    result = verified(tiny, tiny_npz, recordings=(recordings,))
    words = " ".join([*result.problems, *(finding.words for finding in result.network.findings)])
    assert "1 of 36864 values differ by a unit in the last place of float32" in words
