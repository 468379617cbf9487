"""The `.keras` file of Keras' own layers, as Keras loads it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.command import assert_refused, run_here
from support.conversions import convert, verified
from support.faults import forge
from support.networks import TINY
from support.recordings import float32_error

from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.options import ConversionOptions
from convert.conversion.keras_model import INPUT, model
from convert.errors import CheckpointError
from convert.files.base import file_sha256
from convert.network.inputs import images
from convert.network.runner import run_network
from convert.network.taps import tap_names
from convert.references.recordings import find_recordings
from convert.references.registry import FOREIGN_GRAPH, REFERENCES, own_reference
from convert.references.worker import ReferenceProcess
from convert.sources.synthetic import write_npz
from convert.verification.metrics import relative_l2
from convert.verification.tap_errors import FLOAT32_FACTOR


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Change the members of an archive, and let the manifest state the new file."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    forge(path.parent, path.name)


def test_keras_runs_it_in_both_dtypes_and_every_tap_agrees(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "keras-saved", tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "config.json", "conversion.json", "model.keras", "preprocessor_config.json")
    }
    result = verified(folder, tiny_npz)
    assert result.passed, [check for check in result.checks if not check.passed]
    runs = {check.run for check in result.checks if check.implementation == "Keras (TensorFlow)"}
    assert runs == {f"Keras (TensorFlow) {name}" for name in ("float64", "float64, isolated", "float32")}
    taps = [check.tap for check in result.checks if check.run == "Keras (TensorFlow) float64"]
    assert taps == [tap for tap in tap_names(TINY) for _ in range(2)], "two inputs"
    of_oracle, of_keras = (
        {(check.tap, check.input): check.error for check in result.checks if check.run == run}
        for run in ("oracle float64", "Keras (TensorFlow) float64")
    )
    assert of_oracle.keys() == of_keras.keys()
    assert all(abs(of_oracle[key] - of_keras[key]) < 1e-12 for key in of_oracle), "both run the rounded kernels"


def test_the_description_names_layers_of_keras_alone() -> None:
    def kinds(entry: dict) -> set[str]:
        found = {f"{entry['module']}.{entry['class_name']}"}
        for layer in entry["config"].get("layers", []):
            found |= kinds(layer)
        return found

    own = (
        "Add Conv2D Dense GlobalAveragePooling2D GroupNormalization InputLayer MaxPooling2D ReLU ZeroPadding2D".split()
    )
    assert kinds(model(TINY)) == {"keras.src.models.functional.Functional", *(f"keras.layers.{name}" for name in own)}
    assert model(TINY)["config"]["input_layers"] == [INPUT, 0, 0]


def test_the_same_weights_give_the_same_bytes(tiny_npz: Path, tmp_path: Path) -> None:
    first, second = (convert(tiny_npz, "keras-saved", tmp_path / name) / "model.keras" for name in "ab")
    assert file_sha256(first) == file_sha256(second)
    with zipfile.ZipFile(first) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["metadata.json", "config.json", "model.weights.h5"]
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_a_model_that_is_not_written_here_is_never_loaded(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = convert(tiny_npz, "keras-saved", tmp_path / "out")
    rewritten(
        folder / "model.keras",
        lambda members: members.update({"config.json": members["config.json"].replace(b'"ReLU"', b'"Lambda"', 1)}),
    )
    with monkeypatch.context() as patch:
        patch.setattr("convert.verification.network.ReferenceProcess", lambda *arguments: pytest.fail("it was started"))
        result = verified(folder, tiny_npz)
    assert result.problems == (
        "model.keras: graph or properties do not match the network",
        f"keras-saved did not run: {FOREIGN_GRAPH}",
    )


@pytest.mark.parametrize("name", ["metadata.json", "assets/more"])
def test_a_changed_or_further_member_is_found(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = convert(tiny_npz, "keras-saved", tmp_path / "out")
    rewritten(folder / "model.keras", lambda members: members.update({name: b"{}"}))
    monkeypatch.setattr(
        "convert.verification.network.ReferenceProcess", lambda *arguments: pytest.fail("it was started")
    )
    assert "model.keras: graph or properties do not match the network" in verified(folder, tiny_npz).problems


def test_it_cannot_be_converted_back_and_is_float32(tiny_npz: Path, tmp_path: Path) -> None:
    convert(tiny_npz, "keras-saved", tmp_path / "out")
    assert_refused(run_here("convert", "out", cwd=tmp_path), "the kernels are standardized", tmp_path)
    result = run_here("convert", "nothing.npz", "--to", "keras-saved", "--dtype", "bfloat16", cwd=tmp_path)
    assert_refused(result, "keras-saved is always written in float32", tmp_path)
    assert "keras-saved" in run_here("inspect", "out", cwd=tmp_path).stdout


def test_each_folded_layout_has_a_reference_of_its_own() -> None:
    from convert.layouts import LAYOUTS

    own = {name: own_reference(layout) for name, layout in LAYOUTS.items() if own_reference(layout)}
    assert own == {"onnx": "onnxruntime", "keras-saved": "keras-saved"}


LOADED = """
import io, json, sys, zipfile
import keras, h5py, numpy as np
path, out = sys.argv[1:]
model = keras.saving.load_model(path)
assert "bit" not in sys.modules and "convert" not in sys.modules
assert model.trainable_weights == []
x = np.load(f"{out}/images.npy")
logits = keras.ops.convert_to_numpy(model(x))
assert logits.ndim == 2
np.save(f"{out}/{keras.backend.backend()}.npy", logits)
features = model.get_layer("block1").get_layer("unit01")
assert features.output.shape == (None, None, None, 128)
model.save(f"{out}/{keras.backend.backend()}.keras")
def content(path):
    found = {}
    with zipfile.ZipFile(path) as archive:
        with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
            file.visititems(lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
        return found, json.loads(archive.read("config.json"))
(ours, described), (theirs, full) = content(path), content(f"{out}/{keras.backend.backend()}.keras")
assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)
def names(entry):
    return [(layer["class_name"], layer["name"], *names(layer)) for layer in entry["config"].get("layers", [])]
