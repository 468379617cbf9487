"""Random networks of every kind, compared with the installed transformers on the same weights, in float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.std_conv import StdConv2d
from timm.models.resnetv2 import ResNetV2
from transformers.models.bit.modeling_bit import BitPreActivationBottleneckLayer, WeightStandardizedConv2d

from bit import BitBackbone, BitConfig, BitForImageClassification, BitModel
from convert.layouts import LAYOUTS
from convert.network.parameters import parameters

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


@st.composite
def networks(draw: st.DrawFn) -> BitConfig:
    stages = draw(st.integers(1, 4))
    groups = draw(st.sampled_from([1, 2, 4, 8]))
    layer_type = draw(st.sampled_from(["preactivation", "bottleneck"]))
    return BitConfig(
        num_channels=draw(st.integers(1, 5)),
        # transformers cannot standardize a filter of one value.
        embedding_size=groups * draw(st.integers(2, 3)),
        hidden_sizes=tuple(draw(st.lists(st.sampled_from([32, 40, 64]), min_size=stages, max_size=stages))),
        depths=tuple(draw(st.lists(st.integers(1, 3), min_size=stages, max_size=stages))),
        layer_type=layer_type,
        hidden_act=draw(st.sampled_from(["relu", "relu", "gelu", "silu"])),
        global_padding=draw(st.sampled_from([None, "same"])),
        embedding_dynamic_padding=draw(st.booleans()),
        num_groups=groups,
        # transformers leaves the dilation out of pre-activation units.
        output_stride=32 if layer_type == "preactivation" else draw(st.sampled_from([8, 16, 32])),
        num_labels=draw(st.integers(1, 4)),
        ws_eps=1e-8,
        out_indices=tuple(sorted(draw(st.sets(st.integers(0, stages), min_size=1)))),
    )


def pixels(config: BitConfig, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, config.num_channels, height, width, generator=torch.Generator().manual_seed(seed)).double()


def pair(name: str, config: BitConfig) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Our model and theirs with the same weights, drawn so that norms matter too."""
    torch.manual_seed(0)
    theirs = getattr(transformers, name)(transformers.BitConfig(**config.to_dict())).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours = {"BitModel": BitModel, "BitBackbone": BitBackbone}.get(name, BitForImageClassification)(config).double()
    ours.load_state_dict(theirs.state_dict())
    return ours.eval(), theirs


sizes = st.integers(63, 99)
"""Odd and even; large enough for four stages of stride 2 after the stem."""


@settings(max_examples=30)
@given(networks(), sizes, sizes)
def test_outputs_hidden_states_and_features_are_the_same(config: BitConfig, height: int, width: int) -> None:
    x = pixels(config, height, width)
    with torch.inference_mode():
        ours, theirs = (model(x, output_hidden_states=True) for model in pair("BitModel", config))
        torch.testing.assert_close(ours.last_hidden_state, theirs.last_hidden_state, **CLOSE)
        torch.testing.assert_close(ours.pooler_output, theirs.pooler_output, **CLOSE)
        torch.testing.assert_close(ours.hidden_states, theirs.hidden_states, **CLOSE)
        backbone, reference = pair("BitBackbone", config)
        torch.testing.assert_close(backbone(x).feature_maps, tuple(reference(x).feature_maps), **CLOSE)
        assert backbone.channels == [feature.shape[1] for feature in backbone(x).feature_maps]


