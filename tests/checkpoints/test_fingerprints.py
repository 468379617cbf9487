"""The fingerprints of a checkpoint are those of the values, in every layout and in every dtype that holds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.conversions import convert
from support.faults import plant_weights

from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.fingerprints import changed_parameters, fingerprints
from convert.checkpoints.options import ConversionOptions

KEY = "bit.encoder.stages.0.layers.0.conv2.weight"


@pytest.mark.parametrize("layout", ["transformers", "timm", "flax", "keras", "google-tf2"])
def test_every_layout_has_the_fingerprints_of_the_source(layout: str, tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, layout, tmp_path / layout)
    with Checkpoint(tiny_npz) as source, Checkpoint(folder) as converted:
        assert fingerprints(converted) == fingerprints(source)
        assert changed_parameters(fingerprints(source)["parameters"], converted) == []


def test_a_wider_dtype_is_no_change_and_a_narrower_is(tiny_npz: Path, tmp_path: Path) -> None:
    with Checkpoint(tiny_npz) as source:
        expected = fingerprints(source)["parameters"]
    for dtype, count in (("float64", 0), ("float16", len(expected))):
        folder = convert(tiny_npz, "transformers", tmp_path / dtype, options=ConversionOptions(dtype=dtype))
        with Checkpoint(folder) as converted:
            assert len(changed_parameters(expected, converted)) == count


def test_a_unit_in_the_last_place_of_one_value_is_a_change(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "transformers", tmp_path / "out")

    def nudge(state: dict[str, np.ndarray]) -> None:
        state[KEY][0, 0, 0, 0] = np.nextafter(state[KEY][0, 0, 0, 0], np.float32(9))

    plant_weights(folder, nudge)
    with Checkpoint(tiny_npz) as source, Checkpoint(folder) as converted:
        assert changed_parameters(fingerprints(source)["parameters"], converted) == ["block1/unit01/conv2/kernel"]
