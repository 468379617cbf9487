from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from support.npy import header, npy, pickled
from support.reading import load

from convert.errors import CheckpointError
from convert.files.base import Tensor, file_sha256
from convert.files.containers import open_weights
from convert.files.npz import NpzFile, NpzWriter
from convert.network.dtypes import FLOAT32

ARRAY = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def save(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", ">f2", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_float_array_reads_as_numpy_reads_it(tmp_path: Path, method: int, dtype: str, order: str) -> None:
    array = np.asarray(ARRAY, dtype=dtype, order=order)  # type: ignore[call-overload]
    path = save(tmp_path / "a.npz", {"a.npy": npy(array)}, method)
    np.testing.assert_array_equal(load(path), np.load(path)["a"])


def test_bfloat16_reads_as_its_bits(tmp_path: Path) -> None:
    bits = ARRAY.astype(ml_dtypes.bfloat16).view(np.uint16)
    np.savez(tmp_path / "little.npz", a=ARRAY.astype(ml_dtypes.bfloat16))
    save(tmp_path / "big.npz", {"a.npy": header("(2, 3, 4)", "'>V2'") + bits.astype(">u2").tobytes()})
    for path in (tmp_path / "little.npz", tmp_path / "big.npz"):
        with NpzFile(path) as file:
            assert file.tensors["a"].dtype.name == "bfloat16"
        np.testing.assert_array_equal(load(path), bits)


def test_a_part_of_a_deflated_array_reads_as_that_part(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", {"a.npy": npy(ARRAY), "b.npy": npy(-ARRAY)}, zipfile.ZIP_DEFLATED)
    with NpzFile(path) as file:
        out = np.empty(5, np.float32)
        for key, array in (("b", -ARRAY), ("a", ARRAY), ("b", -ARRAY)):
            file.read(file.tensors[key], 7, out)
            np.testing.assert_array_equal(out, array.reshape(-1)[7:12])


def test_the_writer_writes_the_same_bytes_as_numpy(tmp_path: Path) -> None:
    writer = NpzWriter(tmp_path / "a.npz", [])
    writer.write(Tensor("a", ARRAY.shape, FLOAT32), [ARRAY.reshape(-1)[:10], ARRAY.reshape(-1)[10:]])
    writer.finish()
    writer.close()
    np.savez(tmp_path / "numpy.npz", a=ARRAY)
    assert file_sha256(tmp_path / "a.npz") == file_sha256(tmp_path / "numpy.npz")


def test_an_unfinished_file_cannot_be_opened(tmp_path: Path) -> None:
    writer = NpzWriter(tmp_path / "a.npz", [])
    writer.write(Tensor("a", ARRAY.shape, FLOAT32), [ARRAY.reshape(-1)])
    writer.close()
    with pytest.raises(CheckpointError, match="not a complete npz"):
        NpzFile(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"../a.npy": npy(ARRAY)}, "not the name of an array"),
        ({"/a.npy": npy(ARRAY)}, "not the name of an array"),
        ({"x\\..\\a.npy": npy(ARRAY)}, "not the name of an array"),
        ({"readme.txt": b"hello"}, "readme.txt is not an .npy array"),
        ({"a.npy": b"hello"}, "a.npy is not a plain .npy array"),
        ({"a.npy": b""}, "a.npy is not a plain .npy array"),
        ({"a.npy": pickled()}, "elements of type object"),
        ({"a.npy": npy(np.array([1 + 1j]))}, "elements of type <c16"),
        ({"a.npy": npy(np.zeros(2, [("x", "<f4")]))}, "not a plain .npy array"),
        ({"a.npy": header("(1000000, 1000000000)") + b"1234"}, "shape [1000000, 1000000000] of float32"),
        ({"a.npy": header("(2, 3)") + bytes(20)}, "has 20 bytes of data, which does not fit shape [2, 3] of float32"),
        ({"a.npy": header("(2, 3)") + bytes(28)}, "has 28 bytes of data, which does not fit shape [2, 3] of float32"),
        ({"a.npy": header("(-2, -3)") + bytes(24)}, "shape [-2, -3]"),
        ({"a.npy": header("(2, 3)", "'<f4', 'x': 1") + bytes(24)}, "not a plain .npy array"),
        ({"a.npy": header("__import__('os').getcwd()") + bytes(24)}, "not a plain .npy array"),
        ({"a.npy": header(f"({'1,' * 33})") + bytes(4)}, "a has more axes than 32"),
        (
            {"a.npy": header(f"(1{'0' * 60}, 1)") + bytes(4)},
            "a has more axes than 32, or one beyond 9223372036854775807",
        ),
        ({"a.npy": header("(2.5,)") + bytes(10)}, "not a plain .npy array"),
        ({"a.npy": header("(1if 2else 3,)") + bytes(10)}, "not a plain .npy array"),
        ({"a.npy": header("(2,)", "'T'") + bytes(10)}, "elements of type T"),
    ],
)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_a_member_that_is_not_a_plain_array_is_refused_by_name(
    tmp_path: Path, members: dict[str, bytes], message: str, method: int
) -> None:
    with pytest.raises(CheckpointError) as raised:
        NpzFile(save(tmp_path / "a.npz", members, method))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["\x1b[2J.npy"], r"\\x1b\[2J\.npy is not the name of an array"),
        (["module." * 1000 + ".npy"], "is not the name of an array"),
        ([f"{number}.npy" for number in range(10_001)], "holds more than 10000 arrays"),
        ([f"{number}{'x' * 60_000}" for number in range(140)], "a directory of more than 8388608 bytes"),
    ],
    ids="escape-sequence long many large-directory".split(),
)
def test_names_that_no_checkpoint_has_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        open_weights(save(tmp_path / "a.npz", dict.fromkeys(names, b"")))
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 500


