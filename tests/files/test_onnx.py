"""ONNX files: the weights are found in the file, the rest is small, and nothing else is believed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.external_data_helper import set_external_data
from support.conversions import convert

from convert.checkpoints.checkpoint import Checkpoint
from convert.errors import CheckpointError
from convert.files.onnx import OnnxFile

ARRAY = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def model(**arrays: np.ndarray) -> onnx.ModelProto:
    """A model with initializers and an operator, as another program would write it."""
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "graph", [], [])
    found = onnx.helper.make_model(graph, producer_name="test")
    found.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    return found


def save(path: Path, content: onnx.ModelProto | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


def read(path: Path, key: str) -> np.ndarray:
    with OnnxFile(path) as file:
        tensor = file.tensors[key]
        out = np.empty(tensor.size, tensor.dtype.bits)
        file.read(tensor, 0, out)
        return out.view(np.float32).reshape(tensor.shape)


def test_the_weights_read_as_the_library_reads_them(tmp_path: Path) -> None:
    arrays = {"a": ARRAY, "empty": np.zeros((0, 3), np.float32), "scalar": np.float32(3).reshape(()), "b": -ARRAY[0]}
    path = save(tmp_path / "a.onnx", model(**arrays))
    for key, array in arrays.items():
        np.testing.assert_array_equal(read(path, key), array)
    expected = model()
    with OnnxFile(path) as file:
        assert file.without_weights() == expected


def test_the_weights_are_not_held_in_memory(tmp_path: Path) -> None:
    path = save(tmp_path / "a.onnx", model(a=np.zeros(3_000_000, np.float32)))
    with OnnxFile(path) as file:
        assert len(file.model.SerializeToString()) < 1000


def named(name: bytes) -> bytes:
    return model(**{"n" * len(name): ARRAY}).SerializeToString().replace(b"n" * len(name), name)


def with_property(key: str, value: str) -> onnx.ModelProto:
    found = model(a=ARRAY)
    found.metadata_props.add(key=key, value=value)
    return found


def with_external(**stated: str) -> onnx.ModelProto:
    found = model(a=ARRAY)
    tensor = found.graph.initializer[0]
    set_external_data(tensor, "a.onnx.data", 0, 96)
    tensor.ClearField("raw_data")
    for entry in tensor.external_data:
        entry.value = stated.get(entry.key, entry.value)
    for key in stated.keys() - {entry.key for entry in tensor.external_data}:
        tensor.external_data.add(key=key, value=stated[key])
    return found


def as_float_data() -> onnx.ModelProto:
    found = model()
    found.graph.initializer.add(name="a", dims=[2], data_type=TensorProto.FLOAT, float_data=[1, 2])
    return found


def large() -> onnx.ModelProto:
    found = model(a=ARRAY)
    found.doc_string = "x" * (4 << 20)
    return found


WHOLE = model(a=ARRAY).SerializeToString()
CASES: dict[str, tuple[bytes | onnx.ModelProto, str]] = {
    "name-not-utf-8": (named(b"\xff\xfe"), "a name that is not UTF-8"),
    "escape-sequence": (named(b"\x1b[2J"), r"\\x1b\[2J is not the name of an array"),
    "long-name": (named(b"a" * 1000), "is not the name of an array"),
    "property-not-utf-8": (
        with_property("kkk", "v").SerializeToString().replace(b"kkk", b"\xff\xfe\xfd"),
        "a name that is not UTF-8",
    ),
    "labels-nested": (with_property("labels", "[" * 100_000), "labels is not a list of names"),
    "labels-of-numbers": (with_property("labels", "[1, 2]"), "labels is not a list of names"),
    "labels-an-object": (with_property("labels", "{}"), "labels is not a list of names"),
    "numbers": (model(a=ARRAY.astype(np.int32)), "a is not float32"),
    "float-data": (as_float_data(), r"a has 0 bytes of data, which does not fit shape \[2\]"),
    "large": (large(), "more than 4194304 bytes beside the weights"),
    "many-initializers": (b"\x08\x08\x12\x00\x3a\x90\xa1\x0f" + b"\x2a\x00" * 125_000, "beside the weights|complete"),
    "two-graphs": (WHOLE + WHOLE, "states a graph or the weights of a tensor twice"),
    "group": (WHOLE + b"\x0b\x0c", "not a complete ONNX file"),
    "long-number": (WHOLE + b"\x88\x80\x00\x01", "not a complete ONNX file"),
    "beyond-the-end": (WHOLE + b"\x12\x7f", "it is truncated"),
    "size-of-petabytes": (WHOLE + b"\x12\xff\xff\xff\xff\xff\xff\xff\x7f", "it is truncated"),
    "other-file": (with_external(location="../secret"), r"stores weights in '\.\./secret'"),
    "escape-sequence-in-a-file": (with_external(location="\x1b[2J"), r"stores weights in '\\x1b\[2J'"),
    "negative-offset": (with_external(offset="-4"), "offset or length of a is not a number"),
    "endless-offset": (with_external(offset="9" * 10_000), "offset or length of a is not a number"),
    "length-of-another-shape": (with_external(length="95"), "a has 95 bytes of data"),
    "offset-beyond-the-end": (with_external(offset="5"), "reaches beyond the end of the data"),
}


@pytest.mark.parametrize(("content", "message"), CASES.values(), ids=CASES.keys())
def test_a_hostile_model_is_refused_in_one_short_line(
    tmp_path: Path, content: bytes | onnx.ModelProto, message: str
) -> None:
    (tmp_path / "a.onnx.data").write_bytes(ARRAY.tobytes())
    with pytest.raises(CheckpointError, match=message) as raised:
        OnnxFile(save(tmp_path / "a.onnx", content))
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 500


def test_unknown_facts_about_external_data_are_ignored_in_silence(tmp_path: Path) -> None:
    (tmp_path / "a.onnx.data").write_bytes(ARRAY.tobytes())
    path = save(tmp_path / "a.onnx", with_external(**{"\x1b[2J": "x"}))
    np.testing.assert_array_equal(read(path, "a"), ARRAY)


def test_a_pipe_beside_the_model_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.onnx.data")
    with pytest.raises(CheckpointError, match=r"a\.onnx\.data is not a regular file"):
        OnnxFile(save(tmp_path / "a.onnx", with_external()))


def as_more(labels: list[str]) -> list[str]:
    return [*labels, "more"]


def as_none_but_one(labels: list[str]) -> list[str]:
    return labels[:1]


def as_escape_sequences(labels: list[str]) -> list[str]:
    return ["\x1b[2J" * 1000 for _ in labels]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (as_more, "has labels for 6 classes, but a head for 5"),
        (as_none_but_one, "has labels for 1 classes"),
        (as_escape_sequences, "has invalid labels"),
    ],
)
def test_labels_that_do_not_fit_the_head_are_refused(
    tiny_npz: Path, tmp_path: Path, change: Callable[[list[str]], list[str]], message: str
) -> None:
    folder = convert(tiny_npz, "onnx", tmp_path / "out")
    path = folder / "model.onnx"
    content = onnx.load(path)
    content.metadata_props.add(key="labels", value=json.dumps(change(list("abcde"))))
    save(path, content)
    with pytest.raises(CheckpointError, match=message) as raised:
        Checkpoint(path)
    assert str(raised.value).isprintable()


def test_every_flipped_byte_is_an_error_or_leaves_other_weights(tmp_path: Path) -> None:
    """Never another exception."""
    whole, path, refused = WHOLE, tmp_path / "a.onnx", 0
    for position in range(len(whole)):
        for change in (0x01, 0x80, 0xFF):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ change]) + whole[position + 1 :])
            try:
                with OnnxFile(path) as file:
                    for key, tensor in file.tensors.items():
                        file.read(tensor, 0, np.empty(tensor.size, tensor.dtype.bits))
                        assert key.isprintable()
            except CheckpointError:
                refused += 1
    assert refused > len(whole) / 2
