"""Reading weights of an opened checkpoint: whole, or some output channels, alike in every layout."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from support.conversions import convert

from convert.checkpoints.checkpoint import Checkpoint
from convert.layouts import LAYOUTS
from convert.network import runner
from convert.network.parameters import parameters


@pytest.mark.parametrize("layout", LAYOUTS)
def test_some_output_channels_are_a_part_of_all(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    monkeypatch.setattr(runner, "WEIGHTS_AT_ONCE", 10_000)
    with Checkpoint(convert(tiny_npz, layout, tmp_path / "out")) as checkpoint:
        most = 0
        for item in parameters(checkpoint.config):
            whole = checkpoint.weights(item.name)
            assert whole.shape == item.shape
            np.testing.assert_array_equal(checkpoint.weights(item.name, slice(3, 7)), whole[..., 3:7])
            pieces = list(checkpoint.pieces(item.name))
            np.testing.assert_array_equal(np.concatenate([values for _, values in pieces], axis=-1), whole)
            most = max(most, len(pieces))
    assert most > 10


def test_axes_and_dtype_are_as_asked_for(tiny_npz: Path) -> None:
    with Checkpoint(tiny_npz) as checkpoint:
        whole = checkpoint.weights("stem/kernel")
        kernel = checkpoint.weights("stem/kernel", slice(2, None), axes="oihw", dtype="float32")
    assert kernel.dtype == np.float32
    assert kernel.flags.c_contiguous
    np.testing.assert_array_equal(kernel, whole.transpose(3, 2, 0, 1)[2:])


def test_a_prefix_of_many_parts_is_removed_and_a_name_that_is_one_stays(tiny_npz: Path, tmp_path: Path) -> None:
    with np.load(tiny_npz) as arrays:
        np.savez(tmp_path / "a.npz", **{"module._orig_mod." * 10 + name: array for name, array in arrays.items()})
    with Checkpoint(tmp_path / "a.npz") as checkpoint, Checkpoint(tiny_npz) as expected:
        assert checkpoint.config == expected.config
        assert len(checkpoint.notes) == 20


def test_a_pipe_for_a_configuration_is_not_waited_for(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "timm", tmp_path / "out")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with Checkpoint(folder / "model.safetensors") as checkpoint:
        assert checkpoint.layout.name == "timm"
