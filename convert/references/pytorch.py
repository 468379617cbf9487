"""`bit`'s PyTorch model as a reference, fed from an opened checkpoint of any layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bit.config import BitConfig
from convert.checkpoint import Checkpoint
from convert.layouts.transformers import TRANSFORMERS
from convert.parameters import parameters
from convert.transforms import Transform

if TYPE_CHECKING:
    from torch import Tensor

    from bit.model import BitForImageClassification


def read_state(folder: Path) -> tuple[BitConfig, dict[str, Tensor]]:
    """The configuration and the state dict of a checkpoint of any layout, in its own dtype."""
    with Checkpoint(folder) as checkpoint:
        return checkpoint.config, state_dict(checkpoint, checkpoint.dtype)


def state_dict(checkpoint: Checkpoint, dtype: str) -> dict[str, Tensor]:
    """The checkpoint's weights under the names of `bit`'s model, in the dtype of that name."""
    import torch

    state = {}
    for parameter in parameters(checkpoint.config):
        transform = Transform(parameter.axes, TRANSFORMERS.axes(parameter.place))
        values = np.ascontiguousarray(transform(checkpoint.weights(parameter.name)))
        state[TRANSFORMERS.key(parameter.place)] = torch.from_numpy(values).to(getattr(torch, dtype))
    return state


def load(checkpoint: Checkpoint, dtype: str) -> BitForImageClassification:
    """The model with the checkpoint's weights, in `float32` or `float64`, ready to be run."""
    import torch

    from bit.model import BitForImageClassification

    with torch.device("meta"):
        model = BitForImageClassification(checkpoint.config)
    model.load_state_dict(state_dict(checkpoint, dtype), assign=True)
    return model.eval()


def forward(
    model: BitForImageClassification, images: Mapping[str, NDArray[np.generic]]
) -> Iterator[tuple[str, dict[str, NDArray[np.generic]]]]:
    """Yield taps as `definition.forward` does, one batch of `images` (`[N, H, W, C]`) after the other."""
    import torch

    dtype = next(model.parameters()).dtype
    for name, image in images.items():
        with torch.inference_mode():
            pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2))).to(dtype)
            taps = model(pixels, output_taps=True).taps
        for tap in list(taps):
            value = taps.pop(tap).numpy()
            yield tap, {name: value.transpose(0, 2, 3, 1) if value.ndim == 4 else value}
