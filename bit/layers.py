"""The layers of BiT in PyTorch; all images are `[N, C, H, W]`."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bit.config import ACTIVATIONS, NORM_EPS, BitConfig
from bit.inference import PackedKernel, applies


def make_activation(config: BitConfig) -> nn.Module:
    """Return the activation; a ReLU overwrites the input, which nothing else may need, to save memory and time."""
    activation: nn.Module = getattr(nn, ACTIVATIONS[config.hidden_act])()
    return nn.ReLU(inplace=True) if config.hidden_act == "relu" else activation


class Adaptable(nn.Module):
    """A module whose convolutions may be replaced by an adapter around them, as peft does it."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, guard(value) if isinstance(getattr(value, "base_layer", None), nn.Conv2d) else value)


class AdaptableSequential(Adaptable, nn.Sequential):
    """Modules in order, whose convolutions may be replaced by an adapter around them."""


class StandardizedConv2d(nn.Conv2d):
    """A convolution that standardizes each filter: mean 0, biased variance 1, `ws_eps` added to the variance.

    Weight standardization: Qiao et al., arXiv 1903.10520. Padded as `BitConfig.global_padding`
    says. After `fold` the weight is the standardized kernel.

    With the arguments of `nn.Conv2d` the class makes an `nn.Conv2d`, which is not standardized: peft
    makes the two convolutions of a LoRA adapter by the class of the layer that they adapt. What LoRA
    then computes is the convolution with the standardized kernel plus the product of the two.
    """

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        if arguments and isinstance(arguments[0], int):
            return nn.Conv2d(*arguments, **options)
        return super().__new__(cls)

    def __init__(
        self, config: BitConfig, inputs: int, outputs: int, size: int, stride: int = 1, dilation: int = 1
    ) -> None:
        reach = dilation * (size - 1)
        # The margins of `SAME` depend on the image's size, unless the stride is 1.
        self.pads_by_size = config.global_padding == "SAME" and (stride != 1 or reach % 2 == 1)
        margin = 0 if self.pads_by_size or config.global_padding == "VALID" else (stride - 1 + reach) // 2
        super().__init__(inputs, outputs, size, stride, margin, dilation, bias=False)
        self.eps = config.ws_eps
        self.folded = False
        self.packed = PackedKernel()

    def standardized(self) -> Tensor:
        """Return the standardized kernel `[o, i, h, w]`."""
        # Layer normalization of each filter is the fastest way to standardize it.
        return functional.layer_norm(self.weight, self.weight.shape[1:], eps=self.eps)

    @torch.no_grad()
    def fold(self) -> None:
        """Replace the weight by the standardized kernel, computed in float64 and then rounded."""
        dtype = self.weight.dtype
        self.weight.data = self.weight.data.double()
        self.weight.data = self.standardized().to(dtype)
        self.folded = True

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        """Load a weight, which is not standardized."""
        super()._load_from_state_dict(*arguments, **options)
        self.folded = False

    def forward(self, x: Tensor) -> Tensor:
        if self.pads_by_size:
            x = pad_same(x, self.kernel_size[0], self.stride[0], self.dilation[0])
        if self.folded and applies(self, x):
            return self.packed.convolve(self, x)
        weight = self.weight if self.folded else self.standardized()
        return functional.conv2d(x, weight, None, self.stride, self.padding, self.dilation)


def guard(adapter: Any) -> Any:
    """Return an adapter that refuses to be merged into a kernel that is standardized afterwards.

    Merging adds to the kernel what the adapter adds to the layer's output: the same function for an
    ordinary convolution, and after `fold`, but not for a kernel that is then standardized. Raises
    `ValueError` if the adapter cannot follow the convolution, whose padding or dilation it lacks.
    """
    layer = adapter.base_layer
    if not isinstance(layer, StandardizedConv2d):
        return adapter
    if layer.pads_by_size or layer.dilation != (1, 1):
        raise ValueError(
            f"an adapter cannot follow a convolution with {'padding SAME' if layer.pads_by_size else 'a dilation'}; "
            "leave it out of target_modules"
        )
    for name in ("merge", "unmerge"):
        if hasattr(adapter, name):
            setattr(adapter, name, partial(change_folded, adapter, name))
    return adapter


def change_folded(adapter: Any, method: str, *arguments: Any, **options: Any) -> Any:
    """Merge an adapter into a folded kernel, or undo that. Raises `ValueError` for a kernel that is not folded."""
    layer: StandardizedConv2d = adapter.base_layer
    if not layer.folded:
        raise ValueError(
            "merging this adapter would change the function: the kernel is standardized after the sum, which LoRA adds "
            "to the standardized kernel; save the adapter, or call for_inference() on the model first"
        )
    layer.packed = PackedKernel()
    return getattr(type(adapter), method)(adapter, *arguments, **options)


class GroupNormActivation(nn.GroupNorm):
    """Group normalization (Wu and He, arXiv 1803.08494), then the activation unless `activate` is false."""

    def __init__(self, config: BitConfig, channels: int, activate: bool = True) -> None:
        super().__init__(config.num_groups, channels, NORM_EPS)
        self.activation = make_activation(config) if activate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        # PyTorch's own `forward` refuses a single image of one value a group, which has a result in larger batches.
        normalized = torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        output: Tensor = self.activation(normalized)
        return output


