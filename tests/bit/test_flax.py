"""`bit.flax`, an implementation that shares no code with the oracle, compared with Google's recordings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from support.conversions import convert
from support.recordings import float32_error

from bit import flax as bit_flax
from bit.config import BitConfig
from convert.files.base import file_sha256
from convert.layouts import LAYOUTS
from convert.network.inputs import images
from convert.network.parameters import parameters
from convert.network.taps import summarize, tap_names
from convert.references.recordings import find_recordings
from convert.verification.metrics import summary_error
from convert.verification.tolerances import FLOAT32_FACTOR, FLOAT64_TOLERANCE

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")


def test_the_parameters_have_the_names_of_googles_jax_code(tiny_npz: Path, tmp_path: Path) -> None:
    model, params = bit_flax.load(convert(tiny_npz, "flax", tmp_path / "out"))
    layout = LAYOUTS["flax"]
    expected = {layout.key(item.place): layout.shape(item) for item in parameters(model.config)}
    assert {key: value.shape for key, value in flatten_dict(params, sep="/").items()} == expected


@pytest.mark.parametrize("architecture", ["R14x1", "R50x1"])
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
            _, taps = model.apply({"params": params}, images(*numbers).astype(dtype))
            # jax.jit hands dictionaries back in the order of their keys; unjitted, it is the network's.
            assert list(taps) == tap_names(BitConfig.from_architecture(architecture))
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
