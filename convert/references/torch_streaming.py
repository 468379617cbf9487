"""PyTorch networks whose layers hold their weights only while they run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convert.network.parameters import ALL
from convert.network.runner import WEIGHTS_AT_ONCE, Batches, PartRunner, by_channels

Read = Callable[[str, slice], Tensor]
"""Returns a parameter by the network's name for it, or some indices of the first axis, the output channels."""


class TorchParts:
    """The parts of a network whose modules are arranged as in transformers, on `[N, C, H, W]` and `[N, C]`.

    Networks with other modules override the methods. See `runner.Implementation` for their results.
    """

    def __init__(self, network: Any) -> None:
        self.network = network

    def stem(self, x: Tensor) -> tuple[Tensor, Tensor]:
        convolved: list[Tensor] = []
        embedder = self.network.bit.embedder
        hook = embedder.convolution.register_forward_hook(lambda *call: convolved.append(call[2].clone()))
        pooled = embedder(x)
        hook.remove()
        return convolved[0], pooled

    def unit(self, stage: int, layer: int, x: Tensor) -> Tensor:
        output: Tensor = self.network.bit.encoder.stages[stage].layers[layer](x)
        return output

    def pooled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.network.bit.norm(x)
        return x, self.network.bit.pooler(x).flatten(1)

    def logits(self, features: Tensor) -> Tensor:
        output: Tensor = self.network.classifier(features)
        return output


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

    def keep(tensor: Tensor, *arguments: Any, **options: Any) -> Tensor:
        return tensor

    with torch.device("meta"), Intercept({Tensor.normal_: keep, Tensor.uniform_: keep}):
        yield


class StreamedNetwork(PartRunner):
    """An `Implementation` made of a PyTorch network on the meta device; it runs on the CPU."""

    def __init__(self, name: str, version: str, parts: TorchParts, read: Read, dtype: str) -> None:
        self.name, self.dtype = name, dtype
        self.network, self._parts, self._read = parts.network.eval().requires_grad_(False), parts, read
        self._torch_dtype: torch.dtype = getattr(torch, dtype)
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.about = {"version": str(version), "device": "CPU", "threads": str(torch.get_num_threads()), "TF32": "off"}
        self._held: list[nn.Module] = []
        for path, module in self.network.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and self._bytes(module) > WEIGHTS_AT_ONCE:
                module.forward = partial(self._by_channels, path, module)  # type: ignore[method-assign]
            elif _own(module):
                module.register_forward_pre_hook(partial(self._load, path))
                module.register_forward_hook(self._unload)

    @torch.inference_mode()
    def run(self, kind: str, x: Batches, *place: int) -> list[Batches]:
        """Run a part on each input; weights stay from one input to the next if they are small."""
        part, outputs = getattr(self._parts, kind), []
        for images in x.values():
            output = part(*place, self._tensor(images))
            outputs.append([_to_array(value) for value in (output if isinstance(output, tuple) else (output,))])
        while self._held:
            _empty(self._held.pop())
        return [dict(zip(x, values, strict=True)) for values in zip(*outputs, strict=True)]

    def _tensor(self, x: np.ndarray[Any, Any]) -> Tensor:
        x = x.transpose(0, 3, 1, 2) if x.ndim == 4 else x
        return torch.from_numpy(np.array(x, self.dtype, order="C"))

    def _by_channels(self, path: str, module: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
        """Run the layer's own forward pass some output channels at a time: no channel sees another's weights."""
        counted = "out_channels" if isinstance(module, nn.Conv2d) else "out_features"
        count = getattr(module, counted)
        forward: Any = type(module).forward
        whole: dict[str, Any] = dict(_own(module))
        outputs = []
        for channels in by_channels(count, self._bytes(module)):
            for key, parameter in whole.items():
                self._set(path, module, key, parameter, channels)
            setattr(module, counted, len(range(count)[channels]))
            outputs.append(forward(module, x))
        for attribute, value in {**whole, counted: count}.items():
            setattr(module, attribute, value)
        return torch.cat(outputs, dim=1)

    def _load(self, path: str, module: nn.Module, inputs: object) -> None:
        for key, parameter in _own(module):
            if parameter.is_meta:  # otherwise the weights were kept from the input before
                self._set(path, module, key, parameter, ALL)

    def _unload(self, module: nn.Module, inputs: object, output: object) -> None:
        """Drop the layer's weights, unless they are small enough to keep for the next input of the same part."""
        held = sum(self._bytes(other) for other in self._held if other is not module)
        if held + self._bytes(module) > WEIGHTS_AT_ONCE:
            _empty(module)
        elif module not in self._held:
            self._held.append(module)

    def _set(self, path: str, module: nn.Module, key: str, parameter: Tensor, channels: slice) -> None:
        value, expected = self._read(f"{path}.{key}", channels), parameter[channels].shape
        if value.shape != expected:
            raise ValueError(f"{path}.{key} has shape {list(value.shape)}, expected {list(expected)}")
        setattr(module, key, nn.Parameter(value.to(self._torch_dtype), requires_grad=False))

    def _bytes(self, module: nn.Module) -> int:
        return sum(parameter.numel() for _, parameter in _own(module)) * self._torch_dtype.itemsize


def _own(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the layer's own parameters, without those of children."""
    return list(module.named_parameters(recurse=False))


def _empty(module: nn.Module) -> None:
    for key, parameter in _own(module):
        setattr(module, key, nn.Parameter(parameter.to("meta"), requires_grad=False))


def _to_array(value: Tensor) -> np.ndarray[Any, Any]:
    return value.permute(0, 2, 3, 1).contiguous().numpy() if value.ndim == 4 else value.numpy()
