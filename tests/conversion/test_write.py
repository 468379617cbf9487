from __future__ import annotations

import itertools
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from support.conversions import GOOGLE, LABELS, arrays_of, bits_of, convert, with_config
from support.networks import TINY
from support.strategies import configs

from bit.config import BitConfig
from convert.checkpoints.checkpoint import PREFIXES, Checkpoint
from convert.checkpoints.manifest import Manifest
from convert.checkpoints.options import ConversionOptions
from convert.errors import CheckpointError
from convert.files.base import file_sha256
from convert.layouts import LAYOUTS, READABLE
from convert.network.axes import Transform
from convert.network.parameters import parameters
from convert.sources.synthetic import parameter, write_npz


def test_every_tensor_is_transposed_and_renamed(tiny_npz: Path, tmp_path: Path) -> None:
    found = load_file(convert(tiny_npz, "transformers", tmp_path / "out") / "model.safetensors")
    layout = LAYOUTS["transformers"]
    expected = {}
    for item in parameters(TINY):
        array = parameter(GOOGLE.key(item.place), GOOGLE.shape(item))
        expected[layout.key(item.place)] = Transform(GOOGLE.axes(item.place), layout.axes(item.place))(array)
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array)


layouts = st.sampled_from(list(READABLE))


@settings(max_examples=20)
@given(config=configs(), first=layouts, second=layouts)
def test_converting_to_a_second_layout_and_back_gives_the_same_bytes(
    config: BitConfig, first: str, second: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("trip")
    write_npz(folder / "start.npz", config)
    here = convert(folder / "start.npz", first, folder / "here")
    back = convert(convert(here, second, folder / "there"), first, folder / "back")
    assert bits_of(back) == bits_of(here)
    home = convert(back, "google", folder / "home")
    assert file_sha256(home / "start.npz") == file_sha256(folder / "start.npz")


EACH = ["transformers", "timm", "google-tf2", "flax", "keras"]
EVERY_PAIR = [name for pair in itertools.permutations(READABLE, 2) for name in (*pair, pair[0])]


@pytest.mark.parametrize(
    ("architecture", "route"),
    [
        ("R14x1", EACH),
        pytest.param("R50x1", EACH, marks=pytest.mark.long),
        pytest.param("R50x1", EVERY_PAIR, marks=pytest.mark.long),
    ],
    ids=["small-each", "each", "every-pair"],
)
def test_a_conversion_through_the_layouts_and_back_gives_the_same_file(
    synthetic: Callable[[str], Path], tmp_path: Path, architecture: str, route: list[str]
) -> None:
    path = start = synthetic(architecture)
    for number, layout in enumerate([*route, "google"]):
        before, path = path, convert(path, layout, tmp_path / f"{number}")
        if before.is_dir():
            shutil.rmtree(before)
    assert file_sha256(path / start.name) == file_sha256(start)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8", ">f8", "bfloat16"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_arrays_stored_in_any_dtype_order_and_compression_keep_their_values(
    tmp_path: Path, dtype: str, order: str, method: int
) -> None:
    stored = {
        key: np.asarray(array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype), order=order)  # type: ignore[call-overload]
        for key, array in arrays_of(TINY).items()
    }
    save = np.savez if method == zipfile.ZIP_STORED else np.savez_compressed
    save(tmp_path / "a.npz", **stored)
    found = convert(tmp_path / "a.npz", "timm", tmp_path / "out")
    with Checkpoint(found) as converted:
        for item in parameters(TINY):
            array = stored[GOOGLE.key(item.place)].astype(np.float64)
            expected = Transform(GOOGLE.axes(item.place), item.axes)(array)
            np.testing.assert_array_equal(converted.weights(item.name), expected)


def test_numbered_names_convert_like_plain_ones(tiny_npz: Path, tmp_path: Path) -> None:
    renamed = {}
    for number, (key, array) in enumerate(arrays_of(TINY).items()):
        renamed[key.replace("standardized_conv2d/", f"standardized_conv2d_{number}/")] = array
    np.savez(tmp_path / "tiny.npz", **renamed)
    plain = convert(tiny_npz, "transformers", tmp_path / "plain")
    numbered = convert(tmp_path / "tiny.npz", "transformers", tmp_path / "numbered")
    assert file_sha256(plain / "model.safetensors") == file_sha256(numbered / "model.safetensors")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("key", ["resnet/head/conv2d/bias", "resnet/block1/unit02/b/standardized_conv2d/kernel"])
