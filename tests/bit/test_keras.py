"""`bit.keras`, an implementation that shares no code with the oracle, compared with Google's recordings."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch._dynamo  # noqa: F401 (with TensorFlow's LLVM already loaded, that of its triton aborts)
from numpy.typing import NDArray
from support.conversions import convert
from support.networks import TINY
from support.recordings import float32_error

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from bit.config import BitConfig
from bit.keras import BiT, load
from convert.checkpoints.checkpoint import Checkpoint
from convert.files.base import file_sha256
from convert.files.h5 import H5File
from convert.layouts.keras import KERAS
from convert.network.inputs import images
from convert.network.parameters import Place, parameters
from convert.network.runner import run_network
from convert.network.taps import summarize, tap_names
from convert.references.recordings import find_recordings
from convert.sources.synthetic import write_npz
from convert.verification.metrics import summary_error
from convert.verification.tap_errors import FLOAT32_FACTOR

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")


def googles_tf2_names(path: Path) -> tuple[BitConfig, dict[str, NDArray[np.generic]]]:
    """A checkpoint's arrays under the names of Google's TF2 code; its head is a Dense."""
    with Checkpoint(path) as checkpoint:
        values = {}
        for item in parameters(checkpoint.config):
            name = checkpoint.layout.key(item.place).removeprefix("resnet/").replace("head/conv2d", "head/dense")
            values[name] = checkpoint.weights(item.name).astype(np.float32)
        return checkpoint.config, values


def test_it_computes_what_the_oracle_computes(tiny_npz: Path, tmp_path: Path) -> None:
    batch = images(3, 1, 33, 50)
    model = load(convert(tiny_npz, "keras", tmp_path / "keras"))
    taps = model.taps(batch)
    assert list(taps) == tap_names(TINY)
    with Checkpoint(tiny_npz) as checkpoint:
        for tap, expected in run_network(checkpoint.oracle(), TINY, {"odd": batch}):
            error = np.linalg.norm(np.asarray(taps[tap]) - expected["odd"]) / np.linalg.norm(expected["odd"])
            assert error < 1e-5, tap


@pytest.mark.parametrize("architecture", ["R14x1", pytest.param("R50x1", marks=pytest.mark.long)])
def test_it_computes_what_google_recorded(synthetic: Callable[[str], Path], tmp_path: Path, architecture: str) -> None:
    recordings = find_recordings(file_sha256(synthetic(architecture)))
    assert recordings is not None
    model = load(convert(synthetic(architecture), "keras", tmp_path / "keras"))
    for name, numbers in recordings.float64.inputs.items():
        batch = images(*numbers)
        taps = model.taps(batch)
        assert list(taps) == tap_names(model.config)
        for tap, value in taps.items():
            error = summary_error(summarize(tap, np.asarray(value)), recordings.float64.taps[name, tap])
            assert error < FLOAT32_FACTOR * float32_error(recordings, (name, tap)), f"{tap} of {name}"
        np.testing.assert_allclose(np.asarray(model(batch)), np.asarray(taps["logits"]), rtol=1e-5, atol=1e-5)


def test_the_layout_has_the_paths_at_which_keras_saves_the_model(tmp_path: Path) -> None:
    BiT(TINY).save_weights(tmp_path / "tiny.weights.h5")
    with H5File(tmp_path / "tiny.weights.h5") as file:
        found = {key: tensor.shape for key, tensor in file.tensors.items()}
    assert found == {KERAS.key(item.place): KERAS.shape(item) for item in parameters(TINY)}


def test_a_converted_folder_loads_in_keras_and_what_keras_saves_converts_back(
    synthetic: Callable[[str], Path], tmp_path: Path
) -> None:
    source = synthetic("R14x1")
    model = load(convert(source, "keras", tmp_path / "keras"))
    recordings = find_recordings(file_sha256(source))
    assert recordings is not None
    for name, numbers in recordings.float64.inputs.items():
        error = summary_error({"": np.asarray(model(images(*numbers)))}, recordings.float64.taps[name, "logits"])
        assert error < FLOAT32_FACTOR * float32_error(recordings, (name, "logits"))
    model.save_weights(tmp_path / "Synthetic-R14x1.weights.h5")
    back = convert(tmp_path / "Synthetic-R14x1.weights.h5", "google", tmp_path / "back")
    assert file_sha256(back / source.name) == file_sha256(source)


@pytest.mark.parametrize("classes", [0, 5])
def test_an_h5_of_googles_tf2_code_loads_once_converted_and_weights_keep_googles_names(
    tmp_path: Path, classes: int
) -> None:
    write_npz(tmp_path / "tiny.npz", TINY.replace(num_labels=classes))
    folder = convert(tmp_path / "tiny.npz", "google-tf2", tmp_path / "out")
    model = load(convert(folder / "tiny.h5", "keras", tmp_path / "keras"))
    config, values = googles_tf2_names(tmp_path / "tiny.npz")
    assert model.config == config
    weights = {weight.path.removeprefix("bit/"): np.asarray(weight) for weight in model.weights}
    assert weights.keys() == values.keys()
    for name, weight in weights.items():
        np.testing.assert_array_equal(weight, values[name])


@pytest.mark.parametrize("fault", ["missing", "misshapen"])
def test_a_file_of_another_network_is_refused(tiny_npz: Path, tmp_path: Path, fault: str) -> None:
    folder = convert(tiny_npz, "keras", tmp_path / "keras")
    with h5py.File(folder / "model.weights.h5", "r+") as file:
        key = KERAS.key(Place("unit/norm2/bias", 0, 1))
        del file[key]
        if fault == "misshapen":
            file[key] = np.zeros(7, np.float32)
    with pytest.raises(ValueError, match="group_norm"):
        load(folder)


def test_a_config_of_a_network_that_the_file_cannot_hold_is_refused_before_it_is_built(
    tiny_npz: Path, tmp_path: Path
) -> None:
    """Keras creates every weight first: 70 GB for this one."""
    folder = convert(tiny_npz, "keras", tmp_path / "keras")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "hidden_sizes": [1 << 17, 1 << 17]}))
    with pytest.raises(ValueError, match="too small for the network"):
        load(folder)


def test_a_file_without_groups_is_refused(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "keras", tmp_path / "keras")
    size = (folder / "model.weights.h5").stat().st_size
    with h5py.File(folder / "model.weights.h5", "w") as file:
        file["padding"] = np.zeros(size, np.uint8)
    with pytest.raises(ValueError, match=r"model\.weights\.h5"):
        load(folder)
    (folder / "model.weights.h5").write_bytes(bytes(size))
    with pytest.raises((ValueError, OSError)):
        load(folder)
