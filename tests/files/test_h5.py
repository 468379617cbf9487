from __future__ import annotations

import contextlib
import subprocess
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from support.conversions import arrays_of, convert
from support.networks import TINY
from support.reading import load_all

from convert.checkpoints.manifest import Manifest
from convert.errors import CheckpointError
from convert.files.base import Metadata, Tensor, file_sha256
from convert.files.h5 import H5File, H5Writer
from convert.files.h5_reader import H5Reader
from convert.network.dtypes import BFLOAT16, FLOAT16, FLOAT32
from convert.network.parameters import parameters

ARRAY = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
COMPACT = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
COMPACT.set_layout(h5py.h5d.COMPACT)
STRIDES = [5, pytest.param(1, marks=pytest.mark.long)]


def save(path: Path, array: NDArray[np.generic] = ARRAY, **options: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("group/a", data=array, **options)
    return path


def written(path: Path, arrays: dict[str, NDArray[Any]]) -> Path:
    """Write float32 arrays with `H5Writer`."""
    tensors = [Tensor(key, array.shape, FLOAT32) for key, array in arrays.items()]
    writer = H5Writer(
        path, tensors, Metadata({"/": {"layer_names": ["group"]}, "group": {"weight_names": list(arrays)}})
    )
    for tensor in tensors:
        writer.write(tensor, [arrays[tensor.key].reshape(-1)])
    writer.finish()
    writer.close()
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (1, 2, 4)},
        {"compression": "gzip", "shuffle": True},
        {"compression": "lzf"},
        {"fletcher32": True},
        {"dcpl": COMPACT},
    ],
    ids=["contiguous", "chunked", "gzip", "lzf", "fletcher32", "compact"],
)
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", ">f2", "<f8", ">f8"])
def test_every_float_array_reads_as_h5py_reads_it(tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    path = save(tmp_path / "a.h5", ARRAY.astype(dtype), **options)
    found = load_all(path)["group/a"]
    with h5py.File(path) as file:
        np.testing.assert_array_equal(found, file["group/a"][()])


@pytest.mark.parametrize("options", [{}, {"chunks": (1, 2, 4)}], ids=["contiguous", "chunked"])
def test_bfloat16_as_keras_3_stores_it_reads_as_its_bits(tmp_path: Path, options: dict[str, Any]) -> None:
    array = ARRAY.astype(ml_dtypes.bfloat16)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=array, **options).attrs["dtype"] = "bfloat16"
    with H5File(tmp_path / "a.h5") as opened:
        assert opened.tensors["a"].dtype is BFLOAT16
    np.testing.assert_array_equal(load_all(tmp_path / "a.h5")["a"], array.view(np.uint16))


def test_a_part_of_a_compressed_array_reads_as_that_part(tmp_path: Path) -> None:
    with H5File(save(tmp_path / "a.h5", compression="gzip")) as file:
        out = np.empty(5, np.float32)
        file.read(file.tensors["group/a"], 7, out)
    np.testing.assert_array_equal(out, ARRAY.reshape(-1)[7:12])


def test_a_scalar_and_an_empty_array_are_read(tmp_path: Path) -> None:
    np.testing.assert_array_equal(load_all(save(tmp_path / "a.h5", np.array(1.5)))["group/a"], 1.5)
    assert load_all(save(tmp_path / "b.h5", np.zeros((0, 3))))["group/a"].shape == (0, 3)


def test_h5py_reads_a_file_of_the_writer(tmp_path: Path) -> None:
    tensors = [Tensor("x/a", (2, 3, 4), FLOAT32), Tensor("x/half", (24,), FLOAT16), Tensor("b", (24,), BFLOAT16)]
    writer = H5Writer(tmp_path / "a.h5", tensors)
    flat = ARRAY.reshape(-1)
    writer.write(tensors[0], [flat[:10], flat[10:]])
    writer.write(tensors[1], [flat.astype(np.float16)])
    writer.write(tensors[2], [flat.astype(ml_dtypes.bfloat16).view(np.uint16)])
    writer.finish()
    writer.close()
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["x/a"][()], ARRAY)
        np.testing.assert_array_equal(file["x/half"][()], flat.astype(np.float16))
        assert file["b"].attrs["dtype"] == "bfloat16"
        np.testing.assert_array_equal(file["b"][()].view(ml_dtypes.bfloat16), flat.astype(ml_dtypes.bfloat16))