assert names(described) == names(full)
"""


@pytest.mark.long
@pytest.mark.parametrize("classes", [0, 5])
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_every_backend_loads_it_without_code_of_ours_and_saves_the_same(
    tmp_path: Path, backend: str, classes: int
) -> None:
    write_npz(tmp_path / "a.npz", TINY.replace(num_labels=classes, num_channels=5))
    path, batch = convert(tmp_path / "a.npz", "keras-saved", tmp_path / "out") / "model.keras", images(3, 2, 33, 50, 5)
    np.save(tmp_path / "images.npy", batch)
    environment = {**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu", "PYTHONPATH": ""}
    command = [sys.executable, "-P", "-c", LOADED, str(path), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Checkpoint(tmp_path / "a.npz") as checkpoint:
        *_, (_, expected) = run_network(checkpoint.oracle(), checkpoint.config, {"": batch})
    assert relative_l2(np.load(tmp_path / f"{backend}.npy"), expected[""]) < 1e-5


@pytest.mark.long
def test_the_reference_refuses_a_model_that_is_not_written_here(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "keras-saved", tmp_path / "out")
    rewritten(folder / "model.keras", lambda members: members.update({"assets/more": b""}))
    refused = pytest.raises(CheckpointError, match=FOREIGN_GRAPH)
    with (
        Checkpoint(folder) as checkpoint,
        ReferenceProcess(REFERENCES["keras-saved"], checkpoint) as process,
        refused,
    ):
        process.load("float32")


@pytest.mark.long
@pytest.mark.parametrize("architecture", ["R14x1", "R50x1"])
def test_it_computes_the_recorded_outputs_of_googles_code(
    synthetic: Callable[[str], Path], tmp_path: Path, architecture: str
) -> None:
    source = synthetic(architecture)
    folder = convert(source, "keras-saved", tmp_path / "out")
    recordings = find_recordings(file_sha256(source))
    assert recordings is not None
    result = verified(folder, source)
    assert result.passed
    for name in recordings.float64.inputs:
        (error,) = (
            check.error
            for check in result.checks
            if (check.run, check.tap, check.input) == ("Keras (TensorFlow) float32", "logits", name)
        )
        assert error < FLOAT32_FACTOR * float32_error(recordings, (name, "logits"))


def test_the_epsilon_is_folded_in_so_that_compensation_changes_nothing(tiny_npz: Path, tmp_path: Path) -> None:
    plain = convert(tiny_npz, "keras-saved", tmp_path / "plain")
    options = ConversionOptions(ws_eps="compensate")
    compensated = convert(tiny_npz, "keras-saved", tmp_path / "compensated", options=options)
    assert file_sha256(plain / "model.keras") == file_sha256(compensated / "model.keras")
