"""Damaged and hostile HDF5 files: refused, or read as what they hold."""

from __future__ import annotations

import contextlib
import subprocess
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from support.h5 import ARRAY, save, written
from support.reading import load_all

from convert.errors import CheckpointError
from convert.files.base import file_sha256
from convert.files.h5 import H5File
from convert.files.h5_reader import H5Reader

STRIDES = [5, pytest.param(1, marks=pytest.mark.long)]


def as_soft_link(file: h5py.File) -> None:
    file["a"] = h5py.SoftLink("/group/a")


def as_external_link(file: h5py.File) -> None:
    file["a"] = h5py.ExternalLink("other.h5", "/a")


def as_external_storage(file: h5py.File) -> None:
    file.create_dataset("a", (6,), "f4", external=[("other.bin", 0, 24)])


def as_virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((6,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "a", (6,))
    file.create_virtual_dataset("a", layout)


def as_second_name(file: h5py.File) -> None:
    file["a"] = file["group/a"]


def as_loop(file: h5py.File) -> None:
    file["group/a"] = file["/"]


def as_deep(file: h5py.File) -> None:
    file["/".join(["a"] * 100)] = ARRAY


def as_data(data: Any) -> Callable[[h5py.File], None]:
    def write(file: h5py.File) -> None:
        file["a"] = data

    return write


def as_unwritten(**options: Any) -> Callable[[h5py.File], None]:
    def write(file: h5py.File) -> None:
        file.create_dataset("a", (6,), "f4", **options)

    return write


def as_half_written(file: h5py.File) -> None:
    file.create_dataset("a", (6,), "f4", chunks=(2,))[:4] = 1


def as_one_large_chunk(file: h5py.File) -> None:
    file.create_dataset("a", (2**29,), "f4", chunks=(2**29,), compression="gzip")
    file["a"].id.write_direct_chunk((0,), bytes(3 << 20))


def as_one_long_row_of_chunks(file: h5py.File) -> None:
    file.create_dataset("a", (1, 2**26), "f4", chunks=(1, 2**10), compression="gzip")
    file["a"].id.write_direct_chunk((0, 0), bytes(3 << 20))


def as_a_chunk_larger_than_stated(file: h5py.File) -> None:
    file.create_dataset("a", (6,), "f4", chunks=(6,), compression="gzip")
    file["a"].id.write_direct_chunk((0,), bytes(1000))


def as_packed_twice(file: h5py.File) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((6,))
    plan.set_deflate(9)
    plan.set_deflate(9)
    file.create_dataset("a", data=np.zeros(6, np.float32), dcpl=plan)


def as_packed_otherwise(file: h5py.File) -> None:
    file.create_dataset("a", data=np.zeros(6, np.float32), scaleoffset=2)


def as_escape_sequence(file: h5py.File) -> None:
    file["\x1b[2J"] = ARRAY


def as_long_name(file: h5py.File) -> None:
    file["module." * 10_000] = ARRAY


def as_many(file: h5py.File) -> None:
    for number in range(40):
        file.create_group(f"{number}")


def as_a_long_mark(file: h5py.File) -> None:
    file["a"] = np.zeros(2, "V2")
    file["a"].attrs["dtype"] = np.array([b"bfloat16"] * 100)


def as_both_byte_orders(file: h5py.File) -> None:
    file["a"], file["b"] = ARRAY, ARRAY.astype(">f4")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (as_soft_link, "a is a link to another place"),
        (as_external_link, "a is a link to another place"),
        (as_external_storage, "a is stored in another file"),
        (as_virtual, "a is stored in another file"),
        (as_second_name, "has a second name in the file"),
        (as_loop, "has a second name in the file"),
        (as_deep, "groups are nested more than 32 deep"),
        (as_data(np.arange(3)), "a holds elements of type int64"),
        (as_data(np.array([True])), "a holds elements of type bool"),
        (as_data(np.array([1 + 1j])), "a holds elements of type complex128"),
        (as_data(np.zeros(2, [("x", "<f4")])), "a holds elements of type [('x', '<f4')]"),
        (as_data(np.zeros(2, "V2")), "a holds elements of type |V2"),
        (as_data(np.array([b"text"])), "a holds elements of type |S4"),
        (as_data("text"), "a holds elements of type object"),
        (as_data(np.dtype("f4")), "a is neither a group nor an array"),
        (as_data(h5py.Empty("f4")), "a has no elements"),
        (as_unwritten(), "a was created but never filled"),
        (as_unwritten(chunks=(2,)), "a was created but never filled"),
        (as_half_written, "some chunks of a are missing"),
        (as_one_large_chunk, "a row of chunks of a has 2147483648 bytes, more than 134217728"),
        (as_one_long_row_of_chunks, "a row of chunks of a has 268435456 bytes, more than 134217728"),
        (as_a_chunk_larger_than_stated, "some chunks of a are missing or too large"),
        (as_packed_twice, "a is packed by unknown or several filters"),
        (as_packed_otherwise, "a is packed by unknown or several filters"),
        (as_escape_sequence, r"\x1b[2J is not the name of an array"),
        (as_long_name, "is not the name of an array"),
        (as_many, "holds more than 30 arrays"),
        (as_a_long_mark, "a holds elements of type |V2"),
        (as_both_byte_orders, "arrays of both byte orders"),
    ],
)
def test_anything_but_plain_arrays_is_refused_by_name(
    tmp_path: Path, make: Callable[[h5py.File], None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convert.files.h5_reader.MAX_TENSORS", 30)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if make in (as_soft_link, as_second_name):
            file["group/a"] = ARRAY
        make(file)
    with pytest.raises(CheckpointError) as raised:
        H5Reader(tmp_path / "a.h5")
    assert str(raised.value).startswith(str(tmp_path / "a.h5"))
    assert message in str(raised.value)
    assert "damaged (" not in str(raised.value)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 500


def lzf(count: int) -> bytes:
    """Zeros as LZF packs them: one literal, then copies of 264 bytes."""
    return b"\0\0" + (count // 264) * b"\xe0\xff\0"


@pytest.mark.parametrize(("packer", "packed"), [("gzip", zlib.compress(bytes(1 << 26), 9)), ("lzf", lzf(1 << 26))])
@pytest.mark.parametrize("fletcher32", [False, True])
def test_a_chunk_that_unpacks_to_more_than_stated_is_refused_before_it_is_unpacked(
    tmp_path: Path, packer: str, packed: bytes, fletcher32: bool
) -> None:
    count = 1 << 18
    with h5py.File(tmp_path / "a.h5", "w") as file:
        array = file.create_dataset("a", (count,), "f4", chunks=(count,), compression=packer, fletcher32=fletcher32)
        array.id.write_direct_chunk((0,), packed + bytes(4 * fletcher32))
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="a chunk does not hold the stated number of bytes"):
        load_all(tmp_path / "a.h5", H5Reader)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("packed", [b"\xe0", b"\xe0\xff", b"\x1f", b""], ids=["length", "offset", "literals", "empty"])
def test_a_chunk_of_lzf_that_is_cut_short_is_an_error(tmp_path: Path, packed: bytes) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        array = file.create_dataset("a", (24,), "f4", chunks=(24,), compression="lzf")
        array.id.write_direct_chunk((0,), b"\0\0" + packed)
    with pytest.raises(CheckpointError, match="a is damaged"):
        load_all(tmp_path / "a.h5", H5Reader)


@pytest.mark.parametrize(
    ("options", "stored"),
    [
        ({"compression": "gzip"}, zlib.compress(bytes(92))),
        ({"shuffle": True}, bytes(92)),
        ({"fletcher32": True}, bytes(92)),
    ],
)
def test_a_chunk_that_is_too_short_is_an_error(tmp_path: Path, options: dict[str, Any], stored: bytes) -> None:
    """The library would fill the array with what is in memory behind the chunk."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        array = file.create_dataset("a", (24,), "f4", chunks=(24,), **options)
        array.id.write_direct_chunk((0,), stored)
    with pytest.raises(CheckpointError, match="a is damaged"):
        load_all(tmp_path / "a.h5", H5Reader)


@pytest.mark.parametrize("packer", ["gzip", "lzf"])
@pytest.mark.parametrize("chunks", [(64, 64, 33), (7, 64, 3), (1, 1, 1000), (64, 1, 1)])
def test_chunks_of_any_form_read_as_h5py_reads_them(tmp_path: Path, packer: str, chunks: tuple[int, ...]) -> None:
    array = np.round(np.random.default_rng(0).random((64, 64, 33 if chunks[2] < 1000 else 1000)), 1).astype(np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=array, chunks=chunks, compression=packer, shuffle=True, fletcher32=True)
    np.testing.assert_array_equal(load_all(tmp_path / "a.h5")["a"].reshape(array.shape), array)


def test_a_file_that_is_replaced_while_it_is_opened_is_refused_or_read_as_it_was_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = (save(tmp_path / f"{sign}.h5", sign * ARRAY, compression="gzip") for sign in (1, -1))
    expected, out, started = file_sha256(path), np.empty(24, np.float32), subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *given, **options: (other.replace(path), started(*given, **options))[1]
    )
    with contextlib.suppress(CheckpointError), H5File(path) as file:
        file.read(file.tensors["group/a"], 0, out)
        assert file.sha256() == expected
        np.testing.assert_array_equal(out, ARRAY.reshape(-1))


def test_an_error_of_the_process_names_the_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = np.arange(3)
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}/a\.h5: a holds elements of type int64"):
        H5File(tmp_path / "a.h5")


def test_a_file_for_which_the_library_loops_for_ever_is_refused(tmp_path: Path) -> None:
    """The heap of text has an object of no size, which HDF5 1.14 reads again and again."""
    with h5py.File(tmp_path / "a.h5", "w", libver=("v108", "v108")) as file:
        file["a"] = np.zeros(3, "V2")
        file["a"].attrs["dtype"] = "bfloat16"
    content = (tmp_path / "a.h5").read_bytes()
    position = content.index(b"GCOL") + 24
    (tmp_path / "a.h5").write_bytes(content[:position] + b"\0" + content[position:])
    with pytest.raises(CheckpointError, match="the HDF5 library crashed, or needed too much time or memory"):
        H5File(tmp_path / "a.h5")


def test_a_process_that_ends_while_it_unpacks_is_an_error(tmp_path: Path) -> None:
    with H5File(save(tmp_path / "a.h5", compression="gzip")) as file:
        file._reader.kill()
        file._reader.wait()
        with pytest.raises(CheckpointError, match="the HDF5 library crashed"):
            file.read(file.tensors["group/a"], 0, np.empty(24, np.float32))


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("make", [lambda path: save(path), lambda path: written(path, {"group/a": ARRAY})])
def test_a_truncated_file_is_refused(tmp_path: Path, make: Callable[[Path], Path], kept: float) -> None:
    path = make(tmp_path / "a.h5")
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(CheckpointError, match="not a complete h5 file"):
        H5File(path)


def data_address(path: Path, key: str) -> int:
    """Return the offset in a file of the first version at which the address of an array stands, before the size."""
    with h5py.File(path) as file:
        array = file[key].id
        entry = array.get_offset().to_bytes(8, "little") + array.get_storage_size().to_bytes(8, "little")
    content = path.read_bytes()
    assert content.count(entry) == 1
    return content.index(entry)


@pytest.mark.parametrize("target", ["array", "header"])
def test_an_array_that_overlaps_another_or_a_header_is_refused(tmp_path: Path, target: str) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["a"], file["b"] = ARRAY, -ARRAY
        other = file["a"].id.get_offset() + 8 if target == "array" else h5py.h5o.get_info(file["a"].id).addr - 8
    position, content = data_address(path, "b"), bytearray(path.read_bytes())
    content[position : position + 8] = other.to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="overlap; the file is damaged"):
        H5File(path)


def test_a_damaged_chunk_is_an_error(tmp_path: Path) -> None:
    path = save(tmp_path / "a.h5", fletcher32=True)
    path.write_bytes(path.read_bytes().replace(ARRAY[0].tobytes(), (-ARRAY[0]).tobytes()))
    with pytest.raises(CheckpointError, match="group/a is damaged"):
        load_all(path)


def flips(path: Path, flipped: Path, stride: int) -> Iterator[dict[str, NDArray[np.generic]]]:
    """Change every `stride`-th byte outside the arrays in turn; yield the arrays if the file is not refused."""
    with H5File(path) as file:
        spans = [range(tensor.offset, tensor.offset + tensor.nbytes) for tensor in file.tensors.values()]
    whole = path.read_bytes()
    for position in range(0, len(whole), stride):
        if not any(position in span for span in spans):
            flipped.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
            with contextlib.suppress(CheckpointError):
                yield load_all(flipped, H5Reader)


@pytest.mark.parametrize("stride", STRIDES)
def test_a_flipped_byte_in_the_directory_of_a_written_file_is_an_error_or_changes_nothing(
    tmp_path: Path, stride: int
) -> None:
    path = written(tmp_path / "a.h5", {"group/a": ARRAY, "group/b": ARRAY + 1})
    for found in flips(path, tmp_path / "flipped.h5", stride):
        assert found.keys() == {"group/a", "group/b"}
        np.testing.assert_array_equal(found["group/a"], ARRAY)
        np.testing.assert_array_equal(found["group/b"], ARRAY + 1)


@pytest.mark.parametrize("stride", STRIDES)
def test_a_flipped_byte_of_a_directory_without_checksums_never_gives_another_shape(tmp_path: Path, stride: int) -> None:
    """The format's first version, which h5py and Keras write."""
    path = save(tmp_path / "a.h5")
    for found in flips(path, tmp_path / "flipped.h5", stride):
        for array in found.values():  # another name is found by the plan, which knows which are missing
            assert (array.shape, array.dtype) == (ARRAY.shape, ARRAY.dtype)