def test_keras_2_finds_every_weight_in_the_order_of_its_layers(tiny_npz: Path, tmp_path: Path) -> None:
    """As Keras' `load_weights` walks the file: by `layer_names`, then by `weight_names`."""
    with h5py.File(convert(tiny_npz, "google-tf2", tmp_path / "out") / "tiny.h5") as file:
        layers = [name.decode() for name in file.attrs["layer_names"]]
        weights = {layer: [name.decode() for name in file[layer].attrs["weight_names"]] for layer in layers[:4]}
        found = [file[layer][name][()] for layer, names in weights.items() for name in names]
        assert not any(file[layer].attrs["weight_names"].size for layer in layers[4:6])
        head = [file["head/dense"][name.decode()][()] for name in file["head/dense"].attrs["weight_names"]]
    assert layers == ["root_block", "block1", "block2", "group_norm", "re_lu", "global_average_pooling2d", "head/dense"]
    assert weights["root_block"] == ["root_block/standardized_conv2d/kernel:0"]
    assert weights["block2"] == [
        "block2/unit01/a/group_norm/gamma:0",
        "block2/unit01/a/group_norm/beta:0",
        "block2/unit01/a/standardized_conv2d/kernel:0",
        "block2/unit01/b/group_norm/gamma:0",
        "block2/unit01/b/group_norm/beta:0",
        "block2/unit01/b/standardized_conv2d/kernel:0",
        "block2/unit01/c/group_norm/gamma:0",
        "block2/unit01/c/group_norm/beta:0",
        "block2/unit01/c/standardized_conv2d/kernel:0",
        "block2/unit01/a/proj/standardized_conv2d/kernel:0",
    ]
    assert weights["group_norm"] == ["group_norm/gamma:0", "group_norm/beta:0"]
    for array, expected in zip(found + head, arrays_of(TINY).values(), strict=True):
        np.testing.assert_array_equal(array, expected.reshape(array.shape))


def test_text_is_stored_as_bytes_which_keras_2_decodes(tiny_npz: Path, tmp_path: Path) -> None:
    with h5py.File(convert(tiny_npz, "google-tf2", tmp_path / "out") / "tiny.h5") as file:
        for name in ("backend", "keras_version"):
            assert h5py.check_string_dtype(file.attrs.get_id(name).dtype).encoding == "ascii", name


def test_bytes_announced_as_written_do_not_change(tmp_path: Path) -> None:
    """The last array comes to lie before the large ones, among the small."""
    path, sizes = tmp_path / "a.h5", [3] * 5 + [1000] * 5 + [3]
    tensors = [Tensor(f"{number}/a", (size,), FLOAT32) for number, size in enumerate(sizes)]
    writer, prefixes = H5Writer(path, tensors), []

    def blocks(tensor: Tensor) -> Iterator[NDArray[np.generic]]:
        for start in range(0, tensor.size, 300):
            yield np.arange(start, min(start + 300, tensor.size), dtype=np.float32) + 1
            prefixes.append(path.read_bytes()[: writer.written])

    for tensor in tensors:
        writer.write(tensor, blocks(tensor))
    writer.finish()
    writer.close()
    whole = path.read_bytes()
    with H5File(path) as file:
        offsets = [file.tensors[tensor.key].offset for tensor in tensors]
    assert offsets[-1] < offsets[5]
    assert writer.written == len(whole)
    assert 0 < len(prefixes[0]) < len(prefixes[-1]) <= len(whole)
    assert all(whole.startswith(prefix) for prefix in prefixes)


@pytest.mark.parametrize("layout", ["google-tf2", "keras"])
def test_the_manifest_holds_the_hash_of_the_file(tiny_npz: Path, tmp_path: Path, layout: str) -> None:
    folder = convert(tiny_npz, layout, tmp_path / "out")
    manifest = Manifest.read(folder)
    assert manifest is not None
    (name,) = (name for name in manifest.files if name.endswith(".h5"))
    assert manifest.files[name].sha256 == file_sha256(folder / name)


@pytest.mark.parametrize("layout", ["google-tf2", "keras"])
def test_the_same_weights_give_the_same_bytes_at_any_time(tiny_npz: Path, tmp_path: Path, layout: str) -> None:
    folders = [convert(tiny_npz, layout, tmp_path / name) for name in ("first", "second")]
    first, second = (next(folder.glob("*.h5")) for folder in folders)
    assert file_sha256(first) == file_sha256(second)
    with h5py.File(first) as file:
        objects = [file, *(file[name] for name in everything(file))]
        times = {item.name: h5py.h5o.get_info(item.id).mtime for item in objects}
    assert len(times) > len(parameters(TINY))
    assert not any(times.values()), "HDF5 notes the second in which a group or an array is made, unless told not to"


def everything(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visit(names.append)
    return names


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
