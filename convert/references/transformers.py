"""transformers as a reference: the library's network, with the tensors of a folder converted for it, read by name."""

from __future__ import annotations

import transformers
from transformers.models.bit.modeling_bit import WeightStandardizedConv2d

from convert.checkpoints.checkpoint import Checkpoint
from convert.network.runner import Implementation
from convert.references.stored import StoredTensors
from convert.references.torch_streaming import StreamedNetwork, TorchParts, no_weights


def load(checkpoint: Checkpoint, dtype: str) -> Implementation:
    """Return the network that the folder's `config.json` describes, with the epsilon of the checkpoint.

    Raises `ValueError` unless the files hold exactly the network's tensors.
    """
    with no_weights():
        config = transformers.BitConfig.from_pretrained(checkpoint.file.path.parent)
        network = transformers.BitForImageClassification(config)
    for module in network.modules():
        if isinstance(module, WeightStandardizedConv2d):
            module.eps = checkpoint.config.ws_eps
    stored = StoredTensors(checkpoint.file.path, network)
    return StreamedNetwork("transformers", transformers.__version__, TorchParts(network), stored, dtype)
