"""transformers as a reference: the library's network, with the tensors of a folder converted for it, read by name."""

from __future__ import annotations

import transformers
from transformers.models.bit.modeling_bit import WeightStandardizedConv2d

from convert.checkpoints.checkpoint import Checkpoint
from convert.references.stored import stored_tensors
from convert.references.torch_streaming import Modules, StreamedNetwork, no_weights


def load(checkpoint: Checkpoint, dtype: str) -> StreamedNetwork:
    """Return the network that the folder's `config.json` describes, with the epsilon of the checkpoint.

    Raises `ValueError` unless the files hold exactly the network's tensors.
    """
    with no_weights():
        config = transformers.BitConfig.from_pretrained(checkpoint.file.path.parent)
        network = transformers.BitForImageClassification(config)
    for module in network.modules():
        if isinstance(module, WeightStandardizedConv2d):
            module.eps = checkpoint.config.ws_eps
    body = network.bit
    stages = [stage.layers for stage in body.encoder.stages]
    modules = Modules(body.embedder, body.embedder.convolution, stages, body.norm, body.pooler, network.classifier)
    read = stored_tensors(checkpoint.file.path, network)
    return StreamedNetwork("transformers", transformers.__version__, network, modules, read, dtype)
