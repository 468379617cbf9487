"""A PyTorch network whose layers are given their weights as they run, and a large one a few filters at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.conversions import convert

from convert.checkpoints.checkpoint import Checkpoint
from convert.network import runner
from convert.network.inputs import images
from convert.network.runner import run_network
from convert.network.taps import parts
from convert.references.registry import REFERENCES
from convert.references.torch_streaming import Intercept, StreamedNetwork, no_weights
from convert.verification.metrics import relative_l2

INPUTS = {"small": images(1, 2, 64, 64), "odd": images(2, 1, 65, 49)}


@pytest.mark.parametrize("name", ["pytorch", "timm", "transformers"])
def test_a_few_filters_at_a_time_compute_the_same_as_all_at_once(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = convert(tiny_npz, "timm" if name == "timm" else "transformers", tmp_path / "out")
    with Checkpoint(folder) as checkpoint:
        expected = dict(run_network(REFERENCES[name].module().load(checkpoint, "float64"), checkpoint.config, INPUTS))
        monkeypatch.setattr(runner, "WEIGHTS_AT_ONCE", 10_000)
        sizes: list[int] = []
        network = REFERENCES[name].module().load(checkpoint, "float64")
        assert isinstance(network, StreamedNetwork)
        read = network._read
        network._read = lambda key, channels: (value := read(key, channels), sizes.append(value.numel() * 8))[0]
        for tap, values in run_network(network, checkpoint.config, INPUTS):
            assert max(relative_l2(values[name], expected[tap][name]) for name in values) < 1e-12
    assert max(sizes) <= 10_000


def test_weights_are_held_only_while_a_part_runs(tiny_npz: Path) -> None:
    with Checkpoint(tiny_npz) as checkpoint:
        network = REFERENCES["pytorch"].module().load(checkpoint, "float64")
        assert isinstance(network, StreamedNetwork)
        for _ in run_network(network, checkpoint.config, INPUTS):
            assert all(parameter.is_meta for parameter in network.network.parameters())


def test_a_tensor_of_another_shape_is_refused_with_both_shapes(tiny_npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Checkpoint(tiny_npz) as checkpoint:
        network = REFERENCES["pytorch"].module().load(checkpoint, "float64")
        monkeypatch.setattr(network, "_read", lambda key, channels: torch.zeros(1, 2, 3, 4))
        with pytest.raises(ValueError, match=r"has shape \[1, 2, 3, 4\], expected \[32, 3, 7, 7\]"):
            network.run(parts(checkpoint.config)[0], INPUTS)


def test_networks_are_made_on_the_meta_device_without_random_numbers() -> None:
    """Fails if PyTorch changes how it calls a `TorchFunctionMode`."""
    with no_weights():
        assert torch.nn.Linear(3, 2).weight.is_meta
        kept = torch.ones(3, device="cpu")
        kept.normal_()
        kept.uniform_()
    assert torch.equal(kept, torch.ones(3))


def test_a_function_of_pytorch_is_intercepted_and_others_are_not() -> None:
    """Fails if PyTorch changes how it calls a `TorchFunctionMode`."""
    copied: list[torch.Tensor] = []
    target = torch.zeros(2)
    with Intercept({torch.Tensor.copy_: lambda tensor, value: copied.append(value)}):
        target.copy_(torch.ones(2))
        target.add_(3)
    assert torch.equal(target, torch.full((2,), 3.0))
    assert torch.equal(copied[0], torch.ones(2))
