"""`bit`'s PyTorch model as a reference, fed from an opened checkpoint of any layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convert.checkpoint import Checkpoint
from convert.layouts.transformers import TRANSFORMERS
from convert.parameters import parameters
from convert.transforms import Transform

if TYPE_CHECKING:
    from bit.model import BitForImageClassification


def load(checkpoint: Checkpoint, dtype: str) -> BitForImageClassification:
    """The model with the checkpoint's weights, in `float32` or `float64`, ready to be run."""
    import torch

    from bit.model import BitForImageClassification

    state = {}
    for parameter in parameters(checkpoint.config):
        transform = Transform(parameter.axes, TRANSFORMERS.axes(parameter.place))
        values = np.ascontiguousarray(transform(checkpoint.weights(parameter.name)), dtype=dtype)
        state[TRANSFORMERS.key(parameter.place)] = torch.from_numpy(values)
    with torch.device("meta"):
        model = BitForImageClassification(checkpoint.config)
    model.load_state_dict(state, assign=True)
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
