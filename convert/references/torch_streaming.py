"""PyTorch networks whose layers hold their weights only while they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convert.network.parameters import ALL
from convert.network.runner import WEIGHTS_AT_ONCE, Batches, Taps, by_channels

Read = Callable[[str, slice], Tensor]
"""Gives a parameter by the name that the network has for it, or some indices of its first axis, output channels."""
RunPart = Callable[[Any, str, Tensor], Iterator[tuple[str, Tensor]]]
"""Given the network, a part and its input `[N, C, H, W]` or `[N, C]`, yields the part's taps."""


class NoWeights(TorchFunctionMode):
    """Within it networks are made on the meta device, and nothing is drawn for them.

    PyTorch would import its compiler to draw numbers there: 150 MB.
    """

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        if function in (Tensor.normal_, Tensor.uniform_):
            return arguments[0]
        with torch.device("meta"):
            return function(*arguments, **(options or {}))


class StreamedNetwork:
    """An `Implementation` made of a PyTorch network on the meta device, on the CPU."""

    def __init__(self, name: str, version: str, network: nn.Module, read: Read, run_part: RunPart, dtype: str) -> None:
        self.name, self.dtype = name, dtype
        self._network, self._read, self._run_part = network.eval().requires_grad_(False), read, run_part
        self._torch_dtype: torch.dtype = getattr(torch, dtype)
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.about = {"version": version, "device": "CPU", "threads": str(torch.get_num_threads()), "TF32": "off"}
        self._held: list[nn.Module] = []
        for path, module in network.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and self._bytes(module) > WEIGHTS_AT_ONCE:
                module.forward = partial(self._by_channels, path, module)  # type: ignore[method-assign]
            elif _own(module):
                module.register_forward_pre_hook(partial(self._load, path))
                module.register_forward_hook(self._unload)

    @torch.inference_mode()
    def run(self, part: str, inputs: Batches) -> Taps:
        """The taps of a part, see `Implementation.run`."""
        runs = [
            [(tap, name, _to_array(value)) for tap, value in self._run_part(self._network, part, self._tensor(x))]
            for name, x in inputs.items()
        ]
        while self._held:
            _empty(self._held.pop())
        for of_tap in zip(*runs, strict=True):
            yield of_tap[0][0], {name: value for _, name, value in of_tap}

    def _tensor(self, x: np.ndarray[Any, Any]) -> Tensor:
        x = x.transpose(0, 3, 1, 2) if x.ndim == 4 else x
        return torch.from_numpy(np.array(x, self.dtype, order="C"))

    def _by_channels(self, path: str, module: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
        """The layer's own forward pass, some of its output channels at a time: none sees another's weights."""
        counted = "out_channels" if isinstance(module, nn.Conv2d) else "out_features"
        count = getattr(module, counted)
        forward: Any = type(module).forward
        whole, found = dict(_own(module)), []
        for channels in by_channels(count, self._bytes(module)):
            for key, parameter in whole.items():
                self._give(path, module, key, parameter, channels)
            setattr(module, counted, len(range(count)[channels]))
            found.append(forward(module, x))
        module._parameters.update(whole)
        setattr(module, counted, count)
        return torch.cat(found, dim=1)

    def _load(self, path: str, module: nn.Module, inputs: object) -> None:
        for key, parameter in _own(module):
            if parameter.is_meta:  # else it is there since the input before
                self._give(path, module, key, parameter, ALL)

    def _unload(self, module: nn.Module, inputs: object, output: object) -> None:
        """Unless there is room for it until the next input of the same part."""
        held = sum(self._bytes(other) for other in self._held if other is not module)
        if held + self._bytes(module) > WEIGHTS_AT_ONCE:
            _empty(module)
        elif module not in self._held:
            self._held.append(module)

    def _give(self, path: str, module: nn.Module, key: str, parameter: Tensor, channels: slice) -> None:
        value, expected = self._read(f"{path}.{key}", channels), parameter[channels].shape
        if value.shape != expected:
            raise ValueError(f"{path}.{key} is {list(value.shape)}, {list(expected)} is expected")
        module._parameters[key] = nn.Parameter(value.to(self._torch_dtype), requires_grad=False)

    def _bytes(self, module: nn.Module) -> int:
        return sum(parameter.numel() for _, parameter in _own(module)) * self._torch_dtype.itemsize


def _own(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters of a layer itself."""
    return list(module.named_parameters(recurse=False))


def _empty(module: nn.Module) -> None:
    for key, parameter in _own(module):
        module._parameters[key] = nn.Parameter(parameter.to("meta"), requires_grad=False)


def _to_array(value: Tensor) -> np.ndarray[Any, Any]:
    return value.permute(0, 2, 3, 1).contiguous().numpy() if value.ndim == 4 else value.numpy()