def test_weights_that_are_not_finite_are_an_error_unless_allowed(tmp_path: Path, bad: float, key: str) -> None:
    arrays = arrays_of(TINY)
    arrays[key].reshape(-1)[3] = bad
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(CheckpointError, match=f"{key} holds NaN or infinity"):
        convert(tmp_path / "a.npz", "transformers", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    convert(tmp_path / "a.npz", "transformers", tmp_path / "out", allow_nonfinite=True)


@pytest.mark.parametrize("position", [0.1, 0.5, 0.9])
def test_a_flipped_byte_is_an_error_that_names_the_array(tiny_npz: Path, tmp_path: Path, position: float) -> None:
    content = bytearray(tiny_npz.read_bytes())
    content[int(position * len(content))] ^= 0x80
    (tmp_path / "tiny.npz").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"resnet/\S+ is damaged \(CRC-32"):
        convert(tmp_path / "tiny.npz", "transformers", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_converted_file_that_was_changed_is_not_accepted_as_a_source(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "timm", tmp_path / "timm")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-100] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="is not the file that"):
        convert(folder, "google", tmp_path / "google")
    assert not (tmp_path / "google").exists()


def test_the_manifest_describes_the_source_and_the_files(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(convert(tiny_npz, "timm", tmp_path / "timm"), "transformers", tmp_path / "transformers")
    manifest = Manifest.read(folder)
    assert manifest is not None
    assert manifest.source.sha256 == file_sha256(tmp_path / "timm" / "model.safetensors")
    assert (folder / manifest.source.path).resolve() == tmp_path / "timm"
    assert manifest.origin.sha256 == file_sha256(tiny_npz), "the chain leads back to its first file"
    assert manifest.files.keys() == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert all(file.sha256 == file_sha256(folder / name) for name, file in manifest.files.items())
    assert manifest.tensors[0] == {
        "parameter": "stem/kernel",
        "source": "stem.conv.weight",
        "target": "bit.embedder.convolution.weight",
        "transform": "oihw -> oihw",
        "dtype": "float32",
        "shape": [32, 3, 7, 7],
    }


def test_elements_of_several_sizes_stay_aligned(tmp_path: Path) -> None:
    arrays = {
        key: array.astype(dtype)
        for (key, array), dtype in zip(arrays_of(TINY).items(), ["<f2", "<f8", "<f4"] * 20, strict=False)
    }
    np.savez(tmp_path / "a.npz", **arrays)
    path = convert(tmp_path / "a.npz", "timm", tmp_path / "out") / "model.safetensors"
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    for key, entry in header.items():
        if key != "__metadata__":
            assert (8 + length + entry["data_offsets"][0]) % {"F16": 2, "F32": 4, "F64": 8}[entry["dtype"]] == 0


def test_class_names_are_kept(tiny_npz: Path, tmp_path: Path) -> None:
    labels = {str(index): label for index, label in LABELS.items()}
    start = with_config(convert(tiny_npz, "transformers", tmp_path / "start"), id2label=labels)
    on = convert(convert(start, "timm", tmp_path / "timm"), "transformers", tmp_path / "back")
    assert json.loads((tmp_path / "timm" / "config.json").read_text())["label_names"] == list(LABELS.values())
    assert BitConfig.from_pretrained(on).id2label == LABELS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_groups": 16}, "num_groups is 16, expected 32 for these tensors"),
        ({"global_padding": "same"}, "global_padding is 'SAME'"),
        ({"layer_type": "bottleneck"}, "layer_type is 'bottleneck'"),
        ({"id2label": {"0": "cat"}}, "has 1 classes, but the head has 5"),
        ({"num_labels": 999}, "has 999 classes, but the head has 5"),
        ({"depths": "many"}, "config.json in the same folder does not fit"),
    ],
)
def test_a_config_of_another_function_is_an_error(
    tiny_npz: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    start = with_config(convert(tiny_npz, "transformers", tmp_path / "start"), **changes)
    with pytest.raises(CheckpointError, match=message):
        convert(start, "timm", tmp_path / "timm")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "vit_base_patch16_224"}, "architecture is 'vit_base_patch16_224'"),
        ({"num_classes": 77}, "num_classes is 77, but the head has 5"),
        ({"label_names": [[1], 2, 3, 4, 5]}, r"id2label\[0\] is"),
        ({"label_names": ["cat"]}, "a list of the head's 5 classes"),
    ],
)
def test_a_timm_config_of_another_network_is_an_error(
    tiny_npz: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    start = with_config(convert(tiny_npz, "timm", tmp_path / "start"), **changes)
    with pytest.raises(CheckpointError, match=message):
        convert(start, "transformers", tmp_path / "out")


def test_a_safetensors_file_whose_length_spells_a_zip_is_read(tiny_npz: Path, tmp_path: Path) -> None:
    content = (convert(tiny_npz, "timm", tmp_path / "start") / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    padded = int.from_bytes(b"PK", "little")
    assert length < padded
    path = tmp_path / "a.safetensors"
    text = content[8 : 8 + length].ljust(padded)
    path.write_bytes(padded.to_bytes(8, "little") + text + content[8 + length :])
    assert path.read_bytes()[:2] == b"PK"
    convert(path, "google", tmp_path / "out")


def test_prefixes_of_wrappers_are_ignored_and_reported(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{f"_orig_mod.module.{key}": array for key, array in arrays_of(TINY).items()})
    with Checkpoint(tmp_path / "a.npz") as checkpoint:
        assert checkpoint.layout is GOOGLE
        assert checkpoint.notes == [f"the prefix {prefix} of every name is ignored" for prefix in PREFIXES[1::-1]]


@pytest.mark.parametrize("training", [False, True])
def test_the_names_of_big_vision_are_read(tiny_npz: Path, tmp_path: Path, training: bool) -> None:
    flax = load_file(convert(tiny_npz, "flax", tmp_path / "flax") / "model.safetensors")
    names = {key: f"params/{key.replace('conv_head', 'head')}" for key in flax}
    arrays = {names[key]: array for key, array in flax.items()}
    if training:
        arrays |= {f"opt/mu/{key}": array for key, array in flax.items()} | {"extra/step": np.zeros(1, np.int32)}
    np.savez(tmp_path / "tiny.npz", **arrays)
    with Checkpoint(tmp_path / "tiny.npz") as checkpoint:
        aside = f"{len(flax) + 1} arrays of the training state (opt/ and extra/) are ignored"
        assert checkpoint.notes == [*([aside] if training else []), "the prefix params/ of every name is ignored"]
    back = convert(tmp_path / "tiny.npz", "google", tmp_path / "back")
    assert file_sha256(back / "tiny.npz") == file_sha256(tiny_npz)


def test_a_network_without_a_head_converts(tmp_path: Path) -> None:
    config = TINY.replace(num_labels=0)
    write_npz(tmp_path / "a.npz", config)
    for layout in READABLE:
        with Checkpoint(convert(tmp_path / "a.npz", layout, tmp_path / layout)) as checkpoint:
            assert checkpoint.config == config


def test_a_file_that_does_not_state_the_epsilon_is_read_with_googles_and_that_is_reported(
    tiny_npz: Path, tmp_path: Path
) -> None:
    folder = convert(tiny_npz, "timm", tmp_path / "timm")
    shutil.copy(folder / "model.safetensors", tmp_path / "alone.safetensors")
    with (
        Checkpoint(tmp_path / "alone.safetensors") as alone,
        Checkpoint(folder) as ours,
        Checkpoint(tiny_npz) as google,
    ):
        assert "assuming Google's 1e-10, not 1e-08 as in timm" in (alone.assumption or "")
        assert (ours.assumption, google.assumption) == (None, None)


def test_a_compensated_file_keeps_the_epsilon_of_the_config_beside_it(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "transformers", tmp_path / "out", options=ConversionOptions(ws_eps="compensate"))
    (folder / "conversion.json").unlink()
    with Checkpoint(folder / "model.safetensors") as checkpoint:
        assert checkpoint.config.ws_eps == 1e-8
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with Checkpoint(folder / "model.safetensors") as checkpoint:
        assert ["config.json in the same folder does not fit" in note for note in checkpoint.notes] == [True]


@pytest.mark.parametrize("layout", ["transformers", "timm", "flax"])
@pytest.mark.parametrize("ws_eps", [1, 2.0, 0.0, True, float("nan"), 10**400, "1e-10", None, [1e-10]])
def test_an_epsilon_that_is_not_a_number_between_0_and_1_is_refused(
    tiny_npz: Path, tmp_path: Path, layout: str, ws_eps: object
) -> None:
    folder = with_config(convert(tiny_npz, layout, tmp_path / "out"), ws_eps=ws_eps)
    with pytest.raises(CheckpointError, match=r"ws_eps is .*; expected a number between 0 and 1|NaN is not a number"):
        convert(folder, "google", tmp_path / "google")
