"""`bit`'s PyTorch model as a reference, fed from an opened checkpoint of any layout."""

from __future__ import annotations

import torch
from torch import Tensor

from bit.model import BitForImageClassification
from convert.checkpoints.checkpoint import Checkpoint
from convert.layouts.transformers import TRANSFORMERS
from convert.network.parameters import parameters
from convert.network.runner import Implementation
from convert.references.torch_streaming import StreamedNetwork, TorchParts, no_weights


def load(checkpoint: Checkpoint, dtype: str) -> Implementation:
    """Return the model with the checkpoint's weights, in `float32` or `float64`."""
    with no_weights():
        network = BitForImageClassification(checkpoint.config)
    items = {TRANSFORMERS.key(item.place): item for item in parameters(checkpoint.config)}

    def read(key: str, channels: slice) -> Tensor:
        item = items[key]
        return torch.from_numpy(checkpoint.weights(item.name, channels, axes=TRANSFORMERS.axes(item.place)))

    return StreamedNetwork("bit (PyTorch)", torch.__version__, _Parts(network), read, dtype)


class _Parts(TorchParts):
    def stem(self, x: Tensor) -> tuple[Tensor, Tensor]:
        taps: dict[str, Tensor] = {}
        self.network.bit.embedder(x, taps)
        convolved, pooled = taps.values()
        return convolved, pooled

    def pooled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.network.bit.norm(x)
        return x, x.mean(dim=(2, 3))
