"""transformers: `BitForImageClassification.from_pretrained`, and the image processor of the folder."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from transformers.models.bit.modeling_bit import WeightStandardizedConv2d

from convert.checkpoints.checkpoint import Checkpoint
from convert.evaluation.libraries import Loaded, Pixels

LOAD: Any = transformers.BitForImageClassification.from_pretrained
PROCESSOR: Any = transformers.AutoImageProcessor.from_pretrained


def load(checkpoint: Checkpoint) -> Loaded:
    """Return the network of a folder. Raises `ValueError` unless the files hold exactly its tensors."""
    folder = checkpoint.file.path.parent
    model, found = LOAD(folder, dtype=torch.float32, local_files_only=True, output_loading_info=True)
    if faults := [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in found[kind]]:
        raise ValueError(f"transformers does not find the weights of this network: {', '.join(map(str, faults[:5]))}")
    model.eval()
    processor = None

    def compute(pixels: Pixels) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()).logits.numpy()

    def prepare(image: Any) -> Pixels:
        nonlocal processor
        if processor is None:
            processor = PROCESSOR(folder, local_files_only=True)
        pixels = processor(images=image, return_tensors="np")["pixel_values"][0]
        return np.ascontiguousarray(np.moveaxis(pixels, 0, 2), np.float32)

    epsilon = next(module.eps for module in model.modules() if isinstance(module, WeightStandardizedConv2d))
    version = f"transformers {transformers.__version__}, PyTorch {torch.__version__}"
    return Loaded(version, compute, epsilon, prepare)
