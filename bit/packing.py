"""Convolutions whose kernel is kept as oneDNN wants it, from one pass to the next.

PyTorch's own convolution on a CPU packs a kernel into oneDNN's blocked layout at each call: with
R50x1 a sixth of the time of one image. The operators are those that PyTorch's compiler uses when
it freezes a model; their results are the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class PackedKernel:
    """The kernel of one convolution, packed for the last image size that was seen.

    The packed form depends on that size, so another one packs anew, which costs what PyTorch's own
    convolution spends each time. It is derived, so neither copied nor stored with a model.
    """

    def __init__(self) -> None:
        self._kept: tuple[Any, Tensor | None] = (None, None)

    def __reduce__(self) -> tuple[type[PackedKernel], tuple[()]]:
        return PackedKernel, ()

    def convolve(self, layer: nn.Conv2d, x: Tensor) -> Tensor:
        """The layer's convolution of `x` `[N, C, H, W]`, see `applies`."""
        weight, sizes = layer.weight, (list(layer.padding), layer.stride, layer.dilation, layer.groups)
        key = (x.shape, x.dtype, weight.data_ptr(), weight._version)
        kept, packed = self._kept
        if packed is None or kept != key:
            packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *sizes, x.shape)
            self._kept = key, packed
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(x, packed, None, *sizes, "none", [], "")
        return output


def applies(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether `PackedKernel` computes this: float32 on a CPU with oneDNN, without gradients or tracing."""
    return (
        x.device.type == layer.weight.device.type == "cpu"
        and x.dtype == layer.weight.dtype == torch.float32
        and not (torch.is_grad_enabled() and x.requires_grad)
        and not layer.weight.is_inference()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
    )