class Unit(Adaptable):
    """A bottleneck with a shortcut; the 3×3 convolution carries stride and dilation.

    BiT's unit normalizes before each convolution (He et al., arXiv 1603.05027); that of the layer
    type `bottleneck` after each, as in ViT-hybrid (He et al., arXiv 1512.03385).
    """

    def __init__(
        self, config: BitConfig, stage: int, layer: int, stride: int = 1, dilation: int = 1, drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.preactivation = preactivation = config.layer_type == "preactivation"
        self.drop_rate = drop_rate
        middle, outputs = config.bottleneck_size(stage), config.hidden_sizes[stage]
        before = config.hidden_sizes[stage - 1] if stage else config.embedding_size
        inputs = outputs if layer else before
        self.downsample: AdaptableSequential | None = None
        if layer == 0:
            self.downsample = AdaptableSequential()
            self.downsample.conv = StandardizedConv2d(config, inputs, outputs, 1, stride)
            if not preactivation:
                self.downsample.norm = GroupNormActivation(config, outputs, activate=False)
        self.norm1 = GroupNormActivation(config, inputs if preactivation else middle)
        self.conv1 = StandardizedConv2d(config, inputs, middle, 1)
        self.norm2 = GroupNormActivation(config, middle)
        self.conv2 = StandardizedConv2d(config, middle, middle, 3, stride, dilation)
        self.norm3 = GroupNormActivation(config, middle if preactivation else outputs, activate=preactivation)
        self.conv3 = StandardizedConv2d(config, middle, outputs, 1)
        self.activation = nn.Identity() if preactivation else make_activation(config)

    def forward(self, x: Tensor) -> Tensor:
        if self.preactivation:
            # The shortcut is projected from the activated input, not from the raw one.
            source = self.norm1(x)
            residual = self.conv2(self.norm2(self.conv1(source)))
            residual = self.conv3(self.norm3(residual))
        else:
            source = x
            residual = self.norm2(self.conv2(self.norm1(self.conv1(x))))
            residual = self.norm3(self.conv3(residual))
        shortcut = x if self.downsample is None else self.downsample(source)
        output: Tensor = self.activation(self._drop_some(residual).add_(shortcut))
        return output

    def _drop_some(self, x: Tensor) -> Tensor:
        """In training, drop the residual of some images: stochastic depth (Huang et al., arXiv 1603.09382)."""
        if not self.training or not self.drop_rate:
            return x
        kept = torch.rand((len(x), 1, 1, 1), dtype=x.dtype, device=x.device).add_(1 - self.drop_rate).floor_()
        return x / (1 - self.drop_rate) * kept


class Embeddings(Adaptable):
    """The stem: a 7×7 convolution and a max-pool, both of stride 2."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__()
        self.convolution = StandardizedConv2d(config, config.num_channels, config.embedding_size, 7, 2)
        bottleneck = config.layer_type == "bottleneck"
        self.norm = GroupNormActivation(config, config.embedding_size) if bottleneck else nn.Identity()
        self.margin = 0 if config.global_padding == "SAME" else 1
        self.pads_by_size = config.embedding_dynamic_padding

    def forward(self, pixel_values: Tensor, taps: dict[str, Tensor] | None = None) -> Tensor:
        """Return the pooled stem, and add the outputs of both layers to `taps`."""
        convolved = x = self.convolution(pixel_values)
        if isinstance(self.norm, nn.Identity) and self.margin and not self.pads_by_size:
            x = max_pool(x)
        else:
            x = self.norm(functional.pad(x, (self.margin,) * 4))
            x = functional.max_pool2d(pad_same(x, 3, 2) if self.pads_by_size else x, 3, 2)
        if taps is not None:
            taps |= {"root_block/conv": convolved, "root_block": x}
        return x


def max_pool(x: Tensor) -> Tensor:
    """Pool 3×3 windows with stride 2; a border of zeros surrounds `x`.

    Zeros, not −∞, as in Google's code: no ReLU comes before, so they exceed negative values at the
    border. They are applied to the result, which is a quarter as large. In a graph, which holds for even and odd sizes,
    they surround the input.
    """
    if torch.compiler.is_compiling():
        return functional.max_pool2d(functional.pad(x, (1, 1, 1, 1)), 3, 2)
    pooled = functional.max_pool2d(x, 3, 2, padding=1)
    for axis in (2, 3):
        pooled.select(axis, 0).clamp_min_(0)
        if x.shape[axis] % 2:  # else the last window ends before the border
            pooled.select(axis, -1).clamp_min_(0)
    return pooled


def pad_same(x: Tensor, size: int, stride: int, dilation: int = 1) -> Tensor:
    """Surround an image with zeros as TensorFlow's `SAME` does: an odd one goes below and to the right."""
    margins = []
    for length in (x.shape[3], x.shape[2]):
        total = max((math.ceil(length / stride) - 1) * stride + (size - 1) * dilation + 1 - length, 0)
        margins += [total // 2, total - total // 2]
    return functional.pad(x, margins)
