"""`bit.flax`, an implementation that shares no code with the oracle, compared with Google's recordings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from support.conversions import convert
from support.networks import TINY
from support.recordings import float32_error

from bit import flax as bit_flax
from bit.config import BitConfig
from convert.checkpoints.checkpoint import Checkpoint
from convert.files.base import file_sha256
from convert.layouts import LAYOUTS
from convert.network.inputs import images
from convert.network.parameters import parameters
from convert.network.runner import run_network
from convert.network.taps import summarize, tap_names
from convert.references.recordings import find_recordings
from convert.verification.metrics import summary_error
from convert.verification.results import FLOAT64_TOLERANCE
from convert.verification.tap_errors import FLOAT32_FACTOR

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")


def test_the_parameters_have_the_names_of_googles_jax_code(tiny_npz: Path, tmp_path: Path) -> None:
    model, params = bit_flax.load(convert(tiny_npz, "flax", tmp_path / "out"))
    layout = LAYOUTS["flax"]
    expected = {layout.key(item.place): layout.shape(item) for item in parameters(model.config)}
    assert {key: value.shape for key, value in flatten_dict(params, sep="/").items()} == expected


def test_it_computes_what_the_oracle_computes(tiny_npz: Path, tmp_path: Path) -> None:
    batch = images(3, 1, 33, 50)
    with jax.enable_x64(True), Checkpoint(tiny_npz) as checkpoint:
        model, params = bit_flax.load(convert(tiny_npz, "flax", tmp_path / "out"))
        _, taps = model.apply({"params": jax.tree.map(np.float64, params)}, batch.astype(np.float64))
        assert list(taps) == tap_names(TINY)
        for tap, expected in run_network(checkpoint.oracle(), TINY, {"odd": batch}):
            np.testing.assert_allclose(np.asarray(taps[tap]), expected["odd"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("architecture", ["R14x1", pytest.param("R50x1", marks=pytest.mark.long)])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_it_computes_what_google_recorded(
    synthetic: Callable[[str], Path], tmp_path: Path, architecture: str, dtype: str
) -> None:
    recordings = find_recordings(file_sha256(synthetic(architecture)))
    assert recordings is not None
    folder = convert(synthetic(architecture), "flax", tmp_path / "out")
    with jax.enable_x64(dtype == "float64"):
        model, params = bit_flax.load(folder)
        params = jax.tree.map(lambda value: np.asarray(value, dtype), params)
        for name, numbers in recordings.float64.inputs.items():
            _, taps = jax.jit(model.apply)({"params": params}, images(*numbers).astype(dtype))
            assert sorted(taps) == sorted(tap_names(BitConfig.from_architecture(architecture)))
            for tap, value in taps.items():
                assert value.dtype == dtype
                error = summary_error(summarize(tap, np.asarray(value)), recordings.float64.taps[name, tap])
                float32 = FLOAT32_FACTOR * float32_error(recordings, (name, tap))
                assert error < (FLOAT64_TOLERANCE if dtype == "float64" else float32), f"{tap} of {name}"


def test_a_folder_that_lacks_a_parameter_is_refused(tiny_npz: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = convert(tiny_npz, "flax", tmp_path / "out") / "model.safetensors"
    state = load_file(path)
    del state["block1/unit01/gn2/bias"]
    save_file(state, path)
    with pytest.raises(ValueError, match="missing block1/unit01/gn2/bias"):
        bit_flax.load(path.parent)


def test_a_damaged_file_and_a_hostile_config_are_refused(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "flax", tmp_path / "out")
    path, config = folder / "model.safetensors", folder / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "depths": [500, 500]}))
    with pytest.raises(ValueError, match="describes 1000 units"):
        bit_flax.load(folder)
    path.write_bytes(path.read_bytes()[:5])
    with pytest.raises(ValueError, match="is damaged"):
        bit_flax.load(folder)
