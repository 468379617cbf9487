"""BiT's forward pass in a hundred lines of float64 NumPy, written from the paper: the judge of every conversion.

Sources: Kolesnikov et al., "Big Transfer" (arXiv 1912.11370), section 3; pre-activation units, He
et al. (arXiv 1603.05027); group normalization, Wu and He (arXiv 1803.08494); weight
standardization, Qiao et al. (arXiv 1903.10520). Constants are those of google-research/big_transfer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from bit.config import NORM_EPS, BitConfig
from bit.images import check_images
from convert.network.parameters import ALL, unit_name
from convert.network.runner import Batches, by_channels, compute
from convert.network.taps import Array, Part

Arrays = Mapping[str, Array]
"""Activations by the name of their input."""
NO_EPSILONS: Mapping[str, float] = {}


class Weights(Protocol):
    """Returns a parameter by the canonical name, in the canonical shape, or some output channels, the last axis."""

    def __call__(self, name: str, channels: slice = ALL, /) -> Array: ...


class Oracle:
    """An `Implementation`: the network of `config` with these weights.

    Kernels that are `folded` are standardized already. It computes in `dtype`, float64 except where
    the effect of rounding is measured. Each weight is read when it is needed, and not kept. `epsilons` are those of
    inputs, by name, that are run with another epsilon than the network's.
    """

    name = "oracle"

    def __init__(
        self,
        weights: Weights,
        config: BitConfig,
        folded: bool = False,
        dtype: type[np.floating[Any]] = np.float64,
        epsilons: Mapping[str, float] = NO_EPSILONS,
    ) -> None:
        self.weights, self.config, self.folded, self.epsilons = weights, config, folded, epsilons
        self.dtype = np.dtype(dtype).name
        self.about = {"version": f"NumPy {np.__version__}", "device": "CPU"}

    def run(self, part: Part, x: Batches) -> Sequence[Arrays]:
        """Return the values of the part's taps, in order. Images are `[N, H, W, num_channels]` in [-1, 1].

        Raises `ValueError` for images that the network does not accept, see `check_images`.
        """
        return compute(self, part, {name: values.astype(self.dtype, copy=False) for name, values in x.items()})

    def stem(self, x: Arrays) -> list[Arrays]:
        for images in x.values():
            check_images(self.config, images.shape)
        convolved = self.convolution(x, "stem", stride=2)
        return [convolved, {name: self.pool(values) for name, values in convolved.items()}]

    def unit(self, stage: int, layer: int, x: Arrays) -> Arrays:
        stride = 2 if stage and not layer else 1
        return self.bottleneck(x, unit_name(stage, layer), stride, projects=layer == 0)

    def pooled(self, x: Arrays) -> list[Arrays]:
        normalized = self.norm_relu(x, "norm")
        return [normalized, {name: values.mean(axis=(1, 2)) for name, values in normalized.items()}]

    def bottleneck(self, inputs: Arrays, layer: str, stride: int, projects: bool) -> dict[str, Array]:
        """Run a pre-activation bottleneck; the 3×3 convolution has the stride."""
        activated = self.norm_relu(inputs, f"{layer}/norm1")
        residual = self.convolution(activated, f"{layer}/conv1")
        residual = self.convolution(self.norm_relu(residual, f"{layer}/norm2"), f"{layer}/conv2", stride)
        residual = self.convolution(self.norm_relu(residual, f"{layer}/norm3"), f"{layer}/conv3")
        # The shortcut is projected from the activated input, not from the raw one.
        shortcut = self.convolution(activated, f"{layer}/projection", stride) if projects else inputs
        return {name: shortcut[name] + x for name, x in residual.items()}

    def convolution(self, inputs: Arrays, layer: str, stride: int = 1) -> dict[str, Array]:
        kernel = self.weight(f"{layer}/kernel")
        if self.folded:
            return {name: convolve(x, kernel, stride) for name, x in inputs.items()}
        kernel, variance = center(kernel)
        deviation = np.sqrt(variance + self.config.ws_eps)
        kernel /= deviation
        outputs = {name: convolve(x, kernel, stride) for name, x in inputs.items()}
        for name in outputs.keys() & self.epsilons.keys():
            outputs[name] *= deviation / np.sqrt(variance + self.epsilons[name])
        return outputs

    def logits(self, x: Arrays) -> dict[str, Array]:
        """Compute some classes at a time: the 21843 of R152x4 have 1.4 GB of weights in float64."""
        found: dict[str, list[Array]] = {name: [] for name in x}
        for classes in by_channels(self.config.num_labels, 8 * self.config.num_labels * self.config.hidden_sizes[-1]):
            kernel, bias = self.weight("head/kernel", classes), self.weight("head/bias", classes)
            for name, features in x.items():
                found[name].append(features @ kernel + bias)
        return {name: np.concatenate(logits, axis=1) for name, logits in found.items()}

    def norm_relu(self, inputs: Arrays, layer: str) -> dict[str, Array]:
        scale, bias = self.weight(f"{layer}/scale"), self.weight(f"{layer}/bias")
        groups = self.config.num_groups
        return {name: np.maximum(group_norm(x, scale, bias, groups), 0) for name, x in inputs.items()}

    def pool(self, x: Array) -> Array:
        return max_pool(x)

    def weight(self, name: str, channels: slice = ALL) -> Array:
        return self.weights(name, channels).astype(self.dtype, copy=False)


def standardize(kernel: Array, eps: float) -> Array:
    """Return a kernel `[h, w, i, o]` with mean 0 and variance 1 (biased) of each filter, `eps` inside the root.

    Equal kernels give equal bits with every version of NumPy and on every processor, see `_sum`.
    """
    centered, variance = center(kernel)
    centered /= np.sqrt(variance + eps)
    return centered


def center(kernel: Array) -> tuple[Array, Array]:
    """Return a kernel `[h, w, i, o]` with mean 0 of each filter, and the variance (biased) of each, `[o]`."""
    count = kernel.size / kernel.shape[3]
    centered: Array = kernel - _sum(kernel, np.positive) / count
    return centered, _sum(centered, np.square) / count


def _sum(kernel: Array, function: np.ufunc) -> Array:
    """Sum a function of the elements of each filter, by halves.

    NumPy's own sums depend on the version, on the order in memory and on the vector instructions; an addition of
    two arrays does not.
    """
    total: Array = np.zeros(kernel.shape[3], kernel.dtype)
    for plane in kernel.reshape(-1, *kernel.shape[2:]):
        terms = function(plane)
        while len(terms) > 1:
            half = len(terms) // 2
            terms[:half] += terms[-half:]
            terms = terms[: len(terms) - half]
        total += terms[0]
    return total


def convolve(x: Array, kernel: Array, stride: int) -> Array:
    """Return the cross-correlation of `[N, H, W, I]`, zero-padded by half the kernel: one product per kernel row."""
    size, channels = kernel.shape[0], kernel.shape[3]
    margin = size // 2
    padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0))) if margin else x
    windows = sliding_window_view(padded, size, axis=2)[:, :, ::stride]
    height, width = (x.shape[1] - 1) // stride + 1, windows.shape[2]
    out = np.zeros((x.shape[0] * height * width, channels), x.dtype)
    for row in range(size):
        lines = windows[:, row : row + stride * height : stride].swapaxes(3, 4)
        out += lines.reshape(len(out), -1) @ kernel[row].reshape(-1, channels)
    return out.reshape(x.shape[0], height, width, channels)


def group_norm(x: Array, scale: Array, bias: Array, groups: int) -> Array:
    """Return mean 0 and variance 1 (biased) in each image's groups of channels, times `scale` plus `bias`, `[C]`."""
    grouped = x.reshape(x.shape[0], -1, groups, x.shape[3] // groups)
    centered = grouped - grouped.mean(axis=(1, 3), keepdims=True)
    variance = np.einsum("npgc,npgc->ng", centered, centered) / (grouped.shape[1] * grouped.shape[3])
    centered /= np.sqrt(variance + NORM_EPS)[:, None, :, None]
    normalized: Array = centered.reshape(x.shape)
    normalized *= scale
    normalized += bias
    return normalized


def max_pool(x: Array) -> Array:
    """Pool 3×3 with stride 2 and a border of zeros, which are larger than negative values beside them.

    No ReLU comes before (big_transfer, `ConstantPad2d(1, 0)` before `MaxPool2d`).
    """
    return pool_windows(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))


def pool_windows(padded: Array) -> Array:
    """Return the maximum of every 3×3 window that fits, with stride 2."""
    pooled: Array = sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2].max(axis=(4, 5))
    return pooled