@settings(max_examples=20)
@given(networks(), sizes, st.data())
def test_losses_and_gradients_are_the_same(config: BitConfig, size: int, data: st.DataObject) -> None:
    n = config.num_labels
    labels = {
        "single_label_classification": torch.randint(n, (2,)),
        "multi_label_classification": torch.randint(2, (2, n)).double(),
        "regression": torch.randn(2, n).double(),
    }
    chosen = data.draw(st.sampled_from(sorted(labels) if n > 1 else ["regression"]))
    ours, theirs = pair("BitForImageClassification", config)
    x = pixels(config, size, size)
    if chosen == "regression":
        theirs.config.problem_type = "regression"
        ours.config = ours.bit.config = config.replace(problem_type="regression")
    own, other = ours(x, labels=labels[chosen]), theirs(x, labels=labels[chosen])
    assert theirs.config.problem_type == chosen, "transformers chose the same kind of problem"
    torch.testing.assert_close(own.loss, other.loss, **CLOSE)
    torch.testing.assert_close(own.logits, other.logits, **CLOSE)
    own.loss.backward()
    other.loss.backward()
    gradients, references = ({key: value.grad for key, value in m.named_parameters()} for m in (ours, theirs))
    torch.testing.assert_close(gradients, references, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("layer_type", ["preactivation", "bottleneck"])
def test_with_valid_padding_the_stem_is_the_same_and_both_networks_fail(layer_type: str) -> None:
    """Without padding a 3×3 convolution shrinks the residual, which then does not fit the shortcut."""
    config = BitConfig(
        embedding_size=8,
        hidden_sizes=(32,),
        depths=(1,),
        num_groups=2,
        global_padding="valid",
        layer_type=layer_type,
        ws_eps=1e-8,
    )
    ours, theirs = pair("BitModel", config)
    x = pixels(config, 65, 70)
    torch.testing.assert_close(ours.embedder(x, {}), theirs.embedder(x), **CLOSE)
    for model in (ours, theirs):
        with pytest.raises(RuntimeError, match="must match"):
            model(x)


def test_stochastic_depth_skips_the_same_residuals_as_transformers() -> None:
    config = BitConfig(
        embedding_size=8, hidden_sizes=(32, 32), depths=(2, 2), num_groups=2, drop_path_rate=0.6, ws_eps=1e-8
    )
    ours, theirs = pair("BitModel", config)
    ours.train(), theirs.train()
    x = pixels(config, 64, 64).repeat(4, 1, 1, 1)
    for seed in range(3):
        torch.manual_seed(seed)
        own = ours(x).last_hidden_state
        torch.manual_seed(seed)
        # transformers draws the rates in float32.
        torch.testing.assert_close(own, theirs(x).last_hidden_state, rtol=1e-6, atol=1e-6)
    assert not torch.equal(own, ours(x).last_hidden_state)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    config = BitConfig(embedding_size=8, hidden_sizes=(32, 32), depths=(2, 1), num_groups=2)
    gradients = []
    for enabled in (False, True):
        model, _ = pair("BitForImageClassification", config)
        model.train()
        if enabled:
            model.gradient_checkpointing_enable()
        model(pixels(config, 64, 64)).logits.sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_tuples_are_those_of_transformers() -> None:
    config = BitConfig(embedding_size=8, hidden_sizes=(32, 32), depths=(1, 1), num_groups=2, num_labels=3, ws_eps=1e-8)
    x = pixels(config, 64, 64)
    labels = torch.tensor([0, 2])
    for name, options in {
        "BitModel": {"output_hidden_states": True},
        "BitForImageClassification": {"labels": labels},
        "BitBackbone": {"output_hidden_states": True},
    }.items():
        ours, theirs = pair(name, config)
        own = ours(x, return_dict=False, **options)
        other = theirs(x, return_dict=False, **options)
        assert len(own) == len(other)
        torch.testing.assert_close(tuple(own[:1]), tuple(other[:1]), **CLOSE)
        assert ours(x, **options).to_tuple()[0] is not None


@pytest.mark.parametrize("output_stride", [8, 16])
def test_preactivation_units_dilate_as_in_timm(output_stride: int) -> None:
    """transformers builds the 3×3 convolution of a pre-activation unit without its dilation.

    A stage that does not stride must look as far as it would have: its convolutions take every
    second pixel (Chen et al., arXiv 1706.05587, section 3.1), so the output grid is finer and its
    values at the coarse positions come from the same pixels. timm dilates, so it is the reference.
    """
    config = BitConfig.from_architecture("R26x1", num_labels=5, output_stride=output_stride, ws_eps=1e-8)
    torch.manual_seed(0)
    convolution = partial(StdConv2d, eps=config.ws_eps)
    sizes = {"num_classes": 5, "output_stride": output_stride, "stem_type": "fixed", "conv_layer": convolution}
    reference = ResNetV2(list(config.depths), **sizes).double().eval()
    state = reference.state_dict()
    renamed = {
        LAYOUTS["transformers"].key(item.place): state[LAYOUTS["timm"].key(item.place)].reshape(
            LAYOUTS["transformers"].shape(item)
        )
        for item in parameters(config)
    }
    ours = BitForImageClassification(config).double().eval()
    ours.load_state_dict(renamed)
    x = pixels(config, 97, 110)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x).logits, reference(x), **CLOSE)
        last = ours(x, output_hidden_states=True).hidden_states[-1]
    assert last.shape[-1] == -(-110 // output_stride)


def test_transformers_itself_ignores_that_dilation() -> None:
    """If this fails, transformers was corrected, and the comparison above can cover more."""
    config = transformers.BitConfig(output_stride=8)
    with torch.device("meta"):
        model = transformers.BitModel(config)
    units = [module for module in model.modules() if isinstance(module, BitPreActivationBottleneckLayer)]
    assert {unit.conv2.dilation for unit in units} == {(1, 1)}
    assert all(isinstance(unit.conv2, WeightStandardizedConv2d) for unit in units)


def test_transformers_cannot_build_a_width_that_ours_can() -> None:
    """transformers scales the stages but not the stem and the final norm, which then do not fit."""
    small = {"depths": (1, 1), "hidden_sizes": (64, 64), "embedding_size": 32, "num_groups": 4}
    x = torch.zeros(1, 3, 64, 64)
    with pytest.raises((RuntimeError, ValueError)):
        transformers.BitModel(transformers.BitConfig(**small, width_factor=3))(x)
    expanded = BitConfig(**small, width_factor=3)
    assert BitModel(expanded)(x).last_hidden_state.shape[1] == 192
    assert transformers.BitModel(transformers.BitConfig(**expanded.to_dict()))(x).last_hidden_state.shape[1] == 192
