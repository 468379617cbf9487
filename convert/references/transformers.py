"""transformers as a reference: its network, and the tensors of a folder that was written for it, by its names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import transformers
from torch import Tensor
from transformers.models.bit.modeling_bit import WeightStandardizedConv2d

from convert.checkpoints.checkpoint import Checkpoint
from convert.network.runner import Implementation
from convert.network.taps import unit_place
from convert.references.stored import StoredTensors
from convert.references.torch_streaming import NoWeights, StreamedNetwork


def load(checkpoint: Checkpoint, dtype: str) -> Implementation:
    """The network that its `config.json` describes, with the epsilon that the weights were meant for.

    Raises `ValueError` unless the file has the network's parameters and no others.
    """
    folder = checkpoint.file.path.parent
    with NoWeights():
        config = transformers.BitConfig.from_pretrained(folder)
        network = transformers.BitForImageClassification(config)
    stored = StoredTensors(checkpoint.file.path)
    if differing := stored.keys ^ set(network.state_dict()):
        raise ValueError(f"missing or unexpected: {', '.join(sorted(differing))}")
    for module in network.modules():
        if isinstance(module, WeightStandardizedConv2d):
            module.eps = checkpoint.config.ws_eps
    return StreamedNetwork("transformers", transformers.__version__, network, stored, _run_part, dtype)


def _run_part(network: Any, part: str, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    if part == "root_block":
        kept: list[Tensor] = []
        hook = network.bit.embedder.convolution.register_forward_hook(lambda *call: kept.append(call[2].clone()))
        pooled = network.bit.embedder(x)
        hook.remove()
        yield "root_block/conv", kept[0]
        yield part, pooled
    elif part == "pooled":
        x = network.bit.norm(x)
        yield "pre_head", x
        yield part, network.bit.pooler(x).flatten(1)
    elif part == "logits":
        yield part, network.classifier(x)
    else:
        stage, layer = unit_place(part)
        yield part, network.bit.encoder.stages[stage].layers[layer](x)
