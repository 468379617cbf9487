"""Files of `torch.save`: read from their offsets, nothing in them run."""

from __future__ import annotations

import pickle
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.command import assert_refused, run_here
from support.conversions import bits_of, convert
from support.reading import load
from support.torch_files import ARRAY, repacked, zipped

from convert.checkpoints.checkpoint import Checkpoint
from convert.errors import CheckpointError
from convert.files.base import file_sha256
from convert.files.containers import open_weights
from convert.files.pytorch import LegacyPickle, ZippedPickle


@pytest.fixture(scope="module", params=["timm", "transformers"])
def folder(request: pytest.FixtureRequest, tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversion to safetensors, not to be changed."""
    return convert(tiny_npz, request.param, tmp_path_factory.mktemp("pytorch") / request.param)


@pytest.fixture
def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], Path]:
    """`torch.save`, in the format of today and in that of PyTorch before 1.6."""

    def to_file(content: Any) -> Path:
        torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=request.param)
        return tmp_path / "a.pth"

    return to_file


@pytest.mark.parametrize("name", ["pytorch_model.bin", "tiny.pth", "tiny.pth.tar", "tiny.pt", "tiny"])
def test_a_state_dict_and_safetensors_convert_to_the_same_bytes(
    name: str, folder: Path, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(OrderedDict(state), tmp_path / name)
    with Checkpoint(tmp_path / name) as checkpoint:
        assert isinstance(checkpoint.file, ZippedPickle)
        assert checkpoint.layout.name == folder.name
        assert checkpoint.notes == []
        assert checkpoint.name == name.split(".")[0]
    found = convert(tmp_path / name, "timm", tmp_path / "out") / "model.safetensors"
    expected = convert(folder, "timm", tmp_path / "expected") / "model.safetensors"
    assert file_sha256(found) == file_sha256(expected)


def test_the_format_before_pytorch_1_6_is_read(folder: Path, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "tiny.pth", _use_new_zipfile_serialization=False)
    with Checkpoint(tmp_path / "tiny.pth") as checkpoint:
        assert isinstance(checkpoint.file, LegacyPickle)
    found = convert(tmp_path / "tiny.pth", "timm", tmp_path / "out") / "model.safetensors"
    expected = convert(folder, "timm", tmp_path / "expected") / "model.safetensors"
    assert file_sha256(found) == file_sha256(expected)


@pytest.mark.parametrize("name", ["state_dict_ema", "model_ema", "state_dict", "model"])
def test_a_nested_state_dict_is_found_and_ignored_entries_are_named(
    save: Callable[[Any], Path], name: str, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = save({"epoch": 3, name: state, "optimizer": {"lr": 0.1}})
    with Checkpoint(path) as checkpoint:
        assert checkpoint.notes == [f"uses the weights in {name}; ignores epoch, optimizer"]
    assert bits_of(path) == bits_of(zipped(state, tmp_path / "plain.pth"))


def test_the_averaged_one_of_several_state_dicts_is_used(save: Callable[[Any], Path]) -> None:
    path = save({"model": {"a": ARRAY}, "state_dict": {"a": ARRAY + 1}, "state_dict_ema": {"a": ARRAY + 2}})
    np.testing.assert_array_equal(load(path).view(np.float32), ARRAY + 2)
    with open_weights(path) as file:
        assert file.notes == ["uses the weights in state_dict_ema; ignores model, state_dict"]


def test_the_options_of_a_training_script_are_accepted(save: Callable[[Any], Path]) -> None:
    path = save({"arch": "resnetv2_50x1_bit", "args": Namespace(lr=1), "state_dict": {"a": ARRAY}})
    np.testing.assert_array_equal(load(path).view(np.float32), ARRAY)


def test_a_state_dict_in_a_state_dict_is_found(save: Callable[[Any], Path]) -> None:
    path = save({"model": {"state_dict": {"a": ARRAY}, "epoch": 1}})
    np.testing.assert_array_equal(load(path).view(np.float32), ARRAY)
    with open_weights(path) as file:
        assert [note.partition(";")[0] for note in file.notes] == [
            "uses the weights in model",
            "uses the weights in state_dict",
        ]


def test_a_state_dict_that_holds_itself_is_refused(save: Callable[[Any], Path]) -> None:
    content: dict[str, Any] = {"a": ARRAY}
    content["model"] = content
    with pytest.raises(CheckpointError, match="nested in itself"):
        open_weights(save(content))


def test_a_note_is_one_short_printable_line(save: Callable[[Any], Path]) -> None:
    with open_weights(save({"model": {"a": ARRAY}, 1: 2, "\x1b[2J\n": 3, **{f"{n}": n for n in range(50)}})) as file:
        (note,) = file.notes
    assert note.isprintable()
    assert note.endswith("ignores 1, '\\x1b[2J\\n', 0, 1, 2, 3, 4, 5, …")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_removed_and_reported(
    prefix: str, folder: Path, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = zipped({"state_dict": {prefix + key: value for key, value in state.items()}}, tmp_path / "tiny.pth")
    with Checkpoint(path) as checkpoint:
        notes = checkpoint.notes[1:]
    parts = [part + "." for part in prefix.split(".")[:-1]]
    assert notes == [f"the prefix {part} of every name is ignored" for part in parts]
    found = convert(path, "timm", tmp_path / "out") / "model.safetensors"
    expected = convert(folder, "timm", tmp_path / "expected") / "model.safetensors"
    assert file_sha256(found) == file_sha256(expected)


@pytest.mark.parametrize("folder", ["timm"], indirect=True)
def test_the_command_reports_which_weights_it_uses_and_ignores(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    wrapped = {f"module.{key}": value for key, value in state.items()}
    zipped({"state_dict": wrapped, "state_dict_ema": wrapped, "epoch": 3}, tmp_path / "tiny.pth")
    result = run_here("convert", "tiny.pth", "--no-verify", "--out", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "warning: uses the weights in state_dict_ema; ignores state_dict, epoch\n" in result.stderr
    assert "warning: the prefix module. of every name is ignored\n" in result.stderr


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_type_reads_as_its_bits(save: Callable[[Any], Path], dtype: torch.dtype) -> None:
    tensor = (ARRAY / 7).to(dtype)
    found = load(save({"a": tensor}))
    assert found.tobytes() == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.nn.Parameter(ARRAY),
        torch.nn.Parameter(ARRAY[0].T),
        torch.zeros(0, 3),
        torch.tensor(3.0),
        ARRAY.permute(2, 0, 1),
        torch.arange(120.0).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.arange(12.0).reshape(4, 1, 3, 1).to(memory_format=torch.channels_last),
        torch.arange(100.0)[10:22].reshape(3, 4),
        ARRAY[1].T,
    ],
    ids="parameter parameter-view empty scalar permuted channels-last one-channel slice slice-permuted".split(),
)
def test_a_dense_tensor_is_read_from_any_storage_order(save: Callable[[Any], Path], tensor: torch.Tensor) -> None:
    found = load(save({"first": ARRAY, "a": tensor, "last": ARRAY}))
    np.testing.assert_array_equal(found.view(np.float32), tensor.detach().numpy())


def test_channels_last_kernels_convert_like_plain_ones(
    folder: Path, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    lasting = {
        key: value.to(memory_format=torch.channels_last) if value.ndim == 4 else value for key, value in state.items()
    }
    path = zipped(lasting, tmp_path / "tiny.pth")
    found = convert(path, "transformers", tmp_path / "out") / "model.safetensors"
    expected = convert(folder, "transformers", tmp_path / "expected") / "model.safetensors"
    assert file_sha256(found) == file_sha256(expected)


def test_a_part_of_a_tensor_reads_as_that_part(save: Callable[[Any], Path]) -> None:
    with open_weights(save({"a": torch.nn.Parameter(ARRAY)})) as file:
        out = np.empty(5, np.float32)
        file.read(file.tensors["a"], 7, out)
    np.testing.assert_array_equal(out, ARRAY.reshape(-1)[7:12])


def test_several_tensors_may_share_a_storage(save: Callable[[Any], Path]) -> None:
    whole = torch.arange(100.0)
    path = save({"all": whole, "same": whole, "head": whole[:10], "tail": whole[90:]})
    for key, expected in {"all": whole, "same": whole, "head": whole[:10], "tail": whole[90:]}.items():
        np.testing.assert_array_equal(load(path, key).view(np.float32), expected)


@pytest.mark.parametrize(
    "tensor", [ARRAY[:, ::2], ARRAY[..., 1], torch.zeros(1).expand(4)], ids="strided column expanded".split()
)
def test_a_view_with_gaps_is_refused(tensor: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a is a view of a larger tensor; save it as \.contiguous"):
        open_weights(zipped({"a": tensor}, tmp_path / "a.pth"))


def sparse() -> torch.Tensor:
    return ARRAY[0].to_sparse()


def compressed_rows() -> torch.Tensor:
    return ARRAY[0].to_sparse_csr()


def quantized() -> torch.Tensor:
    return torch.quantize_per_tensor(ARRAY, 0.1, 0, torch.qint8)


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning", "ignore:.*quantized:UserWarning")
@pytest.mark.parametrize("make", [sparse, compressed_rows, quantized])
def test_a_tensor_that_is_not_dense_is_refused(save: Callable[[Any], Path], make: Callable[[], torch.Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"not a file of dense tensors|a is a tensor of torch\."):
        open_weights(save({"a": make()}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": ARRAY.int()}, r"a is a tensor of torch\.int32"),
        ({"a": ARRAY.bool()}, r"a is a tensor of torch\.bool"),
        ({"a": ARRAY + 1j}, r"a is a tensor of torch\.complex64"),
        ({"a": ARRAY.to("meta")}, "a was saved without elements"),
        ({"a": torch._neg_view(ARRAY)}, r"a is a view with negated numbers; save it as \.resolve_neg"),
        ({"a": ARRAY, "epoch": 3}, "epoch is of type int, not a tensor"),
        ({"a": ARRAY, "rest": [ARRAY]}, "rest is of type list, not a tensor"),
        ({"a": None}, "a is of type NoneType, not a tensor"),
        ({"a": {"b": ARRAY}}, "a is of type dict, not a tensor"),
        ({1: ARRAY}, "the key 1 is of type int, not a tensor name"),
        ([ARRAY], "an object of type list, not a state dict"),
        (ARRAY, "an object of type Tensor, not a state dict"),
        ("text", "an object of type str, not a state dict"),
        ({"model": {"a": ARRAY}, "at": Path("there")}, "would run pathlib"),
        (torch.nn.Linear(2, 3), r"would run torch\.nn\.modules\.linear\.Linear, and was not loaded"),
    ],
    ids="int bool complex meta negated number list none dict integer-key a-list a-tensor a-text object model".split(),
)
def test_anything_but_named_dense_tensors_is_refused(save: Callable[[Any], Path], content: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_weights(save(content))


class Harmful:
    """Runs code when it is unpickled, as any pickle can: it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.path,)


