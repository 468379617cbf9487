"""timm: `timm.create_model("local-dir:…")`, and the transform of its configuration."""

from __future__ import annotations

from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from convert.checkpoints.checkpoint import Checkpoint
from convert.evaluation.libraries import Loaded, Pixels
from convert.layouts.timm import MODELS, TIMM
from convert.references.timm import build


def load(checkpoint: Checkpoint) -> Loaded:
    """Return the network of a folder; one of a size that timm has no name for is built from timm's `ResNetV2`."""
    folder, note, own = checkpoint.file.path.parent, None, None
    model: Any
    if checkpoint.config.architecture in MODELS:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        configuration: Any = resolve_model_data_config
        own = create_transform(**configuration(model), is_training=False)
    else:
        model = build(checkpoint.config.replace(ws_eps=TIMM.ws_eps))
        model.load_state_dict(load_file(checkpoint.file.path))
        note = "timm.create_model has no network of this size; timm's ResNetV2 was built with its sizes"
    model.float().eval()

    def compute(pixels: Pixels) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()).numpy()

    def prepare(image: Any) -> Pixels:
        assert own is not None
        return np.ascontiguousarray(np.moveaxis(own(image).numpy(), 0, 2), np.float32)

    version = f"timm {timm.__version__}, PyTorch {torch.__version__}"
    epsilon = float(model.get_submodule("stem.conv").eps)
    return Loaded(version, compute, epsilon, prepare if own is not None else None, note)
