"""Fast inference: packed kernels, batches in parts, and what happens where PyTorch lacks the operators."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from support.networks import TINY

from bit import BitForImageClassification, inference
from bit.inference import applies, operators_work
from bit.layers import StandardizedConv2d


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


def test_packed_kernels_are_used(model: BitForImageClassification) -> None:
    layer = model.bit.embedder.convolution
    assert applies(layer, torch.zeros(1, 3, 32, 32))
    assert not applies(layer, torch.zeros(1, 3, 32, 32, requires_grad=True))
    logits(model, torch.rand(1, 3, 64, 64))
    kept = [module.packed._kept[1] for module in model.modules() if isinstance(module, StandardizedConv2d)]
    assert all(tensor is not None and tensor.is_mkldnn for tensor in kept)


def test_changing_image_sizes_give_the_result_of_ordinary_convolutions(model: BitForImageClassification) -> None:
    for count, height, width in [(1, 64, 64), (2, 64, 64), (2, 65, 97), (1, 64, 64), (3, 33, 64)]:
        x = torch.rand(count, 3, height, width) * 2 - 1
        torch.testing.assert_close(logits(model, x), plain(model, x), rtol=1e-5, atol=1e-6)


def test_changed_weights_are_packed_again(model: BitForImageClassification) -> None:
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


def test_this_pytorch_has_the_private_operators() -> None:
    """If this fails, PyTorch changed `torch.ops.mkldnn._*`: `for_inference` works, but slower (bit/inference.py)."""
    assert operators_work()


@pytest.mark.parametrize("name", ["_reorder_convolution_weight", "_convolution_pointwise"])
@pytest.mark.parametrize("error", [AttributeError, RuntimeError, TypeError])
def test_without_the_operators_an_ordinary_convolution_is_used(
    model: BitForImageClassification, monkeypatch: pytest.MonkeyPatch, name: str, error: type[Exception]
) -> None:
    x = torch.rand(1, 3, 64, 64)
    expected = plain(model, x)

    class Changed:
        def __getattr__(self, wanted: str) -> object:
            if wanted != name:
                return getattr(operators, wanted)
            if error is AttributeError:
                raise AttributeError(wanted)
            return self.refuse

        def refuse(self, *arguments: object) -> None:
            raise error("the operator takes other arguments")

    operators = torch.ops.mkldnn
    monkeypatch.setattr(torch.ops, "mkldnn", Changed())
    monkeypatch.setattr(inference, "operators_work", operators_work.__wrapped__)
    assert not inference.operators_work()
    assert not applies(model.bit.embedder.convolution, x)
    assert torch.equal(logits(model, x), expected)


def test_trying_the_operators_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    assert operators_work.__wrapped__()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_is_split_by_the_number_of_pixels_and_the_width() -> None:
    images = torch.zeros(9, 3, 224, 224)
    assert [len(part) for part in inference.split_batch(images, 1)] == [4, 4, 1]
    assert [len(part) for part in inference.split_batch(images, 3)] == [1] * 9
    assert [len(part) for part in inference.split_batch(images[:, :, :32, :32], 1)] == [9]
