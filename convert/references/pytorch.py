"""`bit`'s PyTorch model as a reference, fed from an opened checkpoint of any layout."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bit.model import BitForImageClassification
from convert.checkpoints.checkpoint import Checkpoint
from convert.layouts.transformers import TRANSFORMERS
from convert.network.axes import Transform
from convert.network.gradients import PartGradients
from convert.network.parameters import KINDS, Place, parameters
from convert.network.runner import Batches
from convert.network.taps import Part
from convert.references.torch_streaming import Modules, StreamedNetwork, no_weights


class _PyTorch(StreamedNetwork):
    """The model, which is also differentiated."""

    places: Mapping[str, Place]
    """The place of each parameter by the network's name for it."""

    def differentiate(self, part: Part, x: Batches, cotangents: Batches) -> PartGradients:
        """Return the gradients of a part, see `Differentiable`."""
        inputs, gradients = self.gradients(part, x, cotangents)
        places = {key: self.places[key] for key in gradients}
        parameters = {
            place.name: Transform(TRANSFORMERS.axes(place), KINDS[place.kind])(gradients[key])
            for key, place in places.items()
        }
        return PartGradients(inputs, parameters)


def load(checkpoint: Checkpoint, dtype: str) -> _PyTorch:
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
    loaded = _PyTorch("bit (PyTorch)", torch.__version__, network, modules, read, dtype)
    loaded.places = places
    return loaded
