"""timm as a reference: timm's network, with Google's npz read by timm's loader, or with tensors of timm's names."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from timm.layers.std_conv import StdConv2d
from timm.models.resnetv2 import ResNetV2
from torch import Tensor

from convert.checkpoints.checkpoint import Checkpoint
from convert.network.runner import Implementation
from convert.references.stored import StoredTensors
from convert.references.torch_streaming import Intercept, StreamedNetwork, TorchParts, no_weights


def load(checkpoint: Checkpoint, dtype: str) -> Implementation:
    """Return timm's network as the entries `resnetv2_*_bit` build it, in any size, with the checkpoint's epsilon.

    Raises `ValueError` unless the files hold exactly the network's tensors.
    """
    config, path = checkpoint.config, checkpoint.file.path
    with no_weights():
        network = ResNetV2(
            layers=list(config.depths),
            channels=config.hidden_sizes,
            stem_chs=config.embedding_size,
            in_chans=config.num_channels,
            num_classes=config.num_labels,
            stem_type="fixed",
            conv_layer=partial(StdConv2d, eps=config.ws_eps),
        )
    google = checkpoint.layout.name == "google"
    read = _LoadedByTimm(network, path) if google else StoredTensors(path, network)
    return StreamedNetwork("timm", timm.__version__, _Parts(network), read, dtype)


class _LoadedByTimm:
    """The parameters that timm's `load_pretrained` reads from Google's npz, kept on the disk.

    The network itself stays on the meta device, where nothing is copied to. Takes as much of the
    temporary folder as the weights have.
    """

    def __init__(self, network: ResNetV2, path: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bit-timm-")
        self._names = {id(parameter): name for name, parameter in network.named_parameters()}
        with Intercept({Tensor.copy_: self._save}):
            network.load_pretrained(str(path))

    def _save(self, parameter: Tensor, value: Tensor) -> Tensor:
        np.save(self._path(self._names[id(parameter)]), value.numpy())
        return parameter

    def __call__(self, key: str, channels: slice) -> Tensor:
        """Return the indices `channels` of a parameter's first axis."""
        return torch.from_numpy(np.array(np.load(self._path(key), mmap_mode="r")[channels]))

    def _path(self, key: str) -> Path:
        return Path(self._folder.name) / f"{key}.npy"


class _Parts(TorchParts):
    def stem(self, x: Tensor) -> tuple[Tensor, Tensor]:
        convolved = self.network.stem[0](x)
        return convolved, self.network.stem[1:](convolved)

    def unit(self, stage: int, layer: int, x: Tensor) -> Tensor:
        output: Tensor = self.network.stages[stage].blocks[layer](x)
        return output

    def pooled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.network.norm(x)
        return x, self.network.forward_head(x, pre_logits=True).flatten(1)

    def logits(self, features: Tensor) -> Tensor:
        output: Tensor = self.network.head.fc(features[:, :, None, None])
        return output.flatten(1)
