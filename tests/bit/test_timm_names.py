"""Folders in timm's layout load as the same model that transformers' layout gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.conversions import convert
from support.networks import TINY
from timm.layers.std_conv import StdConv2d
from timm.models.resnetv2 import ResNetV2

from bit import BitBackbone, BitConfig, BitForImageClassification, BitModel
from bit.timm_names import timm_to_transformers, to_timm, to_transformers
from convert.layouts import LAYOUTS
from convert.network.parameters import parameters
from convert.sources.synthetic import write_npz

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")

LABELS = ["cat", "dog", "fish", "bird", "newt"]


@pytest.fixture(scope="module")
def converted(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in timm's layout, not to be changed."""
    return convert(tiny_npz, "timm", tmp_path_factory.mktemp("timm") / "tiny")


def changed(
    converted: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], object] = bool, **values: Any
) -> Path:
    """A copy with changed weights, and with changed values in `config.json` (None removes one)."""
    target.mkdir()
    state = load_file(converted / "model.safetensors")
    change(state)
    save_file({key: value.contiguous() for key, value in state.items()}, target / "model.safetensors")
    stated = json.loads((converted / "config.json").read_text()) | values
    (target / "config.json").write_text(json.dumps({key: value for key, value in stated.items() if value is not None}))
    return target


def test_a_timm_folder_gives_the_weights_of_a_transformers_folder(
    converted: Path, tiny_npz: Path, tmp_path: Path
) -> None:
    expected = BitForImageClassification.from_pretrained(convert(tiny_npz, "transformers", tmp_path / "transformers"))
    model = BitForImageClassification.from_pretrained(converted)
    assert model.config == expected.config
    assert model.state_dict().keys() == expected.state_dict().keys()
    for key, value in expected.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])
    assert BitModel.from_pretrained(converted).config.depths == TINY.depths
    assert BitBackbone.from_pretrained(converted).channels == [256]


def test_the_model_computes_what_timm_computes(converted: Path, tmp_path: Path) -> None:
    config = BitConfig.from_architecture("R14x1", num_labels=3)
    write_npz(tmp_path / "Synthetic-R14x1.npz", config)
    folder = convert(tmp_path / "Synthetic-R14x1.npz", "timm", tmp_path / "out")
    model = BitForImageClassification.from_pretrained(folder, ws_eps=1e-8).double()
    assert json.loads((folder / "config.json").read_text())["architecture"] == "resnetv2", "timm has no name for R14x1"
    assert model.config.architecture == "R14x1"
    convolution = partial(StdConv2d, eps=1e-8)
    reference = ResNetV2([1, 1, 1, 1], num_classes=3, stem_type="fixed", conv_layer=convolution).double().eval()
    reference.load_state_dict(load_file(folder / "model.safetensors"))
    x = torch.rand(1, 3, 64, 64).double() * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(model(x).logits, reference(x), rtol=1e-10, atol=1e-10)


def test_every_name_is_translated_in_both_directions() -> None:
    timm_layout, transformers_layout = LAYOUTS["timm"], LAYOUTS["transformers"]
    for item in parameters(BitConfig.from_architecture("R26x1")):
        names = timm_layout.key(item.place), transformers_layout.key(item.place)
        assert (to_timm(names[1]), to_transformers(names[0])) == names
    assert to_transformers("extra") == to_timm("extra") == "extra"


@pytest.mark.parametrize("architecture", ["R50x1", "R101x3", "R14x2"])
@pytest.mark.parametrize("classes", [0, 7])
def test_sizes_are_read_from_the_shapes(architecture: str, classes: int) -> None:
    config = BitConfig.from_architecture(architecture, num_labels=classes, num_channels=4)
    layout = LAYOUTS["timm"]
    with torch.device("meta"):
        stored = {layout.key(item.place): torch.empty(layout.shape(item)) for item in parameters(config)}
    name = "resnetv2" if architecture == "R14x2" else f"resnetv2_{architecture[1:]}_bit"
    assert timm_to_transformers({"architecture": name, "num_classes": classes}, stored)[0] == config


def test_a_network_without_a_head_loads(tmp_path: Path) -> None:
    write_npz(tmp_path / "tiny.npz", TINY.replace(num_labels=0))
    folder = convert(tmp_path / "tiny.npz", "timm", tmp_path / "out")
    model = BitForImageClassification.from_pretrained(folder)
    assert model.config.num_labels == 0
    assert model(torch.zeros(1, 3, 64, 64)).logits.shape == (1, 256)