def test_integers_are_listed_apart_from_the_weights(tmp_path: Path) -> None:
    with NpzFile(save(tmp_path / "a.npz", {"a.npy": npy(np.arange(3)), "b.npy": npy(ARRAY)})) as file:
        assert (list(file.tensors), file.others) == (["b"], {"a": "holds elements of type <i8"})


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_duplicate_member_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", npy(ARRAY))
        archive.writestr("a.npy", npy(-ARRAY))
    with pytest.raises(CheckpointError, match=r"two members named a\.npy"):
        NpzFile(tmp_path / "a.npz")


def test_an_unknown_compression_is_refused_by_name(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", {"a.npy": npy(ARRAY)}, zipfile.ZIP_LZMA)
    with pytest.raises(CheckpointError, match=r"a\.npy is compressed by method 14"):
        NpzFile(path)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    path = save(tmp_path / "a.npz", {"a.npy": npy(ARRAY), "b.npy": npy(ARRAY)})
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(CheckpointError):
        NpzFile(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_a_flipped_byte_anywhere_is_an_error_or_changes_nothing(tmp_path: Path, method: int) -> None:
    """Every single byte in turn: never another exception, never another array."""
    path = save(tmp_path / "a.npz", {"a.npy": npy(ARRAY), "b.npy": npy(ARRAY + 1)}, method)
    whole, flipped = path.read_bytes(), tmp_path / "flipped.npz"
    refused = 0
    for position in range(len(whole)):
        flipped.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            with NpzFile(flipped) as file:
                keys = list(file.tensors)
            for key, expected in zip(("a", "b"), (ARRAY, ARRAY + 1), strict=True):
                if key in keys:  # another name is found by the plan, which knows which are missing
                    np.testing.assert_array_equal(load(flipped, key), expected)
        except CheckpointError:
            refused += 1
    assert refused > len(whole) / 2


def test_a_member_that_overlaps_another_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", {"a.npy": npy(ARRAY), "b.npy": npy(ARRAY)})
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    struct.pack_into("<I", content, entry + 42, 0)  # the second member's data are the first's
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="overlap"):
        NpzFile(path)


def test_members_with_exchanged_names_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", {"a.npy": npy(ARRAY), "b.npy": npy(-ARRAY)})
    content = path.read_bytes()
    directory = content.index(b"PK\x01\x02")
    swapped = content[directory:].replace(b"a.npy", b"?.npy").replace(b"b.npy", b"a.npy").replace(b"?.npy", b"b.npy")
    path.write_bytes(content[:directory] + swapped)
    with pytest.raises(CheckpointError, match="has another name in the member's own header"):
        NpzFile(path)


@pytest.mark.parametrize("flag", [0x01, 0x20, 0x40])
def test_encrypted_and_patched_members_are_refused(tmp_path: Path, flag: int) -> None:
    path = save(tmp_path / "a.npz", {"a.npy": npy(ARRAY)})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= flag
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="encrypted or a patch"):
        NpzFile(path)


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", {"a.npy": npy(ARRAY)})
    with NpzFile(path) as file:
        with open(path, "ab") as changed:
            changed.write(b"x")
        with pytest.raises(CheckpointError, match="changed while it was read"):
            file.sha256()
