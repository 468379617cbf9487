"""Mistakes in the function of a layer, as tables of functions that replace the oracle's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import erf, sqrt

import numpy as np

from bit.config import NORM_EPS
from convert.network.oracle import convolve, group_norm, max_pool, pool_windows, standardize
from convert.network.taps import Array

Standardize = Callable[[Array, float], Array]
"""Takes a kernel `[h, w, i, o]` and an epsilon."""
Convolve = Callable[[Array, Array, int], Array]
"""Takes images `[N, H, W, I]`, a kernel and a stride."""
Normalize = Callable[[Array, Array, Array, int], Array]
"""Takes images, scale, bias and the number of groups."""
Pool = Callable[[Array], Array]


def _relu(x: Array) -> Array:
    activated: Array = np.maximum(x, 0)
    return activated


def _mean(x: Array) -> Array:
    mean: Array = x.mean(axis=(1, 2))
    return mean


@dataclass(frozen=True)
class Change:
    """The functions of a network that a mistake replaces."""

    standardize: Standardize = standardize
    convolve: Convolve = convolve
    normalize: Normalize = group_norm
    activate: Pool = _relu
    pool: Pool = max_pool
    shortcut: Pool | None = None
    """Changes the shortcut before it is added."""
    output: Pool | None = None
    """Changes the output of a unit, the mean over the image or the logits."""
    mean: Pool = _mean
    raw: bool = False
    """Project the raw input of a unit."""
    unactivated: bool = False
    """Project the input of a unit as it is before the ReLU."""


def with_epsilon(epsilon: float) -> Standardize:
    """Return the standardization with another epsilon."""
    return lambda kernel, eps: standardize(kernel, epsilon)


def _unbiased(kernel: Array, eps: float) -> Array:
    count = kernel.size // kernel.shape[3]
    centered = kernel - kernel.mean(axis=(0, 1, 2))
    unbiased: Array = centered / np.sqrt((centered**2).sum(axis=(0, 1, 2)) / max(count - 1, 1) + eps)
    return unbiased


def _outside(kernel: Array, eps: float) -> Array:
    centered = kernel - kernel.mean(axis=(0, 1, 2))
    divided: Array = centered / (kernel.std(axis=(0, 1, 2)) + eps)
    return divided


def _uncentered(kernel: Array, eps: float) -> Array:
    divided: Array = kernel / np.sqrt(kernel.var(axis=(0, 1, 2)) + eps)
    return divided


def _only_centered(kernel: Array, eps: float) -> Array:
    centered: Array = kernel - kernel.mean(axis=(0, 1, 2))
    return centered


STANDARDIZATIONS: Mapping[str, Standardize] = {
    "kernels are not standardized": lambda kernel, eps: kernel,
    "weights are standardized with the unbiased variance instead of the biased": _unbiased,
    "weights are standardized with the epsilon outside of the root": _outside,
    "the mean of weights is not subtracted": _uncentered,
    "weights are not divided by the deviation": _only_centered,
}


def _grouped(x: Array, groups: int) -> Array:
    return x.reshape(x.shape[0], -1, groups, x.shape[3] // groups)


def other_group_norm(x: Array, scale: Array, bias: Array, groups: int, eps: float = NORM_EPS, ddof: int = 0) -> Array:
    """Normalize with another epsilon, or with the unbiased variance."""
    grouped = _grouped(x, groups)
    centered = grouped - grouped.mean(axis=(1, 3), keepdims=True)
    variance = grouped.var(axis=(1, 3), keepdims=True, ddof=min(ddof, grouped.shape[1] * grouped.shape[3] - 1))
    normalized: Array = (centered / np.sqrt(variance + eps)).reshape(x.shape) * scale + bias
    return normalized


def with_groups(count: int) -> Normalize:
    """Return the norm with another number of groups; 0 for a group for each channel."""

    def normalize(x: Array, scale: Array, bias: Array, groups: int) -> Array:
        return group_norm(x, scale, bias, count or x.shape[3])

    return normalize


def activated_before(x: Array, scale: Array, bias: Array, groups: int) -> Array:
    """Apply the ReLU first."""
    return group_norm(np.maximum(x, 0), scale, bias, groups)


NORMALIZATIONS: Mapping[str, Normalize] = {
    "the norm is left out": lambda x, scale, bias, groups: x,
    "the norm's scale and bias are left out": lambda x, scale, bias, groups: other_group_norm(
        x, np.ones_like(scale), np.zeros_like(bias), groups
    ),
    "the norm's bias is left out": lambda x, scale, bias, groups: group_norm(x, scale, np.zeros_like(bias), groups),
    "the norm's scale is added to 1": lambda x, scale, bias, groups: group_norm(x, 1 + scale, bias, groups),
}


def same(x: Array) -> Array:
    """Return the images as they are."""
    return x


def _leaky(x: Array) -> Array:
    return np.where(x > 0, x, 0.01 * x)


def _silu(x: Array) -> Array:
    activated: Array = x / (1 + np.exp(-x))
    return activated


def _gelu(x: Array) -> Array:
    activated: Array = x * 0.5 * (1 + np.vectorize(erf, otypes=[np.float64])(x / sqrt(2)))
    return activated


ACTIVATIONS: Mapping[str, Pool] = {
    "the ReLU is left out": same,
    "the ReLU is a leaky one": _leaky,
    "the ReLU is a SiLU": _silu,
    "the ReLU is a GELU": _gelu,
    "the ReLU is a ReLU6": lambda x: np.clip(x, 0, 6),
}


def _padded(x: Array, margin: int, **how: str | float) -> Array:
    return np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)), **how)  # type: ignore[call-overload, no-any-return]


def _bordered(mode: str) -> Convolve:
    def changed(x: Array, kernel: Array, stride: int) -> Array:
        margin = kernel.shape[0] // 2
        if not margin:
            return convolve(x, kernel, stride)
        wide = convolve(_padded(x, margin, mode=mode), kernel, 1)
        return wide[:, margin:-margin, margin:-margin][:, ::stride, ::stride]

    return changed


def _without_border(x: Array, kernel: Array, stride: int) -> Array:
    margin = kernel.shape[0] // 2
    return convolve(x, kernel, 1)[:, margin:-margin, margin:-margin][:, ::stride, ::stride]


def _same_border(x: Array, kernel: Array, stride: int) -> Array:
    """Pad as TensorFlow's `SAME`: an odd one below and to the right."""
    size, outputs = kernel.shape[0], convolve(x, kernel, 1)
    for axis in (1, 2):
        length = x.shape[axis]
        total = max((-(-length // stride) - 1) * stride + size - length, 0)
        outputs = outputs.take(range(size // 2 - total // 2, length, stride), axis)
    return outputs


def _dilated(x: Array, kernel: Array, stride: int) -> Array:
    size = 2 * kernel.shape[0] - 1
    wide = np.zeros((size, size, *kernel.shape[2:]), kernel.dtype)
    wide[::2, ::2] = kernel
    return convolve(x, wide, stride)


def _turned(x: Array, kernel: Array, stride: int) -> Array:
    return convolve(x, kernel[::-1, ::-1], stride)


def swapped_stride(x: Array, kernel: Array, stride: int) -> Array:
    """Convolve with stride 1 instead of 2, or 2 instead of 1."""
    return convolve(x, kernel, 3 - stride)


def unstrided(x: Array, kernel: Array, stride: int) -> Array:
    """Convolve with stride 1."""
    return convolve(x, kernel, 1)


def pooled_projection(x: Array, kernel: Array, stride: int) -> Array:
    """Average 2×2 pixels, those that are there at the border, as ResNet-D."""
    margins = [(0, -length % 2) for length in x.shape[1:3]]
    present = np.pad(np.ones((1, *x.shape[1:3], 1)), ((0, 0), *margins, (0, 0)))
    padded = np.pad(x, ((0, 0), *margins, (0, 0)))

    def summed(values: Array) -> Array:
        return sum(values[:, i::2, j::2] for i in (0, 1) for j in (0, 1))  # type: ignore[return-value]

    return convolve(summed(padded) / summed(present), kernel, 1)


WINDOWS: Mapping[str, Convolve] = {
    "padded with TensorFlow's SAME": _same_border,
    "padded by reflection instead of zeros": _bordered("reflect"),
    "padded by repeating the border instead of zeros": _bordered("edge"),
    "padded by wrapping around instead of zeros": _bordered("wrap"),
    "not padded": _without_border,
    "dilated by 2": _dilated,
    "turned by 180°, as a convolution instead of a cross-correlation": _turned,
    "the stride is 1 instead of 2, or 2 instead of 1": swapped_stride,
}
"""Mistakes of a convolution with windows larger than one pixel."""


def _pool_without_border(x: Array) -> Array:
    return pool_windows(_padded(x, 1, constant_values=-np.inf))


def _pool_same(x: Array) -> Array:
    """Pad before the first pixel only if the length is odd, as TensorFlow's `SAME`."""
    margins = [(length % 2, 1) for length in x.shape[1:3]]
    return pool_windows(np.pad(x, ((0, 0), *margins, (0, 0)), constant_values=-np.inf))


def _pool_all(x: Array) -> Array:
    """Round the number of windows up, as `ceil_mode`."""
    margins = [(1, 1 + (length - 1) % 2) for length in x.shape[1:3]]
    return pool_windows(np.pad(x, ((0, 0), *margins, (0, 0))))


def _pool_inside(x: Array) -> Array:
    return pool_windows(x)


def _pool_small(x: Array) -> Array:
    even = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    pooled: Array = np.max([even[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=0)
    return pooled


def _pool_mean(x: Array) -> Array:
    pooled: Array = np.lib.stride_tricks.sliding_window_view(_padded(x, 1), (3, 3), axis=(1, 2))[:, ::2, ::2].mean(
        axis=(4, 5)
    )
    return pooled


def _after_relu(x: Array) -> Array:
    return max_pool(np.maximum(x, 0))


POOLS: Mapping[str, Change] = {
    explanation: Change(pool=pool)
    for explanation, pool in {
        "the stem is pooled with a border of −∞ instead of zeros": _pool_without_border,
        "the stem is pooled with TensorFlow's SAME padding instead of a border of zeros": _pool_same,
        "the stem is pooled without a border": _pool_inside,
        "the stem is pooled by reflection at the border instead of zeros": lambda x: pool_windows(
            _padded(x, 1, mode="reflect")
        ),
        "the number of pooled windows of the stem is rounded up (ceil_mode)": _pool_all,
        "the stem is pooled with windows of 2×2 instead of 3×3": _pool_small,
        "the stem is pooled by the mean instead of the maximum": _pool_mean,
        "a ReLU precedes the pooling of the stem": _after_relu,
        "the stem is not pooled": same,
    }.items()
}
"""Mistakes of the pooling in the stem."""

UNITS: Mapping[str, Change] = {
    "the shortcut is projected from the raw input instead of the normalized one": Change(raw=True),
    "the shortcut is projected from the input before the ReLU": Change(unactivated=True),
    "a ReLU follows the addition": Change(output=lambda x: np.maximum(x, 0)),
    "the shortcut is left out": Change(shortcut=np.zeros_like),
    "the shortcut is added twice": Change(shortcut=lambda x: 2 * x),
}
"""Mistakes of the structure of a unit."""


def softmax(x: Array) -> Array:
    """Return probabilities `[N, classes]`."""
    raised = np.exp(x - x.max(axis=-1, keepdims=True))
    probabilities: Array = raised / raised.sum(axis=-1, keepdims=True)
    return probabilities
