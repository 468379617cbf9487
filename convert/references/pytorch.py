"""`bit`'s PyTorch model as a reference, fed from an opened checkpoint of any layout."""

from __future__ import annotations

import torch
from torch import Tensor

from bit.model import BitForImageClassification
from convert.checkpoints.checkpoint import Checkpoint
from convert.layouts.transformers import TRANSFORMERS
from convert.network.parameters import parameters
from convert.references.torch_streaming import Modules, StreamedNetwork, no_weights


def load(checkpoint: Checkpoint, dtype: str) -> StreamedNetwork:
    """Return the model with the checkpoint's weights, in `float32` or `float64`."""
    with no_weights():
        network = BitForImageClassification(checkpoint.config)
    places = {TRANSFORMERS.key(item.place): item.place for item in parameters(checkpoint.config)}

    def read(key: str, channels: slice) -> Tensor:
        place = places[key]
        return torch.from_numpy(checkpoint.weights(place.name, channels, axes=TRANSFORMERS.axes(place)))

    modules = Modules(
        stem=lambda x: network.bit.embedder(x, {}),
        convolution=network.bit.embedder.convolution,
        stages=[stage.layers for stage in network.bit.encoder.stages],
        norm=network.bit.norm,
        pool=lambda x: x.mean(dim=(2, 3)),
        head=network.classifier,
    )
    return StreamedNetwork("bit (PyTorch)", torch.__version__, network, modules, read, dtype)
