from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert.errors import CheckpointError
from convert.files.base import Tensor
from convert.files.safetensors import SafetensorsFile, SafetensorsWriter
from convert.network.dtypes import FLOAT16, FLOAT32

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


def write(path: Path, header: Any, data: bytes = ARRAY.tobytes()) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **changes}}


def test_the_library_reads_a_file_of_the_writer(tmp_path: Path) -> None:
    tensors = [Tensor("a", (2, 3), FLOAT32), Tensor("half", (6,), FLOAT16)]
    writer = SafetensorsWriter(tmp_path / "a.safetensors", tensors)
    writer.write(tensors[0], [ARRAY.reshape(-1)[:4], ARRAY.reshape(-1)[4:]])
    writer.write(tensors[1], [ARRAY.reshape(-1).astype(np.float16)])
    writer.finish()
    writer.close()
    found = load_file(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(found["a"], ARRAY)
    np.testing.assert_array_equal(found["half"], ARRAY.reshape(-1).astype(np.float16))


def test_a_file_of_the_library_is_read(tmp_path: Path) -> None:
    save_file({"a": ARRAY, "b": ARRAY * 2}, tmp_path / "a.safetensors", metadata={"format": "np"})
    with SafetensorsFile(tmp_path / "a.safetensors") as file:
        out = np.empty(2, np.float32)
        file.read(file.tensors["b"], 3, out)
    np.testing.assert_array_equal(out, [6, 8])


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "damaged header"),
        (b"[]", "not an object"),
        (b"{" * 100_000, "damaged header"),
        (b'{"a":1,"a":2}', "it holds a name twice"),
        (b"\xff\xfe", "damaged header"),
        ({"a": 1}, "the entry of a"),
        (entry(shape=[2, -3]), "the entry of a"),
        (entry(shape=[True, 6]), "the entry of a"),
        (entry(dtype=[]), "the entry of a"),
        (entry(data_offsets=[0]), "the entry of a"),
        (entry(shape=[2, 4]), r"a has 24 bytes of data, which does not fit shape \[2, 4\] of float32"),
        (entry(shape=[10**15, 10**15]), "a has 24 bytes of data"),
        (entry(shape=[10**400]), "the entry of a|damaged header"),
        (entry(shape=[2**64]), "the entry of a"),
        (entry(shape=[1] * 33), "a has more axes than 32"),
        (entry(data_offsets="\ud800"), "damaged header"),
        (entry(dtype="\x1b[2J" * 1000), r"elements of type \\x1b\[2J"),
        ({"\x1b[2J": 1}, r"\\x1b\[2J is not the name of an array"),
        ({"a\ud800": 1}, "damaged header"),
        ({"module." * 10_000: 1}, "is not the name of an array"),
        ({f"{number}": 1 for number in range(10_001)}, "holds more than 10000 arrays"),
        (b" " * (8 << 20) + b"{}", "which is too long"),
        (entry(data_offsets=[8, 32]), "truncated"),
        (entry(dtype="I64", shape=[3]), "elements of type I64"),
        ({**entry(), "b": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}, "overlap"),
        ({**entry(), "b": {"dtype": "F32", "shape": [2], "data_offsets": [20, 28]}}, "overlap"),
    ],
)
def test_a_header_that_breaks_the_format_is_refused(tmp_path: Path, header: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        SafetensorsFile(write(tmp_path / "a.safetensors", header))
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 500


def test_bytes_that_no_tensor_owns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has 101 bytes, but the header describes 97"):
        SafetensorsFile(write(tmp_path / "a.safetensors", entry(), ARRAY.tobytes() + b"more"))


def test_a_header_length_beyond_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="which is too long"):
        SafetensorsFile(path)


@pytest.mark.parametrize("kept", [4, 8, 50, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = write(tmp_path / "a.safetensors", entry())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError):
        SafetensorsFile(path)
