"""BiT's forward pass, written from the paper in float64 NumPy: the judge of every conversion.

Sources: Kolesnikov et al., "Big Transfer" (arXiv 1912.11370), section 3; pre-activation units, He
et al. (arXiv 1603.05027); group normalization, Wu and He (arXiv 1803.08494); weight
standardization, Qiao et al. (arXiv 1903.10520). Constants are those of google-research/big_transfer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bit.config import BitConfig
from convert.parameters import unit_name

Array = NDArray[np.float64]
Batches = dict[str, Array]
"""Batches of images by name, `[N, H, W, C]`; all take the same way, so weights are read once."""

NORM_EPS = 1e-5
"""Inside the root of every group normalization (big_transfer, `GroupNorm`)."""


def forward(
    weights: Callable[[str], Array],
    config: BitConfig,
    images: Mapping[str, NDArray[np.generic]],
    ws_eps: float | None = None,
    folded: bool = False,
    dtype: type[np.floating[Any]] = np.float64,
) -> Iterator[tuple[str, Batches]]:
    """Yield every tap of the network in order: its name, and its value for each of `images`.

    `weights` gives a parameter by its canonical name and shape, and is asked for each once, in
    order. `images` are `[N, H, W, num_channels]` in [-1, 1]. Taps are `root_block/conv`,
    `root_block` (pooled), each unit's output `blockB/unitUU`, `pre_head` (after the last norm and
    ReLU), all `[N, H, W, C]`, then `pooled` `[N, C]` and, if it has a head, `logits`
    `[N, num_labels]`. `ws_eps` replaces that of the configuration; `folded` kernels are
    standardized already. `dtype` is computed with, float64 unless rounding is to be seen.
    """
    eps = config.ws_eps if ws_eps is None else ws_eps

    def get(name: str) -> Array:
        return weights(name).astype(dtype, copy=False)

    def convolution(inputs: Batches, layer: str, stride: int = 1) -> Batches:
        kernel = get(f"{layer}/kernel")
        kernel = kernel if folded else standardize(kernel, eps)
        return {name: convolve(x, kernel, stride) for name, x in inputs.items()}

    def norm_relu(inputs: Batches, layer: str) -> Batches:
        scale, bias = get(f"{layer}/scale"), get(f"{layer}/bias")
        return {name: np.maximum(group_norm(x, scale, bias, config.num_groups), 0) for name, x in inputs.items()}

    def unit(inputs: Batches, layer: str, stride: int, projects: bool) -> Batches:
        activated = norm_relu(inputs, f"{layer}/norm1")
        residual = convolution(activated, f"{layer}/conv1")
        residual = convolution(norm_relu(residual, f"{layer}/norm2"), f"{layer}/conv2", stride)
        residual = convolution(norm_relu(residual, f"{layer}/norm3"), f"{layer}/conv3")
        # The shortcut is projected from the activated input, not from the raw one.
        shortcut = convolution(activated, f"{layer}/projection", stride) if projects else inputs
        return {name: shortcut[name] + x for name, x in residual.items()}

    x = convolution({name: image.astype(dtype) for name, image in images.items()}, "stem", stride=2)
    yield "root_block/conv", x
    x = {name: max_pool(y) for name, y in x.items()}
    yield "root_block", x
    for stage, depth in enumerate(config.depths):
        for index in range(depth):
            tap = unit_name(stage, index)
            x = unit(x, tap, stride=2 if stage > 0 and index == 0 else 1, projects=index == 0)
            yield tap, x
    x = norm_relu(x, "norm")
    yield "pre_head", x
    x = {name: y.mean(axis=(1, 2)) for name, y in x.items()}
    yield "pooled", x
    if config.num_labels:
        kernel, bias = get("head/kernel"), get("head/bias")
        yield "logits", {name: y @ kernel + bias for name, y in x.items()}


def standardize(kernel: Array, eps: float) -> Array:
    """Each filter of `[h, w, i, o]` with mean 0 and variance 1 (biased), `eps` inside the root."""
    centered: Array = kernel - kernel.mean(axis=(0, 1, 2))
    centered /= np.sqrt(np.einsum("hwio,hwio->o", centered, centered) / (centered.size / centered.shape[3]) + eps)
    return centered


def convolve(x: Array, kernel: Array, stride: int) -> Array:
    """Cross-correlation of `[N, H, W, I]`, padded by half the kernel with zeros: a product per kernel row."""
    size, channels = kernel.shape[0], kernel.shape[3]
    margin = size // 2
    padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0))) if margin else x
    height, width = ((length - 1) // stride + 1 for length in x.shape[1:3])
    out = np.zeros((x.shape[0] * height * width, channels), x.dtype)
    for row in range(size):
        lines = padded[:, row : row + stride * height : stride]
        shifted = [lines[:, :, column : column + stride * width : stride] for column in range(size)]
        out += np.concatenate(shifted, axis=3).reshape(len(out), -1) @ kernel[row].reshape(-1, channels)
    return out.reshape(x.shape[0], height, width, channels)


def group_norm(x: Array, scale: Array, bias: Array, groups: int) -> Array:
    """Mean 0 and variance 1 (biased) over each image's groups of channels, then `scale` and `bias` `[C]`."""
    grouped = x.reshape(x.shape[0], -1, groups, x.shape[3] // groups)
    centered = grouped - grouped.mean(axis=(1, 3), keepdims=True)
    variance = np.einsum("npgc,npgc->ng", centered, centered) / (grouped.shape[1] * grouped.shape[3])
    centered /= np.sqrt(variance + NORM_EPS)[:, None, :, None]
    normalized: Array = centered.reshape(x.shape)
    normalized *= scale
    normalized += bias
    return normalized


def max_pool(x: Array) -> Array:
    """3×3 with stride 2. The border is padded with zeros, which win over negative values there:
    no ReLU comes before (big_transfer, `ConstantPad2d(1, 0)` before `MaxPool2d`)."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = ((length - 1) // 2 + 1 for length in x.shape[1:3])
    windows = (
        padded[:, row : row + 2 * height : 2, column : column + 2 * width : 2]
        for row in range(3)
        for column in range(3)
    )
    out = next(windows).copy()
    for window in windows:
        np.maximum(out, window, out=out)
    return out
