from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from support.conversions import arrays_of, convert
from support.h5 import ARRAY, everything, save
from support.networks import TINY
from support.reading import load_all

from convert.checkpoints.manifest import Manifest
from convert.files.base import Tensor, file_sha256
from convert.files.h5 import H5File, H5Writer
from convert.network.dtypes import BFLOAT16, FLOAT16, FLOAT32
from convert.network.parameters import parameters

COMPACT = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
COMPACT.set_layout(h5py.h5d.COMPACT)


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
