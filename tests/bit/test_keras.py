"""`bit.keras`, an implementation that shares no code with the oracle, compared with Google's recordings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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

import keras

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


def test_a_model_is_saved_and_loaded_as_keras_models_are(tiny_npz: Path, tmp_path: Path) -> None:
    labels, batch = {0: "a", 1: "b", 2: "c", 3: "d", 4: "e"}, images(3, 2, 9, 12)
    folder = convert(tiny_npz, "keras", tmp_path / "keras")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"id2label": labels, "ws_eps": 1e-6}))
    for dtype in ("float32", "float64", "mixed_bfloat16"):
        model = load(folder, dtype)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        assert (loaded.config, loaded.dtype_policy.name) == (model.config, dtype)
        assert loaded.config.id2label == labels
        assert {weight.path for weight in loaded.weights} == {weight.path for weight in model.weights}
        np.testing.assert_array_equal(np.asarray(loaded(batch)), np.asarray(model(batch)))
    clone = keras.models.clone_model(model)
    assert clone.config == model.config
    assert not np.array_equal(np.asarray(clone.weights[0]), np.asarray(model.weights[0])), "a clone has new weights"


def test_a_model_that_keras_fine_tuned_keeps_its_optimizer_and_converts_back(tiny_npz: Path, tmp_path: Path) -> None:
    model, batch, classes = load(convert(tiny_npz, "keras", tmp_path / "keras")), images(3, 4, 16, 16), np.arange(4)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.SGD(0.01, momentum=0.9), loss=loss, metrics=["accuracy"], run_eagerly=True)
    losses = model.fit(batch, classes, batch_size=2, epochs=3, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    model.save(tmp_path / "tuned.keras")
    model.save_weights(tmp_path / "tuned.weights.h5")
    loaded = keras.saving.load_model(tmp_path / "tuned.keras")
    assert loaded.evaluate(batch, classes, verbose=0) == model.evaluate(batch, classes, verbose=0)
    assert int(loaded.optimizer.iterations) == 6
    logits = np.asarray(model(batch))
    for name in ("tuned.keras", "tuned.weights.h5"):
        with Checkpoint(tmp_path / name) as checkpoint:
            assert checkpoint.notes == ["the state of the optimizer is ignored"]
            *_, (_, expected) = run_network(checkpoint.oracle(), checkpoint.config, {"": batch})
        np.testing.assert_allclose(logits, expected[""], rtol=1e-4, atol=1e-4)
        back = load(convert(tmp_path / name, "keras", tmp_path / f"{name}-back"))
        np.testing.assert_array_equal(np.asarray(back(batch)), logits)


def test_a_configuration_that_is_not_ours_is_refused() -> None:
    for config in ({}, {"network": 3}, {"network": {"depths": [0]}}, {"network": {"model_type": "vit"}}):
        with pytest.raises(ValueError, match=r"network|depths|model_type"):
            BiT.from_config(config)


BACKENDS = """
import io, json, sys, zipfile
import h5py, keras, numpy as np
import bit.keras
folder, out = sys.argv[1:]
x = np.load(f"{out}/images.npy")
model = bit.keras.load(folder, "float64")
taps = {name: keras.ops.convert_to_numpy(value) for name, value in model.taps(x).items()}
np.savez(f"{out}/{keras.backend.backend()}.npz", **{name.replace("/", "."): value for name, value in taps.items()})
model = bit.keras.load(folder)
model.save_weights(f"{out}/{keras.backend.backend()}.weights.h5")
def arrays(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    return found
first, second = arrays(f"{folder}/model.weights.h5"), arrays(f"{out}/{keras.backend.backend()}.weights.h5")
assert first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
small, classes = x[:, :9, :9].astype(np.float32), np.arange(2)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(optimizer=keras.optimizers.SGD(0.01, momentum=0.9), loss=loss, metrics=["accuracy"])
history = model.fit(small, classes, epochs=3, verbose=0).history["loss"]
assert history[-1] < history[0]
model.save(f"{out}/{keras.backend.backend()}.keras")
loaded = keras.saving.load_model(f"{out}/{keras.backend.backend()}.keras")
assert np.array_equal(loaded.predict(small, verbose=0), model.predict(small, verbose=0))
assert loaded.evaluate(small, classes, verbose=0) == model.evaluate(small, classes, verbose=0)
json.dump(history, open(f"{out}/{keras.backend.backend()}.json", "w"))
"""


@pytest.mark.long
def test_every_backend_computes_and_trains_the_same(tiny_npz: Path, tmp_path: Path) -> None:
    folder, batch = convert(tiny_npz, "keras", tmp_path / "keras"), images(3, 2, 33, 50).astype(np.float64)
    np.save(tmp_path / "images.npy", batch)
    for backend in ("tensorflow", "jax", "torch"):
        environment = {**os.environ, "KERAS_BACKEND": backend, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", BACKENDS, str(folder), str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    found = {backend: np.load(tmp_path / f"{backend}.npz") for backend in ("tensorflow", "jax", "torch")}
    with Checkpoint(tiny_npz) as checkpoint:
        for tap, expected in run_network(checkpoint.oracle(), TINY, {"odd": batch}):
            for backend, taps in found.items():
                value = taps[tap.replace("/", ".")]
                np.testing.assert_allclose(value, expected["odd"], rtol=0, atol=1e-10, err_msg=f"{tap} in {backend}")
    losses = [json.loads((tmp_path / f"{backend}.json").read_text()) for backend in found]
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=1e-4)


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
