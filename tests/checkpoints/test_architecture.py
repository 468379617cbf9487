from __future__ import annotations

import pytest
from hypothesis import given
from support.strategies import configs

from bit.config import BitConfig
from convert.checkpoints.architecture import bind, check_name, infer
from convert.errors import CheckpointError
from convert.layouts import LAYOUTS
from convert.layouts.layout import Layout
from convert.network.parameters import parameters

GOOGLE = LAYOUTS["google"]
SMALL = BitConfig.from_architecture("R14x1", num_labels=10)

Shapes = dict[str, tuple[int, ...]]


def shapes_of(config: BitConfig, layout: Layout = GOOGLE) -> Shapes:
    return {layout.key(parameter.place): layout.shape(parameter) for parameter in parameters(config)}


def problems_of(shapes: Shapes, config: BitConfig = SMALL) -> tuple[str, ...]:
    with pytest.raises(CheckpointError) as raised:
        bind(config, GOOGLE, GOOGLE.locate(shapes), shapes)
    return raised.value.problems


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@given(config=configs())
def test_a_network_is_recognized_by_its_shapes_alone(layout: Layout, config: BitConfig) -> None:
    shapes = shapes_of(config, layout)
    assert infer(layout, layout.locate(shapes), shapes) == config


def test_every_problem_is_reported_at_once() -> None:
    shapes = shapes_of(SMALL)
    del shapes["resnet/block1/unit01/a/group_norm/gamma"], shapes["resnet/block3/unit01/c/standardized_conv2d/kernel"]
    shapes["resnet/block2/unit01/b/group_norm/beta"] = (3,)
    shapes["resnet/group_norm_4/gamma"] = shapes["resnet/group_norm/gamma"]
    shapes["optimizer/step"] = ()
    assert problems_of(shapes) == (
        "duplicate resnet/group_norm/gamma and resnet/group_norm_4/gamma, both resnet/group_norm/gamma",
        "missing resnet/block1/unit01/a/group_norm/gamma",
        "missing resnet/block3/unit01/c/standardized_conv2d/kernel",
        "unexpected optimizer/step",
        "misshapen resnet/block2/unit01/b/group_norm/beta, [3] instead of [128]",
    )


def test_a_missing_stem_or_head_kernel_is_reported_with_the_rest() -> None:
    shapes = shapes_of(SMALL)
    del shapes["resnet/root_block/standardized_conv2d/kernel"], shapes["resnet/head/conv2d/kernel"]
    config = infer(GOOGLE, GOOGLE.locate(shapes), shapes)
    assert config == SMALL
    assert problems_of(shapes) == (
        "missing resnet/root_block/standardized_conv2d/kernel",
        "missing resnet/head/conv2d/kernel",
    )


def test_a_head_bias_of_another_length_than_the_kernel_is_misshapen() -> None:
    shapes = shapes_of(SMALL) | {"resnet/head/conv2d/bias": (11,)}
    config = infer(GOOGLE, GOOGLE.locate(shapes), shapes)
    assert problems_of(shapes, config) == ("misshapen resnet/head/conv2d/bias, [11] instead of [10]",)


def test_a_missing_stage_is_an_error() -> None:
    shapes = {key: shape for key, shape in shapes_of(SMALL).items() if "block2" not in key}
    with pytest.raises(CheckpointError, match="block2/unit01/c/standardized_conv2d/kernel"):
        infer(GOOGLE, GOOGLE.locate(shapes), shapes)


def test_a_large_unit_number_in_a_name_is_an_error() -> None:
    shapes = shapes_of(SMALL) | {"resnet/block1/unit999999/a/group_norm/gamma": (64,)}
    with pytest.raises(CheckpointError, match="more units than there are tensors"):
        infer(GOOGLE, GOOGLE.locate(shapes), shapes)


def test_channels_that_are_not_a_multiple_of_the_groups_are_an_error() -> None:
    shapes = shapes_of(SMALL) | {"resnet/root_block/standardized_conv2d/kernel": (7, 7, 3, 40)}
    with pytest.raises(CheckpointError, match="40 channels cannot be divided into 32 groups"):
        infer(GOOGLE, GOOGLE.locate(shapes), shapes)


@pytest.mark.parametrize(
    "name", ["BiT-M-R50x1", "r50x1_224", "resnetv2_50x1_bit.goog_in21k", "BiT-M-R50x1-run0-cifar100", "mine", "x50x3"]
)
def test_names_that_state_the_same_architecture_or_none_are_accepted(name: str) -> None:
    check_name(name, BitConfig())


@pytest.mark.parametrize("name", ["BiT-M-R50x3", "BiT-S-R101x1", "bit_m_r50x3", "resnetv2_101x1_bit", "R14x1"])
def test_a_name_that_states_another_architecture_is_an_error(name: str) -> None:
    with pytest.raises(CheckpointError, match="but the tensors are those of R50x1"):
        check_name(name, BitConfig())


def test_an_unpublished_network_under_a_published_name_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="units 1-1, widths 32-128-256"):
        check_name("BiT-M-R50x1", BitConfig(embedding_size=32, hidden_sizes=(128, 256), depths=(1, 1)))
