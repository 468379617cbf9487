"""BiT's forward pass, written from the paper in float64 NumPy: the judge of every conversion.

Sources: Kolesnikov et al., "Big Transfer" (arXiv 1912.11370), section 3; pre-activation units, He
et al. (arXiv 1603.05027); group normalization, Wu and He (arXiv 1803.08494); weight
standardization, Qiao et al. (arXiv 1903.10520). Constants are those of google-research/big_transfer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bit.config import BitConfig
from convert.network.parameters import ALL
from convert.network.runner import Batches, Taps, by_channels, walk
from convert.network.taps import unit_place

Array = NDArray[np.float64]
Arrays = Mapping[str, Array]
"""By the name of an input."""


class Weights(Protocol):
    """Gives a parameter by its canonical name, with its canonical shape, or some output channels, its last axis."""

    def __call__(self, name: str, channels: slice = ALL, /) -> Array: ...


NORM_EPS = 1e-5
"""Inside the root of every group normalization (big_transfer, `GroupNorm`)."""


class Oracle:
    """The network of `config` with these weights, an `Implementation`.

    `folded` kernels are standardized already. `dtype` is computed with, float64 unless rounding is
    to be seen. Each weight is asked for when it is needed, and not kept.
    """

    name = "definition"

    def __init__(
        self,
        weights: Weights,
        config: BitConfig,
        folded: bool = False,
        dtype: type[np.floating[Any]] = np.float64,
    ) -> None:
        self.weights, self.config, self.folded = weights, config, folded
        self.dtype = np.dtype(dtype).name
        self.about = {"version": f"NumPy {np.__version__}", "device": "CPU"}

    def run(self, part: str, inputs: Batches) -> Taps:
        """The taps of a part, see `Implementation.run`; images are `[N, H, W, num_channels]` in [-1, 1]."""
        x: Arrays = {name: values.astype(self.dtype, copy=False) for name, values in inputs.items()}
        if part == "root_block":
            x = self.convolution(x, "stem", stride=2)
            yield "root_block/conv", x
            yield part, {name: self.pool(y) for name, y in x.items()}
        elif part == "pooled":
            x = self.norm_relu(x, "norm")
            yield "pre_head", x
            yield part, {name: y.mean(axis=(1, 2)) for name, y in x.items()}
        elif part == "logits":
            yield part, self.linear(x, "head")
        else:
            stage, layer = unit_place(part)
            yield part, self.unit(x, part, stride=2 if stage and not layer else 1, projects=layer == 0)

    def unit(self, inputs: Arrays, layer: str, stride: int, projects: bool) -> dict[str, Array]:
        """A pre-activation bottleneck; its 3×3 convolution carries the stride."""
        activated = self.norm_relu(inputs, f"{layer}/norm1")
        residual = self.convolution(activated, f"{layer}/conv1")
        residual = self.convolution(self.norm_relu(residual, f"{layer}/norm2"), f"{layer}/conv2", stride)
        residual = self.convolution(self.norm_relu(residual, f"{layer}/norm3"), f"{layer}/conv3")
        # The shortcut is projected from the activated input, not from the raw one.
        shortcut = self.convolution(activated, f"{layer}/projection", stride) if projects else inputs
        return {name: shortcut[name] + x for name, x in residual.items()}

    def convolution(self, inputs: Arrays, layer: str, stride: int = 1) -> dict[str, Array]:
        kernel = self.weight(f"{layer}/kernel")
        kernel = kernel if self.folded else standardize(kernel, self.config.ws_eps)
        return {name: convolve(x, kernel, stride) for name, x in inputs.items()}

    def linear(self, inputs: Arrays, layer: str) -> dict[str, Array]:
        """Some classes at a time: 21843 of R152x4 have 1.4 GB of weights in float64."""
        found: dict[str, list[Array]] = {name: [] for name in inputs}
        for classes in by_channels(self.config.num_labels, 8 * self.config.num_labels * self.config.hidden_sizes[-1]):
            kernel, bias = self.weight(f"{layer}/kernel", classes), self.weight(f"{layer}/bias", classes)
            for name, x in inputs.items():
                found[name].append(x @ kernel + bias)
        return {name: np.concatenate(logits, axis=1) for name, logits in found.items()}

    def norm_relu(self, inputs: Arrays, layer: str) -> dict[str, Array]:
        scale, bias = self.weight(f"{layer}/scale"), self.weight(f"{layer}/bias")
        groups = self.config.num_groups
        return {name: np.maximum(group_norm(x, scale, bias, groups), 0) for name, x in inputs.items()}

    def pool(self, x: Array) -> Array:
        return max_pool(x)

    def weight(self, name: str, channels: slice = ALL) -> Array:
        return self.weights(name, channels).astype(self.dtype, copy=False)


def forward(
    weights: Weights,
    config: BitConfig,
    images: Batches,
    folded: bool = False,
    dtype: type[np.floating[Any]] = np.float64,
) -> Taps:
    """Yield every tap of the network in order: its name, and its value for each of `images`.

    `images` are `[N, H, W, num_channels]` in [-1, 1]. Taps are `root_block/conv`, `root_block`
    (pooled), each unit's output `blockB/unitUU`, `pre_head` (after the last norm and ReLU), all
    `[N, H, W, C]`, then `pooled` `[N, C]` and, if it has a head, `logits` `[N, num_labels]`.
    """
    return walk(Oracle(weights, config, folded, dtype), config, images)


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
    return pool_windows(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))


def pool_windows(padded: Array) -> Array:
    """The maximum of every 3×3 window that fits, with stride 2."""
    height, width = ((length - 1) // 2 for length in padded.shape[1:3])
    windows = (
        padded[:, row : row + 2 * height : 2, column : column + 2 * width : 2]
        for row in range(3)
        for column in range(3)
    )
    out = next(windows).copy()
    for window in windows:
        np.maximum(out, window, out=out)
    return out
