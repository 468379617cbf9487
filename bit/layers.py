"""The layers of BiT in PyTorch. Images are `[N, C, H, W]`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bit.config import BitConfig
from bit.packing import PackedKernel, applies

NORM_EPS = 1e-5
"""Inside the root of every group normalization (big_transfer, `nn.GroupNorm`'s default)."""

ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "leaky_relu": nn.LeakyReLU,
    "mish": nn.Mish,
}
"""By the names of `BitConfig.hidden_act`."""


def make_activation(config: BitConfig) -> nn.Module:
    """For what nothing else needs: a ReLU writes over it, which saves memory and time."""
    return nn.ReLU(inplace=True) if config.hidden_act == "relu" else ACTIVATIONS[config.hidden_act]()


class StandardizedConv2d(nn.Conv2d):
    """A convolution whose filters have mean 0 and variance 1, biased and with `eps` inside the root.

    `padding` is that of `BitConfig.global_padding`. After `fold` the weight is the standardized
    kernel itself.
    """

    def __init__(
        self, config: BitConfig, inputs: int, outputs: int, size: int, stride: int = 1, dilation: int = 1
    ) -> None:
        reach = dilation * (size - 1)
        # What stride and size leave of `SAME` depends on the image, unless the stride is 1.
        self.pads_by_size = config.global_padding == "SAME" and (stride != 1 or reach % 2 == 1)
        margin = 0 if self.pads_by_size or config.global_padding == "VALID" else (stride - 1 + reach) // 2
        super().__init__(inputs, outputs, size, stride, margin, dilation, bias=False)
        self.eps = config.ws_eps
        self.folded = False
        self.packed = PackedKernel()

    def standardized(self) -> Tensor:
        """The kernel `[o, i, h, w]` that the convolution uses."""
        # Layer normalization of each filter is its standardization, and the fastest form there is.
        return functional.layer_norm(self.weight, self.weight.shape[1:], eps=self.eps)

    @torch.no_grad()
    def fold(self) -> None:
        """Standardize the kernel once and for all; computed in float64, then rounded."""
        dtype = self.weight.dtype
        self.weight.data = self.weight.data.double()
        self.weight.data = self.standardized().to(dtype)
        self.folded = True

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        """What is loaded is a weight again, not a standardized kernel."""
        super()._load_from_state_dict(*arguments, **options)
        self.folded = False

    def forward(self, x: Tensor) -> Tensor:
        if self.pads_by_size:
            x = pad_same(x, self.kernel_size[0], self.stride[0], self.dilation[0])
        if self.folded and applies(self, x):
            return self.packed.convolve(self, x)
        weight = self.weight if self.folded else self.standardized()
        return functional.conv2d(x, weight, None, self.stride, self.padding, self.dilation)


class GroupNormActivation(nn.GroupNorm):
    """Group normalization, then the activation unless `activate` is false."""

    def __init__(self, config: BitConfig, channels: int, activate: bool = True) -> None:
        super().__init__(config.num_groups, channels, NORM_EPS)
        self.activation = make_activation(config) if activate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.activation(super().forward(x))
        return output


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., arXiv 1603.09382): in training, drop a residual for some of the images."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        kept = torch.rand((len(x), 1, 1, 1), dtype=x.dtype, device=x.device).add_(1 - self.rate).floor_()
        return x / (1 - self.rate) * kept