def as_zip(content: Any, path: Path) -> None:
    torch.save(content, path)


def as_legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def as_pickle(content: Any, path: Path) -> None:
    with open(path, "wb") as file:
        pickle.dump(content, file)


def load_pickle(path: Path) -> None:
    with open(path, "rb") as file:
        pickle.load(file)


def load_torch(path: Path) -> None:
    torch.load(path, weights_only=False)


@pytest.mark.parametrize(
    ("dump", "as_any_pickle", "message"),
    [
        (as_zip, load_torch, "and was not loaded"),
        (as_legacy, load_torch, "and was not loaded"),
        (as_pickle, load_pickle, "a pickle that torch.save did not write"),
    ],
)
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(
    dump: Callable[[Any, Path], None], as_any_pickle: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    dump({"model": {"a": ARRAY}, "evil": Harmful(made)}, tmp_path / "bad.pth")
    assert_refused(run_here("convert", "bad.pth", cwd=tmp_path), message, tmp_path)
    assert not made.exists()
    as_any_pickle(tmp_path / "bad.pth")
    assert made.exists(), "it would have run"


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.1, 0.3, 0.5, 0.9, 0.99, 0.999])
def test_a_truncated_file_is_refused(save: Callable[[Any], Path], kept: float) -> None:
    path = save({"a": ARRAY, "b": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(CheckpointError):
        open_weights(path)


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.long)])
def test_a_flipped_byte_anywhere_is_an_error_or_changes_nothing(tmp_path: Path, stride: int) -> None:
    """Never another exception, never another array."""
    path, flipped = zipped({"a": ARRAY, "b": ARRAY[0].T}, tmp_path / "a.pth"), tmp_path / "flipped.pth"
    whole, refused = path.read_bytes(), 0
    for position in range(0, len(whole), stride):
        flipped.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            for key, expected in (("a", ARRAY), ("b", ARRAY[0].T)):
                np.testing.assert_array_equal(load(flipped, key).view(np.float32), expected)
        except CheckpointError:
            refused += 1
    assert refused > len(whole) / stride / 2


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "a\\..\\evil"])
def test_a_member_with_a_path_outside_the_archive_is_refused(name: str, tmp_path: Path) -> None:
    path = zipped({"a": ARRAY}, tmp_path / "a.pth")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"evil")
    with pytest.raises(CheckpointError, match="not the name of an array"):
        open_weights(path)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = repacked(zipped({"a": ARRAY}, tmp_path / "a.pth"), zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=r"is compressed, which torch\.save does not do"):
        open_weights(path)


