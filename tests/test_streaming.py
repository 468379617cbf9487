"""A PyTorch network whose layers are given their weights as they run, and a large one its filters a few at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_conversion import convert

from convert import implementation
from convert.checkpoint import Checkpoint
from convert.implementation import walk
from convert.inputs import batches
from convert.references import streaming
from convert.references.catalogue import REFERENCES
from convert.taps import relative_l2


@pytest.mark.parametrize("name", ["pytorch", "timm", "transformers"])
def test_some_filters_at_a_time_compute_what_all_of_them_do(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = convert(tiny_npz, "timm" if name == "timm" else "transformers", tmp_path / "out")
    with Checkpoint(folder) as checkpoint:
        images = batches()
        expected = dict(walk(REFERENCES[name].load(checkpoint, "float64"), checkpoint.config, images))
        for module in (implementation, streaming):
            monkeypatch.setattr(module, "WEIGHTS_AT_ONCE", 10_000)
        given: list[int] = []
        network = REFERENCES[name].load(checkpoint, "float64")
        assert isinstance(network, streaming.StreamedNetwork)
        read = network._read
        network._read = lambda key, channels: (value := read(key, channels), given.append(value.numel() * 8))[0]
        for tap, values in walk(network, checkpoint.config, images):
            assert max(relative_l2(values[name], expected[tap][name]) for name in values) < 1e-12
    assert max(given) <= 10_000
