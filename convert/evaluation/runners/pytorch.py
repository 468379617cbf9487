"""`bit`'s PyTorch model, with the tensors of a checkpoint of any layout that can be converted."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bit.model import BitForImageClassification
from convert.checkpoints.checkpoint import Checkpoint
from convert.evaluation.libraries import Loaded, Pixels
from convert.layouts.transformers import TRANSFORMERS
from convert.network.parameters import parameters


def load(checkpoint: Checkpoint) -> Loaded:
    """Return the network, as `for_inference` makes it."""
    with torch.device("meta"):
        model = BitForImageClassification(checkpoint.config)
    state = {
        TRANSFORMERS.key(item.place): torch.from_numpy(
            np.ascontiguousarray(
                checkpoint.weights(item.place.name, axes=TRANSFORMERS.axes(item.place), dtype="float32")
            )
        )
        for item in parameters(checkpoint.config)
    }
    model.load_state_dict(state, assign=True)
    network = model.eval().for_inference()

    def compute(pixels: Pixels) -> Any:
        with torch.inference_mode():
            return network(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()).logits.numpy()

    return Loaded(f"PyTorch {torch.__version__}", compute, checkpoint.config.ws_eps)
