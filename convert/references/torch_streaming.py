"""PyTorch networks whose layers hold their weights only while they run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convert.network.runner import WEIGHTS_AT_ONCE, Batches, by_channels, compute, run_each
from convert.network.taps import Part

Read = Callable[[str, slice], Tensor]
"""Returns a parameter by the network's name for it, or some indices of the first axis, the output channels."""


@dataclass(frozen=True)
class Modules:
    """The modules that compute the taps of a network, on `[N, C, H, W]`."""

    stem: Callable[[Tensor], Tensor]
    convolution: nn.Module
    """The layer of the stem that computes the first tap."""
    stages: Sequence[Any]
    """The units of each stage."""
    norm: nn.Module
    pool: Callable[[Tensor], Tensor]
    head: nn.Module
    """Takes `[N, C, 1, 1]`."""


class Intercept(TorchFunctionMode):
    """A context in which PyTorch calls `replacements[function]` instead of `function`.

    The only place that relies on `TorchFunctionMode`, whose protocol PyTorch may change. Tried with torch 2.15.
    """

    def __init__(self, replacements: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self._replacements = replacements

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        return self._replacements.get(function, function)(*arguments, **(options or {}))


@contextlib.contextmanager
def no_weights() -> Iterator[None]:
    """A context in which networks are made on the meta device, and no random numbers are drawn.

    To draw numbers there, PyTorch would import a compiler of 150 MB.
    """
    kept = dict.fromkeys((Tensor.normal_, Tensor.uniform_), lambda tensor, *arguments, **options: tensor)
    with torch.device("meta"), Intercept(kept):
        yield


class StreamedNetwork:
    """An `Implementation` made of a PyTorch network on the meta device; it runs on the CPU."""

    def __init__(self, name: str, version: str, network: nn.Module, modules: Modules, read: Read, dtype: str) -> None:
        self.name, self.dtype = name, dtype
        self.network, self._modules, self._read = network.eval().requires_grad_(False), modules, read
        self._torch_dtype: torch.dtype = getattr(torch, dtype)
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.about = {"version": str(version), "device": "CPU", "threads": str(torch.get_num_threads()), "TF32": "off"}
        self._held: dict[tuple[str, int | None], nn.Parameter] = {}
        self._differentiates = False
        for path, module in self.network.named_modules():
            if list(module.parameters(recurse=False)):
                module.forward = partial(self._forward, path, module)

    @torch.inference_mode()
    def run(self, part: Part, x: Batches) -> list[Batches]:
        try:
            return run_each(lambda images: compute(self, part, torch.from_numpy(images)), x, self.dtype, channels=1)
        finally:
            self._held.clear()

    def gradients(self, part: Part, x: Batches, cotangents: Batches) -> tuple[Batches, dict[str, NDArray[Any]]]:
        """Return the gradients of the sum of `cotangents` times the last tap, by PyTorch's automatic differentiation.

        The first are those with respect to the input, `[N, H, W, C]` or `[N, C]`, the others those with respect to
        each parameter, by the network's name for it, in the network's shape.
        """
        found: dict[str, NDArray[Any]] = {}
        self._differentiates = True
        try:
            for name, images in x.items():
                given = torch.from_numpy(np.array(np.moveaxis(images, -1, 1), self.dtype, order="C")).requires_grad_()
                output = compute(self, part, given)[-1]
                output.backward(torch.from_numpy(np.array(np.moveaxis(cotangents[name], -1, 1), self.dtype, order="C")))
                assert given.grad is not None, "the output depends on the input"
                found[name] = np.moveaxis(given.grad.numpy(), 1, -1)
            pieces: dict[str, list[Tensor]] = {}
            for (key, _), weight in sorted(self._held.items(), key=lambda item: item[0][1] or 0):
                pieces.setdefault(key, []).append(torch.zeros_like(weight) if weight.grad is None else weight.grad)
            return found, {key: torch.cat(values).numpy() for key, values in pieces.items()}
        finally:
            self._differentiates = False
            self._held.clear()

    def stem(self, x: Tensor) -> list[Tensor]:
        convolved: list[Tensor] = []
        hook = self._modules.convolution.register_forward_hook(lambda *call: convolved.append(call[2].clone()))
        pooled = self._modules.stem(x)
        hook.remove()
        return [*convolved, pooled]

    def unit(self, stage: int, layer: int, x: Tensor) -> Any:
        return self._modules.stages[stage][layer](x)

    def pooled(self, x: Tensor) -> list[Tensor]:
        normalized = self._modules.norm(x)
        return [normalized, self._modules.pool(normalized).flatten(1)]

    def logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self._modules.head(x[:, :, None, None])
        return logits.flatten(1)

    def _forward(self, path: str, module: nn.Module, x: Tensor) -> Tensor:
        """Run a layer's own forward pass with weights that are read for the part, and dropped afterwards.

        A convolution or linear layer runs some output channels at a time: no channel sees another's weights.
        """
        own: dict[str, Any] = dict(module.named_parameters(recurse=False))
        nbytes = sum(parameter.numel() for parameter in own.values()) * self._torch_dtype.itemsize
        sizes = {name: getattr(module, name) for name in ("out_channels", "out_features") if hasattr(module, name)}
        count, outputs = max(sizes.values(), default=1), []
        for channels in by_channels(count, nbytes):
            for name, parameter in own.items():
                setattr(module, name, self._weight(f"{path}.{name}", parameter, channels))
            for name in sizes:
                setattr(module, name, len(range(count)[channels]))
            outputs.append(type(module).forward(module, x))
        for name, before in {**own, **sizes}.items():
            setattr(module, name, before)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def _weight(self, key: str, parameter: Tensor, channels: slice) -> nn.Parameter:
        """Read a weight, and keep it for the next input of the same part while there is memory for it."""
        if (held := self._held.get((key, channels.start))) is not None:
            return held
        value, expected = self._read(key, channels), parameter[channels].shape
        if value.shape != expected:
            raise ValueError(f"{key} has shape {list(value.shape)}, expected {list(expected)}")
        weight = nn.Parameter(value.to(self._torch_dtype), requires_grad=self._differentiates)
        if (
            self._differentiates
            or sum(other.nbytes for other in self._held.values()) + weight.nbytes <= WEIGHTS_AT_ONCE
        ):
            self._held[key, channels.start] = weight
        return weight
