"""timm as a reference: its network, fed with Google's npz by its own loader, or with its own names."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import timm
import torch
from timm.layers.std_conv import StdConv2d
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn

from bit.config import BitConfig
from convert.checkpoint import Checkpoint
from convert.implementation import Implementation
from convert.references.stored import StoredTensors
from convert.references.streaming import Read, StreamedNetwork
from convert.taps import unit_place

AT_ONCE = 40_000_000
"""So many weights are taken from an npz at a time; timm's loader reads the whole file for them."""


def load(checkpoint: Checkpoint, dtype: str) -> Implementation:
    """timm's network of that size, with the epsilon that the weights were meant for.

    Raises `ValueError` unless the file has the network's parameters and no others.
    """
    network = _build(checkpoint.config)
    if checkpoint.layout.name == "google":
        read: Read = _OwnLoader(checkpoint.config, str(checkpoint.file.path))
    else:
        stored = StoredTensors(checkpoint.file.path)
        if differing := stored.keys ^ set(network.state_dict()):
            raise ValueError(f"missing or unexpected: {', '.join(sorted(differing))}")
        read = stored
    return StreamedNetwork("timm", timm.__version__, network, read, _run_part, dtype)


def _build(config: BitConfig) -> ResNetV2:
    """As timm's entries `resnetv2_*_bit` build it, of any size."""
    with torch.device("meta"):
        return ResNetV2(
            layers=list(config.depths),
            channels=config.hidden_sizes,
            stem_chs=config.embedding_size,
            in_chans=config.num_channels,
            num_classes=config.num_labels,
            stem_type="fixed",
            conv_layer=partial(StdConv2d, eps=config.ws_eps),
        )


class _OwnLoader:
    """Parameters of a network, loaded by timm's `load_pretrained` from Google's npz, some at a time."""

    def __init__(self, config: BitConfig, path: str) -> None:
        self._config, self._path = config, path
        self._order = [name for name, _ in _build(config).named_parameters()]
        self._loaded: dict[str, Tensor] = {}

    def __call__(self, key: str) -> Tensor:
        if key not in self._loaded:
            self._load(self._order.index(key))
        return self._loaded[key]

    def _load(self, start: int) -> None:
        self._loaded.clear()
        network = _build(self._config)
        count = 0
        for name in self._order[start:]:
            owner, _, key = name.rpartition(".")
            module = network.get_submodule(owner)
            count += module.get_parameter(key).numel()
            if self._loaded and count > AT_ONCE:
                break
            empty = torch.empty_like(module.get_parameter(key), device="cpu").fill_(torch.nan)
            module._parameters[key] = self._loaded[name] = nn.Parameter(empty, requires_grad=False)
        network.load_pretrained(self._path)  # what stayed on the meta device takes nothing


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
