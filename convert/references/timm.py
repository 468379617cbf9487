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

from bit.config import BitConfig
from convert.checkpoints.checkpoint import Checkpoint
from convert.references.stored import stored_tensors
from convert.references.torch_streaming import Intercept, Modules, Read, StreamedNetwork, no_weights


def load(checkpoint: Checkpoint, dtype: str) -> StreamedNetwork:
    """Return timm's network with the checkpoint's weights and epsilon.

    Raises `ValueError` unless the files hold exactly the network's tensors.
    """
    config, path = checkpoint.config, checkpoint.file.path
    with no_weights():
        network = build(config)
    google = checkpoint.layout.name == "google"
    read = _loaded_by_timm(network, path) if google else stored_tensors(path, network)
    modules = Modules(
        stem=network.stem,
        convolution=network.stem.get_submodule("conv"),
        stages=[stage.blocks for stage in network.stages],
        norm=network.norm,
        pool=partial(network.forward_head, pre_logits=True),
        head=network.head.fc,
    )
    return StreamedNetwork("timm", timm.__version__, network, modules, read, dtype)


def build(config: BitConfig) -> ResNetV2:
    """Return timm's network as the entries `resnetv2_*_bit` build it, in any size, with the epsilon of `config`."""
    return ResNetV2(
        layers=list(config.depths),
        channels=config.hidden_sizes,
        stem_chs=config.embedding_size,
        in_chans=config.num_channels,
        num_classes=config.num_labels,
        stem_type="fixed",
        conv_layer=partial(StdConv2d, eps=config.ws_eps),
    )


def _loaded_by_timm(network: ResNetV2, path: Path) -> Read:
    """Return the parameters that timm's `load_pretrained` reads from Google's npz, kept on the disk.

    The network itself stays on the meta device, where nothing is copied to. Takes as much of the
    temporary folder as the weights have.
    """
    folder = tempfile.TemporaryDirectory(prefix="bit-timm-")
    files = {id(parameter): f"{folder.name}/{name}.npy" for name, parameter in network.named_parameters()}

    def save(parameter: Tensor, value: Tensor) -> Tensor:
        np.save(files[id(parameter)], value.numpy())
        return parameter

    def read(key: str, channels: slice) -> Tensor:
        return torch.from_numpy(np.array(np.load(f"{folder.name}/{key}.npy", mmap_mode="r")[channels]))

    with Intercept({Tensor.copy_: save}):
        network.load_pretrained(str(path))
    return read
