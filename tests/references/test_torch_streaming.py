"""A PyTorch network whose layers are given their weights as they run, and a large one its filters a few at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.conversions import convert

from convert.checkpoints.checkpoint import Checkpoint
from convert.network import runner
from convert.network.inputs import batches
from convert.network.runner import walk
from convert.references import torch_streaming
from convert.references.registry import REFERENCES
from convert.verification.metrics import relative_l2


@pytest.mark.parametrize("name", ["pytorch", "timm", "transformers"])
def test_some_filters_at_a_time_compute_what_all_of_them_do(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = convert(tiny_npz, "timm" if name == "timm" else "transformers", tmp_path / "out")
    with Checkpoint(folder) as checkpoint:
        images = batches()
        expected = dict(walk(REFERENCES[name].load(checkpoint, "float64"), checkpoint.config, images))
        for module in (runner, torch_streaming):
            monkeypatch.setattr(module, "WEIGHTS_AT_ONCE", 10_000)
        given: list[int] = []
        network = REFERENCES[name].load(checkpoint, "float64")
        assert isinstance(network, torch_streaming.StreamedNetwork)
        read = network._read
        network._read = lambda key, channels: (value := read(key, channels), given.append(value.numel() * 8))[0]
        for tap, values in walk(network, checkpoint.config, images):
            assert max(relative_l2(values[name], expected[tap][name]) for name in values) < 1e-12
    assert max(given) <= 10_000
