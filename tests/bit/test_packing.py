"""Kernels that are kept packed compute what PyTorch's own convolution computes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from support.networks import TINY

from bit import BitForImageClassification
from bit.layers import StandardizedConv2d
from bit.packing import applies


@pytest.fixture
def model() -> BitForImageClassification:
    torch.manual_seed(0)
    return BitForImageClassification(TINY).for_inference()


def logits(model: BitForImageClassification, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(x).logits


def plain(model: BitForImageClassification, x: torch.Tensor) -> torch.Tensor:
    fresh = copy.deepcopy(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bit.layers.applies", lambda layer, x: False)
        return logits(fresh, x)


def test_they_are_used(model: BitForImageClassification) -> None:
    layer = model.bit.embedder.convolution
    assert applies(layer, torch.zeros(1, 3, 32, 32))
    assert not applies(layer, torch.zeros(1, 3, 32, 32, requires_grad=True))
    logits(model, torch.rand(1, 3, 64, 64))
    kept = [module.packed._kept[1] for module in model.modules() if isinstance(module, StandardizedConv2d)]
    assert all(tensor is not None and tensor.is_mkldnn for tensor in kept)


def test_images_of_changing_sizes_give_the_same_as_without(model: BitForImageClassification) -> None:
    for count, height, width in [(1, 64, 64), (2, 64, 64), (2, 65, 97), (1, 64, 64), (3, 33, 64)]:
        x = torch.rand(count, 3, height, width) * 2 - 1
        torch.testing.assert_close(logits(model, x), plain(model, x), rtol=1e-5, atol=1e-6)


def test_weights_that_change_are_packed_anew(model: BitForImageClassification) -> None:
    x = torch.rand(1, 3, 64, 64)
    logits(model, x)
    stem = model.bit.embedder.convolution
    with torch.no_grad():
        stem.weight.mul_(2)
    torch.testing.assert_close(logits(model, x), plain(model, x), rtol=1e-5, atol=1e-6)
    stem.weight.data = stem.weight.data.flip(0)
    torch.testing.assert_close(logits(model, x), plain(model, x), rtol=1e-5, atol=1e-6)


def test_a_model_that_ran_can_be_copied_and_moved_to_another_dtype(model: BitForImageClassification) -> None:
    x = torch.rand(1, 3, 64, 64)
    expected = logits(model, x)
    assert torch.equal(logits(copy.deepcopy(model), x), expected)
    assert torch.equal(logits(pickle.loads(pickle.dumps(model)), x), expected)
    double = logits(model.double(), x.double())
    torch.testing.assert_close(double.float(), expected, rtol=1e-4, atol=1e-5)
