"""`bit`'s PyTorch model as a reference, fed from an opened checkpoint of any layout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convert.checkpoints.checkpoint import Checkpoint
from convert.layouts.transformers import TRANSFORMERS
from convert.network.parameters import ALL, parameters
from convert.network.runner import Implementation
from convert.network.taps import unit_place

if TYPE_CHECKING:
    from torch import Tensor

    from bit.model import BitForImageClassification


def load(checkpoint: Checkpoint, dtype: str) -> Implementation:
    """The model with the checkpoint's weights, in `float32` or `float64`."""
    import torch

    from bit.model import BitForImageClassification
    from convert.references.torch_streaming import NoWeights, StreamedNetwork

    with NoWeights():
        network = BitForImageClassification(checkpoint.config)
    places = {TRANSFORMERS.key(item.place): item.name for item in parameters(checkpoint.config)}

    def read(key: str, channels: slice) -> Tensor:
        return _tensor(checkpoint, places[key], channels)

    return StreamedNetwork("bit (PyTorch)", torch.__version__, network, read, _run_part, dtype)


def _run_part(network: BitForImageClassification, part: str, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    if part == "root_block":
        taps: dict[str, Tensor] = {}
        network.bit.embedder(x, taps)
        yield from taps.items()
    elif part == "pooled":
        x = network.bit.norm(x)
        yield "pre_head", x
        yield part, x.mean(dim=(2, 3))
    elif part == "logits":
        yield part, network.classifier(x)
    else:
        stage, layer = unit_place(part)
        yield part, network.bit.encoder.stages[stage].layers[layer](x)  # type: ignore[index, operator]


def _tensor(checkpoint: Checkpoint, name: str, channels: slice = ALL) -> Tensor:
    """Some output channels of a parameter in float64, with the axes that PyTorch has for it."""
    import torch

    return torch.from_numpy(checkpoint.weights(name, channels, axes=TRANSFORMERS.axes(checkpoint.place(name))))