class Projection(nn.Module):
    """The shortcut of a stage's first unit."""

    def __init__(self, config: BitConfig, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = StandardizedConv2d(config, inputs, outputs, 1, stride)
        bottleneck = config.layer_type == "bottleneck"
        self.norm = GroupNormActivation(config, outputs, activate=False) if bottleneck else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.norm(self.conv(x))
        return output


class PreActivationUnit(nn.Module):
    """BiT's own unit (He et al., arXiv 1603.05027); its 3×3 convolution carries stride and dilation."""

    def __init__(
        self, config: BitConfig, inputs: int, stage: int, first: bool, stride: int, dilation: int, drop: float
    ) -> None:
        super().__init__()
        middle, outputs = config.bottleneck_size(stage), config.hidden_sizes[stage]
        self.downsample = Projection(config, inputs, outputs, stride) if first else None
        self.norm1 = GroupNormActivation(config, inputs)
        self.conv1 = StandardizedConv2d(config, inputs, middle, 1)
        self.norm2 = GroupNormActivation(config, middle)
        self.conv2 = StandardizedConv2d(config, middle, middle, 3, stride, dilation)
        self.norm3 = GroupNormActivation(config, middle)
        self.conv3 = StandardizedConv2d(config, middle, outputs, 1)
        self.drop_path = DropPath(drop)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.norm1(x)
        residual = self.conv1(activated)
        residual = self.conv2(self.norm2(residual))
        residual = self.drop_path(self.conv3(self.norm3(residual)))
        # The shortcut is projected from the activated input, not from the raw one.
        shortcut = x if self.downsample is None else self.downsample(activated)
        output: Tensor = residual.add_(shortcut)
        return output


class BottleneckUnit(nn.Module):
    """A unit that normalizes after each convolution, as ViT-hybrid's (He et al., arXiv 1512.03385)."""

    def __init__(
        self, config: BitConfig, inputs: int, stage: int, first: bool, stride: int, dilation: int, drop: float
    ) -> None:
        super().__init__()
        middle, outputs = config.bottleneck_size(stage), config.hidden_sizes[stage]
        self.downsample = Projection(config, inputs, outputs, stride) if first else None
        self.conv1 = StandardizedConv2d(config, inputs, middle, 1)
        self.norm1 = GroupNormActivation(config, middle)
        self.conv2 = StandardizedConv2d(config, middle, middle, 3, stride, dilation)
        self.norm2 = GroupNormActivation(config, middle)
        self.conv3 = StandardizedConv2d(config, middle, outputs, 1)
        self.norm3 = GroupNormActivation(config, outputs, activate=False)
        self.drop_path = DropPath(drop)
        self.activation = make_activation(config)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.norm1(self.conv1(x))
        residual = self.norm2(self.conv2(residual))
        residual = self.drop_path(self.norm3(self.conv3(residual)))
        shortcut = x if self.downsample is None else self.downsample(x)
        output: Tensor = self.activation(residual.add_(shortcut))
        return output


UNITS: dict[str, type[PreActivationUnit] | type[BottleneckUnit]] = {
    "preactivation": PreActivationUnit,
    "bottleneck": BottleneckUnit,
}


class Embeddings(nn.Module):
    """The stem: a 7×7 convolution and a max-pool, both of stride 2."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__()
        self.convolution = StandardizedConv2d(config, config.num_channels, config.embedding_size, 7, 2)
        bottleneck = config.layer_type == "bottleneck"
        self.norm = GroupNormActivation(config, config.embedding_size) if bottleneck else nn.Identity()
        self.margin = 0 if config.global_padding == "SAME" else 1
        self.pads_by_size = config.embedding_dynamic_padding

    def forward(self, pixel_values: Tensor, taps: dict[str, Tensor]) -> Tensor:
        x = taps["root_block/conv"] = self.convolution(pixel_values)
        if isinstance(self.norm, nn.Identity) and self.margin and not self.pads_by_size:
            x = taps["root_block"] = max_pool(x)
            return x
        x = self.norm(functional.pad(x, (self.margin,) * 4))
        if self.pads_by_size:
            x = pad_same(x, 3, 2)
        x = taps["root_block"] = functional.max_pool2d(x, 3, 2)
        return x


def max_pool(x: Tensor) -> Tensor:
    """3×3 with stride 2, a border of zeros around `x`.

    Zeros, not −∞: no ReLU comes before, so they win over negative values at the border. Done to the
    result, which is a quarter as large.
    """
    pooled = functional.max_pool2d(x, 3, 2, padding=1)
    for axis in (2, 3):
        pooled.select(axis, 0).clamp_min_(0)
        if x.shape[axis] % 2:  # else the last window ends before the border
            pooled.select(axis, -1).clamp_min_(0)
    return pooled


def pad_same(x: Tensor, size: int, stride: int, dilation: int = 1) -> Tensor:
    """Zeros around an image, as TensorFlow's `SAME` puts them: the odd one goes below and right."""
    margins = []
    for length in (x.shape[3], x.shape[2]):
        total = max((math.ceil(length / stride) - 1) * stride + (size - 1) * dilation + 1 - length, 0)
        margins += [total // 2, total - total // 2]
    return functional.pad(x, margins)
