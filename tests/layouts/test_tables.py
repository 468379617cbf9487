from __future__ import annotations

import pytest
from hypothesis import given
from support.strategies import configs

from bit.config import BitConfig
from convert.layouts import LAYOUTS
from convert.layouts.layout import Layout
from convert.network.parameters import Place, parameters

layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


@layouts
@given(config=configs())
def test_every_parameter_has_a_unique_name_that_maps_back_to_it(layout: Layout, config: BitConfig) -> None:
    places = [parameter.place for parameter in parameters(config)]
    keys = [layout.key(place) for place in places]
    assert len(set(keys)) == len(keys)
    assert [layout.place(key) for key in keys] == places


@layouts
@pytest.mark.parametrize(
    "key",
    [
        "",
        "optimizer/step",
        "resnet/block1/unit1/a/group_norm/gamma",
        "resnet/block0/unit01/a/group_norm/gamma",
        "stem.conv.weight.bias",
        "stages.00.blocks.0.norm1.weight",
        "bit.encoder.stages.-1.layers.0.norm1.weight",
    ],
)
def test_names_that_only_resemble_a_parameter_are_rejected(layout: Layout, key: str) -> None:
    assert layout.place(key) is None


def test_numbered_names_mean_the_same_as_plain_ones() -> None:
    google = LAYOUTS["google"]
    for number in ("", "_1", "_17"):
        key = f"resnet/block2/unit03/b/standardized_conv2d{number}/kernel"
        assert google.place(key) == google.place("resnet/block2/unit03/b/standardized_conv2d/kernel") is not None
    assert google.place("resnet/head/conv2d_2/bias") == google.place("resnet/head/conv2d/bias") is not None


@pytest.mark.parametrize(
    "key",
    [
        "block2/unit03/a/proj/standardized_conv2d/kernel:0",
        "block2/resnet/block2/unit03/a/proj/standardized_conv2d/kernel:0",
        "block2/block2/unit03/a/proj/standardized_conv2d_7/kernel:0",
    ],
)
def test_names_of_other_tensorflow_versions_are_read(key: str) -> None:
    layout = LAYOUTS["google-tf2"]
    expected = layout.place("block2/block2/unit03/a/proj/standardized_conv2d/kernel:0")
    assert layout.place(key) == expected == Place("unit/projection/kernel", 1, 2)
    assert layout.place("root_block/standardized_conv2d/kernel:0") == Place("stem/kernel")
    assert layout.place("head/dense/resnet/head/dense/bias:0") == Place("head/bias")


def test_names_and_shapes_are_those_of_transformers() -> None:
    import torch
    import transformers

    config = BitConfig.from_architecture("R101x1", num_labels=7)
    fields = config.to_dict()
    with torch.device("meta"):
        model = transformers.BitForImageClassification(transformers.BitConfig(**fields))
    _assert_same_table("transformers", config, model.state_dict())


def test_names_and_shapes_are_those_of_timm() -> None:
    import timm
    import torch

    with torch.device("meta"):
        model = timm.create_model("resnetv2_50x3_bit", num_classes=7)
    _assert_same_table("timm", BitConfig.from_architecture("R50x3", num_labels=7), model.state_dict())


def _assert_same_table(name: str, config: BitConfig, state: dict) -> None:  # type: ignore[type-arg]
    layout = LAYOUTS[name]
    ours = {layout.key(parameter.place): layout.shape(parameter) for parameter in parameters(config)}
    assert ours == {key: tuple(value.shape) for key, value in state.items()}
