"""Pickles that no state dict needs are refused as data, before anything is looked up or called."""

from __future__ import annotations

import pickle
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.torch_files import ARRAY, repacked, zipped

from convert.errors import CheckpointError
from convert.files.containers import open_weights


def pickled(body: bytes) -> bytes:
    """The pickle of what the opcodes of `body` leave on the stack."""
    return b"\x80\x02" + body + b"."


def nested_tuples(depth: int) -> bytes:
    """Opcodes that make a tuple of two references to a tuple of two references …, as a key of a dictionary."""
    start = b")q\x00"
    level = b"h\x00\x86q\x00"
    return b"}" + start + depth * level + b"K\x01s"


@pytest.fixture(params=["zip", "legacy"])
def save_pickle(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[bytes], Path]:
    """Write a file of `torch.save` with another pickle in it."""

    def to_file(content: bytes) -> Path:
        path = tmp_path / "a.pth"
        if request.param == "zip":
            return repacked(zipped({"a": ARRAY}, path), **{"data.pkl": content})
        torch.save({"a": ARRAY}, path, _use_new_zipfile_serialization=False)
        with open(path, "rb") as file:
            for _ in range(3):  # a mark, a version and facts about the machine
                pickle.load(file)
            start = file.tell()
        path.write_bytes(path.read_bytes()[:start] + content + pickle.dumps([], 2))
        return path

    return to_file


OBJECTS = {
    "tuple-key": (nested_tuples(60), "a dictionary key of type tuple"),
    "tuple-keys": (b"}(" + nested_tuples(60)[1:-1] + b"u", "a dictionary key of type tuple"),
    "frame": (b"\x95" + bytes(8) + b"}", "opcode FRAME"),
    "integers-of-one-hash": (
        b"}(" + b"".join(b"\x8a\x09" + (n * (2**61 - 1)).to_bytes(9, "little") + b"N" for n in range(1, 9)) + b"u",
        "a dictionary key of type int",
    ),
    "deep": (b")" + b"\x85" * 100_000, "an object of type tuple, not a state dict"),
    "deep-list": (b"]" * 100_000 + b"a" * 99_999, "an object of type list, not a state dict"),
    "billion-laughs": (b"}X\x01\x00\x00\x00a" + nested_tuples(60)[1:-3] + b"s", "a is of type tuple, not a tensor"),
    "empty-stack": (b"0", "opcode POP"),
    "no-value": (b"\x85", "damaged pickle"),
    "beyond-a-mark": (b"}(\x86", "damaged pickle"),
    "unset-memo": (b"h\x07", "damaged pickle"),
    "text-beyond-the-end": (b"X\xff\xff\xff\x7fa", "damaged pickle"),
    "number-of-a-gigabyte": (b"\x8b\xff\xff\xff\x3f\x01", "damaged pickle"),
    "escape-sequence": (b"cposix\n\x1b[2Jsystem\n", r"would run posix\.\\x1b\[2Jsystem, and was not loaded"),
    "control-characters-in-a-name": (b"}X\x04\x00\x00\x00\x1b[2JNs", r"\\x1b\[2J is not the name of an array"),
    "long-name": (b"}X\x20\x03\x00\x00" + b"a" * 800 + b"Ns", "is not the name of an array"),
    "long-key": (b"}X\x40\x0d\x03\x00" + b"a" * 200_000 + b"Ns", "a dictionary key of type str, other than short"),
    "dictionary-of-pairs": (b"ccollections\nOrderedDict\n]\x85R", "pickle of Python 2"),
    "size-of-a-long-list": (b"ctorch\nSize\n](" + b"N" * 60_000 + b"e\x85R", "damaged pickle .an invalid size"),
    "size-of-a-long-tuple": (b"ctorch\nSize\n(" + b"K\x01" * 60_000 + b"t\x85R", "damaged pickle .an invalid size"),
    "many-arguments": (b"cargparse\nNamespace\n(" + b"N" * 60_000 + b"tR", "a call with too many arguments"),
    "storage-of-many-parts": (b"(" + b"N" * 60_000 + b"tQ", "a storage of an unknown form"),
    "long-layout": (
        b"ctorch.serialization\n_get_layout\nX\x40\x0d\x03\x00" + b"a" * 200_000 + b"\x85R",
        "damaged pickle .an invalid layout",
    ),
    "long-class": (b"ctorch\nfloat8" + b"a" * 10_000 + b"\n", "would run torch.float8aaaa"),
}


@pytest.mark.parametrize(("body", "message"), OBJECTS.values(), ids=OBJECTS.keys())
def test_a_hostile_pickle_is_refused_in_one_short_line(
    save_pickle: Callable[[bytes], Path], body: bytes, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        open_weights(save_pickle(pickled(body)))
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 500


def test_more_opcodes_than_weights_need_are_refused(
    save_pickle: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convert.files.unpickling.MAX_OPCODES", 100)
    with pytest.raises(CheckpointError, match="more than 100 opcodes"):
        open_weights(save_pickle(pickled(b"]" + b"Na" * 100)))


def test_no_module_is_imported_and_no_function_called(tmp_path: Path) -> None:
    """PyTorch is not even there."""
    path = zipped({"model": {"a": ARRAY}, "args": Namespace(lr=1)}, tmp_path / "a.pth")
    code = (
        "import sys; from pathlib import Path; from convert.files.containers import open_weights\n"
        f"with open_weights(Path({str(path)!r})) as file: print(list(file.tensors), 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "['a'] False\n"