def test_labels_epsilon_and_problem_type_are_read(converted: Path, tmp_path: Path) -> None:
    stated = {"label_names": LABELS, "ws_eps": 1e-8, "problem_type": "multi_label_classification"}
    config = BitForImageClassification.from_pretrained(changed(converted, tmp_path / "out", **stated)).config
    assert config.id2label == dict(enumerate(LABELS))
    assert (config.ws_eps, config.problem_type) == (1e-8, "multi_label_classification")
    plain = changed(converted, tmp_path / "plain", ws_eps=None, num_classes=None)
    with pytest.warns(UserWarning, match="timm saved .* epsilon of 1e-08, which is taken"):
        model = BitForImageClassification.from_pretrained(plain)
    assert model.config == TINY.replace(ws_eps=1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_stored_dtype_is_kept(converted: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    def convert_dtype(state: dict[str, torch.Tensor]) -> None:
        state.update({key: value.to(dtype) for key, value in state.items()})

    folder = changed(converted, tmp_path / "out", convert_dtype)
    assert {value.dtype for value in BitForImageClassification.from_pretrained(folder).parameters()} == {dtype}
    loaded = BitForImageClassification.from_pretrained(folder, dtype=torch.float32)
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}


def test_shards_load_as_one_file_does(converted: Path, tmp_path: Path) -> None:
    state = load_file(converted / "model.safetensors")
    (tmp_path / "config.json").write_bytes((converted / "config.json").read_bytes())
    halves = {"a.safetensors": sorted(state)[::2], "b.safetensors": sorted(state)[1::2]}
    for name, keys in halves.items():
        save_file({key: state[key] for key in keys}, tmp_path / name)
    index = {"weight_map": {key: name for name, keys in halves.items() for key in keys}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    whole = BitForImageClassification.from_pretrained(converted).state_dict()
    for key, value in BitForImageClassification.from_pretrained(tmp_path).state_dict().items():
        assert torch.equal(value, whole[key])


def test_another_number_of_classes_gives_a_new_head(converted: Path) -> None:
    with pytest.warns(UserWarning, match="has 5 classes; it is replaced by a new one with 3"):
        model = BitForImageClassification.from_pretrained(converted, num_labels=3)
    assert model(torch.zeros(1, 3, 64, 64)).logits.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("stem.conv.weight"), "missing stem.conv.weight"),
        (lambda state: state.pop("norm.bias"), "missing norm.bias"),
        (lambda state: state.pop("head.fc.weight"), "missing head.fc.weight"),
        (lambda state: state.pop("head.fc.bias"), "missing head.fc.bias"),
        (lambda state: state.pop("stages.1.blocks.0.conv3.weight"), "missing stages.1.blocks.0.conv3.weight"),
        (lambda state: state.pop("stages.0.blocks.1.norm2.bias"), "missing stages.0.blocks.1.norm2.bias"),
        (lambda state: state.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda state: state.clear(), "missing stem.conv.weight"),
        (lambda state: state.update({"norm.bias": torch.zeros(7)}), r"misshapen norm.bias, \[7\] instead of \[256\]"),
        (
            lambda state: state.update({"head.fc.bias": torch.zeros(4)}),
            r"misshapen head.fc.bias, \[4\] instead of \[5\]",
        ),
        (
            lambda state: state.update({"head.fc.weight": torch.zeros(5, 256)}),
            r"misshapen head.fc.weight, \[5, 256\]",
        ),
        (
            lambda state: state.update({"head.fc.weight": torch.zeros(5, 64, 2, 2)}),
            r"misshapen head.fc.weight, \[5, 64, 2, 2\]",
        ),
        (lambda state: state.update({"stem.conv.weight": torch.zeros(32)}), r"misshapen stem.conv.weight, \[32\]"),
        (
            lambda state: state.update({"stages.0.blocks.999999999.norm1.bias": torch.zeros(1)}),
            "names count 2 stages and 1000000001 units",
        ),
        (lambda state: state.update({"stages.9.blocks.0.norm1.bias": torch.zeros(1)}), "missing stages.2.blocks.0"),
    ],
)
def test_missing_and_misshapen_arrays_are_named_as_in_timm(
    converted: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        BitForImageClassification.from_pretrained(changed(converted, tmp_path / "out", change))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": "resnetv2_50x1_bit"}, "architecture 'resnetv2_50x1_bit', but the arrays imply 'resnetv2'"),
        ({"num_classes": 9}, "num_classes 9, but the arrays imply 5"),
        ({"ws_eps": "1e-8"}, "ws_eps is '1e-8'"),
        ({"ws_eps": True}, "ws_eps is True"),
        ({"label_names": LABELS[1:]}, "names of the 5 classes"),
        ({"label_names": "newts"}, "names of the 5 classes"),
        ({"label_names": [1, 2, 3, 4, 5]}, "id2label"),
        ({"problem_type": "none"}, "problem_type is 'none'"),
    ],
)
def test_a_config_that_contradicts_the_arrays_is_refused(
    converted: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        BitForImageClassification.from_pretrained(changed(converted, tmp_path / "out", **values))