def test_a_repacked_archive_is_read(tmp_path: Path) -> None:
    """The members are looked up by name; PyTorch computes where they are from how it packs them itself."""
    small = torch.arange(1000.0)[10:20]
    path = repacked(zipped({"first": ARRAY, "a": small}, tmp_path / "a.pth"))
    np.testing.assert_array_equal(load(path).view(np.float32), small)


@pytest.mark.parametrize("content", [None, bytes(95), bytes(97)], ids="missing short long".split())
def test_an_array_that_is_missing_or_of_another_size_is_an_error(content: bytes | None, tmp_path: Path) -> None:
    path = repacked(zipped({"a": ARRAY}, tmp_path / "a.pth"), **{"0": content})
    with pytest.raises(CheckpointError, match="the array of a is missing, or has another size"):
        open_weights(path)


def test_big_endian_numbers_are_refused(tmp_path: Path) -> None:
    path = repacked(zipped({"a": ARRAY}, tmp_path / "a.pth"), byteorder=b"big")
    with pytest.raises(CheckpointError, match="holds big-endian numbers"):
        open_weights(path)


@pytest.mark.parametrize("mark", [b"\x80\x02", b"\x80\x05", b"{ ", b"\x08\x00"])
def test_safetensors_with_a_header_length_that_equals_another_mark_are_recognised(mark: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(int.from_bytes(mark, "little"))
    path.write_bytes(len(header).to_bytes(8, "little") + header + np.float32(3).tobytes())
    np.testing.assert_array_equal(load(path).view(np.float32), [3])
