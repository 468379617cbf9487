"""timm as a reference: its network, fed with Google's npz by its own loader, or with its own names."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.layers.std_conv import StdConv2d
from timm.models.resnetv2 import ResNetV2
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bit.config import BitConfig
from convert.checkpoints.checkpoint import Checkpoint
from convert.network.runner import Implementation
from convert.network.taps import unit_place
from convert.references.stored import StoredTensors
from convert.references.torch_streaming import NoWeights, Read, StreamedNetwork


def load(checkpoint: Checkpoint, dtype: str) -> Implementation:
    """timm's network of that size, with the epsilon that the weights were meant for.

    Raises `ValueError` unless the file has the network's parameters and no others.
    """
    network = _build(checkpoint.config)
    if checkpoint.layout.name == "google":
        read: Read = _OwnLoader(network, str(checkpoint.file.path))
    else:
        stored = StoredTensors(checkpoint.file.path)
        if differing := stored.keys ^ set(network.state_dict()):
            raise ValueError(f"missing or unexpected: {', '.join(sorted(differing))}")
        read = stored
    return StreamedNetwork("timm", timm.__version__, network, read, _run_part, dtype)


def _build(config: BitConfig) -> ResNetV2:
    """As timm's entries `resnetv2_*_bit` build it, of any size."""
    with NoWeights():
        return ResNetV2(
            layers=list(config.depths),
            channels=config.hidden_sizes,
            stem_chs=config.embedding_size,
            in_chans=config.num_channels,
            num_classes=config.num_labels,
            stem_type="fixed",
            conv_layer=partial(StdConv2d, eps=config.ws_eps),
        )


class _OwnLoader(TorchFunctionMode):
    """What timm's `load_pretrained` copies out of Google's npz into each parameter, kept on the disk.

    The network itself stays on the meta device, where nothing is copied to. Takes as much of the
    temporary folder as the weights have.
    """

    def __init__(self, network: ResNetV2, path: str) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(prefix="bit-timm-")
        self._names = {id(parameter): name for name, parameter in network.named_parameters()}
        with self:
            network.load_pretrained(path)

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        if function is not Tensor.copy_:
            return function(*arguments, **(options or {}))
        parameter, value = arguments
        np.save(self._path(self._names[id(parameter)]), value.numpy())
        return parameter

    def __call__(self, key: str, channels: slice) -> Tensor:
        return torch.from_numpy(np.array(np.load(self._path(key), mmap_mode="r")[channels]))

    def _path(self, key: str) -> Path:
        return Path(self._folder.name) / f"{key}.npy"


def _run_part(network: Any, part: str, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    if part == "root_block":
        convolved = network.stem[0](x)
        yield "root_block/conv", convolved
        yield part, network.stem[1:](convolved)
    elif part == "pooled":
        x = network.norm(x)
        yield "pre_head", x
        yield part, network.forward_head(x, pre_logits=True).flatten(1)
    elif part == "logits":
        yield part, network.head.fc(x[:, :, None, None]).flatten(1)
    else:
        stage, layer = unit_place(part)
        yield part, network.stages[stage].blocks[layer](x)
