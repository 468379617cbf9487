"""The `.keras` container: read in place, written front to back, damage refused."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from convert.errors import CheckpointError
from convert.files import keras
from convert.files.base import Metadata, Tensor
from convert.files.containers import kind, open_weights
from convert.files.keras import KerasFile, KerasWriter
from convert.network.dtypes import FLOAT32

ARRAYS = {
    f"layers/{name}": np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)
    for name, shape in {"b/0": (3, 3, 8, 16), "a/0": (5,), "a/1": (700, 30), "c/vars/0": (1,)}.items()
}


def h5(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return buffer.getvalue()


def archive(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def values(path: Path) -> dict[str, np.ndarray]:
    found = {}
    with open_weights(path) as file:
        for name, tensor in file.tensors.items():
            out = np.empty(tensor.size, tensor.dtype.bits)
            file.read(tensor, 0, out)
            found[name] = tensor.dtype.to_float64(out).reshape(tensor.shape)
        file.digests()
    return found


def test_what_is_written_is_read_by_zipfile_and_hdf5_and_in_place(tmp_path: Path) -> None:
    path = tmp_path / "a.keras"
    tensors = KerasWriter.ordered(Tensor(name, array.shape, FLOAT32) for name, array in ARRAYS.items())
    with KerasWriter(path, tensors, Metadata(graph=lambda: {"config.json": b"{}"})) as writer:
        for tensor in tensors:
            before = writer.written
            writer.write(tensor, [ARRAYS[tensor.key].reshape(-1).view(np.uint32)])
            assert before <= writer.written == path.stat().st_size, "bytes once written never change"
        writer.finish()
    assert kind(path) == "keras"
    with zipfile.ZipFile(path) as file, h5py.File(io.BytesIO(file.read("model.weights.h5"))) as weights:
        assert file.testzip() is None
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(weights[name][()], array)
    found = values(path)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_writer_that_stops_leaves_no_archive(tmp_path: Path) -> None:
    tensors = [Tensor("a", (3,), FLOAT32), Tensor("b", (3,), FLOAT32)]
    with KerasWriter(tmp_path / "a.keras", tensors, Metadata(graph=lambda: {"config.json": b"{}"})) as writer:
        writer.write(tensors[0], [np.zeros(3, np.uint32)])
    assert not zipfile.is_zipfile(tmp_path / "a.keras")
    with pytest.raises(ValueError, match="needs the description"):
        KerasWriter(tmp_path / "b.keras", tensors)


def test_weights_that_keras_packed_are_read_without_the_optimizer(tmp_path: Path) -> None:
    weights = h5(**{"layers/a/vars/0": np.arange(6.0), "optimizer/vars/0": np.array(3), "optimizer/vars/1": np.ones(6)})
    network = {"registered_name": "bit>BiT", "config": {"network": {"ws_eps": 1e-6}}}
    path = archive(tmp_path / "a.keras", {"config.json": json.dumps(network).encode(), "model.weights.h5": weights})
    with KerasFile(path) as file:
        assert list(file.tensors) == ["layers/a/vars/0"]
        assert file.notes == ["the state of the optimizer is ignored"]
        assert file.stated == {"ws_eps": 1e-6}
    np.testing.assert_array_equal(values(path)["layers/a/vars/0"], np.arange(6.0))


WEIGHTS = h5(**{"layers/a/vars/0": np.arange(600, dtype=np.float32)})
DAMAGED = {
    "no-weights": ({"config.json": b"{}"}, "is not a complete keras file .model.weights.h5 is missing"),
    "no-description": ({"model.weights.h5": WEIGHTS}, "is not a complete keras file .config.json is missing"),
    "not-json": ({"config.json": b"{", "model.weights.h5": WEIGHTS}, "config.json is not valid JSON"),
    "a-list": ({"config.json": b"[]", "model.weights.h5": WEIGHTS}, "does not describe a model"),
    "deep": ({"config.json": b"[" * 9000 + b"]" * 9000, "model.weights.h5": WEIGHTS}, "nests lists and objects"),
    "large": ({"config.json": b" " * 300 + b"{}", "model.weights.h5": WEIGHTS}, "more than 200 bytes"),
    "empty-weights": ({"config.json": b"{}", "model.weights.h5": b""}, "is not a complete h5 file"),
    "other-weights": ({"config.json": b"{}", "model.weights.h5": bytes(1000)}, "is not a complete h5 file"),
    "cut-weights": ({"config.json": b"{}", "model.weights.h5": WEIGHTS[:-600]}, "is not a complete h5 file"),
    "traversal": ({"config.json": b"{}", "../x": b"", "model.weights.h5": WEIGHTS}, "is not the name of an array"),
}


@pytest.mark.parametrize(("members", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_archives_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes], message: str
) -> None:
    monkeypatch.setattr(keras, "MAX_DESCRIPTION", 200 if message.startswith("more") else keras.MAX_DESCRIPTION)
    with pytest.raises(CheckpointError, match=message):
        open_weights(archive(tmp_path / "a.keras", members))


def test_compressed_weights_and_a_wrong_checksum_are_refused(tmp_path: Path) -> None:
    members = {"config.json": b"{}", "model.weights.h5": WEIGHTS}
    with pytest.raises(CheckpointError, match="is compressed"):
        open_weights(archive(tmp_path / "a.keras", members, zipfile.ZIP_DEFLATED))
    path = archive(tmp_path / "b.keras", members)
    content = path.read_bytes()
    path.write_bytes(content.replace(np.float32(599).tobytes(), np.float32(598).tobytes()))
    with open_weights(path) as file, pytest.raises(CheckpointError, match=r"model.weights.h5 is damaged .CRC-32"):
        file.digests()


def test_links_to_other_files_are_not_followed(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["a"] = h5py.ExternalLink("/etc/passwd", "b")
    members = {"config.json": b"{}", "model.weights.h5": buffer.getvalue()}
    with pytest.raises(CheckpointError, match="a is a link to another place"):
        open_weights(archive(tmp_path / "a.keras", members))
