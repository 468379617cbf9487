"""Common faults of conversions, to be planted into a right one: in the weights, the network or the pixels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from bit.image_processing import BICUBIC, CLIP_MEAN, CLIP_STD
from bit.layers import StandardizedConv2d, Unit, pad_same
from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.manifest import Manifest
from convert.files.base import File, file_sha256
from convert.network.runner import Implementation
from convert.references import pytorch

State = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Fault:
    """A fault to plant into a conversion of R50x1 to transformers, and the expected diagnosis."""

    name: str
    part: str
    """The first part that it changes."""
    words: str
    """Part of the expected explanation; empty if the cause cannot be seen from the outside."""
    weights: Callable[[State], None] | None = None
    network: Callable[[nn.Module], None] | None = None
    preprocessing: Callable[[dict[str, Any]], None] | None = None


def plant_weights(folder: Path, change: Callable[[State], None]) -> None:
    """Change weights and forge their hash in the manifest, as a converter with a fault would have written both."""
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file({key: np.ascontiguousarray(value) for key, value in state.items()}, path, metadata={"format": "pt"})
    forge(folder, path.name)


def plant_preprocessing(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "preprocessor_config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    forge(folder, path.name)


def forge(folder: Path, name: str) -> None:
    """Write the present hash of a file into the manifest."""
    manifest = Manifest.read(folder)
    assert manifest is not None
    manifest.files[name] = File((folder / name).stat().st_size, file_sha256(folder / name))
    manifest.write(folder)


def faulty_network(checkpoint: Checkpoint, change: Callable[[nn.Module], None]) -> Implementation:
    """Return `bit`'s PyTorch model in float64 with a fault."""
    implementation = pytorch.load(checkpoint, "float64")
    change(implementation.network)  # type: ignore[attr-defined]
    return implementation


def _layer(unit: str, layer: str) -> str:
    block, number = unit.split("/")
    return f"bit.encoder.stages.{int(block[-1]) - 1}.layers.{int(number[-2:]) - 1}.{layer}"


def _swap(first: str, second: str) -> Callable[[State], None]:
    def change(state: State) -> None:
        state[first], state[second] = state[second].copy(), state[first].copy()

    return change


def _alter(key: str, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Callable[[State], None]:
    def apply(state: State) -> None:
        state[key] = change(state[key]).astype(np.float32)

    return apply


def _remove(key: str) -> Callable[[State], None]:
    def apply(state: State) -> None:
        del state[key]

    return apply


def _one_percent(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    changed = kernel.copy()
    changed[5, 3, 0, 0] *= np.float32(1.01)
    return changed


def _convolutions(network: nn.Module) -> Iterator[StandardizedConv2d]:
    return (module for module in network.modules() if isinstance(module, StandardizedConv2d))


def _units(network: nn.Module) -> Iterator[Unit]:
    return (module for module in network.modules() if isinstance(module, Unit))


def _epsilon(value: float) -> Callable[[nn.Module], None]:
    def change(network: nn.Module) -> None:
        for convolution in _convolutions(network):
            convolution.eps = value

    return change


def _unstandardized(network: nn.Module) -> None:
    for convolution in _convolutions(network):
        convolution.folded = True


def _groups(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = 16


def _stride_first(network: nn.Module) -> None:
    for unit in _units(network):
        unit.conv1.stride, unit.conv2.stride = unit.conv2.stride, unit.conv1.stride


def _raw_projection(network: nn.Module) -> None:
    for unit in _units(network):
        if unit.downsample is not None:
            unit.forward = _forward_raw.__get__(unit)  # type: ignore[method-assign]


def _forward_raw(unit: Unit, x: Tensor) -> Tensor:
    residual = unit.conv3(unit.norm3(unit.conv2(unit.norm2(unit.conv1(unit.norm1(x))))))
    assert unit.downsample is not None
    output: Tensor = residual + unit.downsample(x)
    return output


def pool_stem(pool: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], None]:
    def change(network: nn.Module) -> None:
        embedder: Any = network.get_submodule("bit.embedder")

        def forward(x: Tensor, taps: dict[str, Tensor]) -> Tensor:
            x = taps["root_block/conv"] = embedder.convolution(x)
            x = taps["root_block"] = pool(x)
            return x

        embedder.forward = forward

    return change


def same_pool(x: Tensor) -> Tensor:
    lowest = x.min() - 1
    return functional.max_pool2d(pad_same(x - lowest, 3, 2), 3, 2) + lowest


def _exchanged_rows(count: int) -> NDArray[np.int64]:
    order = np.arange(count)
    order[[3, 700]] = order[[700, 3]]
    return order


DEEP = "block3/unit02"
_KERNEL = _layer(DEEP, "conv2.weight")

FAULTS = (
    Fault("epsilon 1e-8", "root_block", "epsilon 1e-08", network=_epsilon(1e-8)),
    Fault("epsilon 1e-6", "root_block", "epsilon 1e-06", network=_epsilon(1e-6)),
    Fault("epsilon 1e-5", "root_block", "epsilon 1e-05", network=_epsilon(1e-5)),
    Fault("no weight standardization", "root_block", "not standardized", network=_unstandardized),
    Fault(
        "stem pooled with −∞",
        "root_block",
        "border of −∞",
        network=pool_stem(lambda x: functional.max_pool2d(x, 3, 2, 1)),
    ),
    Fault("stem pooled with SAME", "root_block", "SAME", network=pool_stem(same_pool)),
    Fault("stride on the first convolution", "block2/unit01", "first convolution", network=_stride_first),
    Fault("projection of the raw input", "block1/unit01", "raw input", network=_raw_projection),
    Fault("16 groups", "block1/unit01", "16 groups", network=_groups),
    Fault("kernel transposed", DEEP, "height and width exchanged", _alter(_KERNEL, lambda k: k.transpose(0, 1, 3, 2))),
    Fault("kernel flipped", DEEP, "turned by 180°", _alter(_KERNEL, lambda k: k[:, :, ::-1, ::-1])),
    Fault("kernel mirrored", DEEP, "mirrored left to right", _alter(_KERNEL, lambda k: k[:, :, :, ::-1])),
    Fault("kernel's channels exchanged", DEEP, "input and output", _alter(_KERNEL, lambda k: k.transpose(1, 0, 2, 3))),
    Fault(
        "kernel reshaped, not transposed",
        DEEP,
        "a reshape in the place of a transpose",
        _alter(_KERNEL, lambda k: np.ascontiguousarray(k.transpose(2, 3, 1, 0)).reshape(k.shape)),
    ),
    Fault(
        "stem takes BGR",
        "root_block",
        "BGR for RGB",
        _alter("bit.embedder.convolution.weight", lambda k: k[:, ::-1]),
    ),
    Fault(
        "two kernels of a stage swapped",
        "block2/unit02",
        "block2/unit02/conv2/kernel and block2/unit03/conv2/kernel are exchanged",
        _swap(_layer("block2/unit02", "conv2.weight"), _layer("block2/unit03", "conv2.weight")),
    ),
    Fault(
        "last units' kernels swapped",
        "block4/unit02",
        "block4/unit02/conv3/kernel and block4/unit03/conv3/kernel are exchanged",
        _swap(_layer("block4/unit02", "conv3.weight"), _layer("block4/unit03", "conv3.weight")),
    ),
    Fault(
        "two norms of a unit swapped",
        "block1/unit02",
        "block1/unit02/norm2/scale and block1/unit02/norm3/scale are exchanged",
        _swap(_layer("block1/unit02", "norm2.weight"), _layer("block1/unit02", "norm3.weight")),
    ),
    Fault(
        "norm's scale and bias swapped",
        "block2/unit01",
        "block2/unit01/norm2/bias and block2/unit01/norm2/scale are exchanged",
        _swap(_layer("block2/unit01", "norm2.weight"), _layer("block2/unit01", "norm2.bias")),
    ),
    Fault("one value off by 1 %", DEEP, "values differ, by up to 1.00%", _alter(_KERNEL, _one_percent)),
    Fault("bias off by 1e-4", "logits", "off by 0.0001", _alter("classifier.1.bias", lambda b: b + np.float32(1e-4))),
    Fault(
        "two classes exchanged",
        "logits",
        "classes are in another order",
        _alter("classifier.1.weight", lambda w: w[_exchanged_rows(1000)]),
    ),
    Fault(
        "projection missing",
        "block3/unit01",
        "stages.2.layers.0.downsample.conv.weight",
        _remove(_layer("block3/unit01", "downsample.conv.weight")),
    ),
    Fault(
        "mean and deviation of CLIP",
        "pixels",
        "CLIP's",
        preprocessing=lambda values: values.update(image_mean=list(CLIP_MEAN), image_std=list(CLIP_STD)),
    ),
    Fault("resized bicubically", "pixels", "bicubically", preprocessing=lambda values: values.update(resample=BICUBIC)),
    Fault("not normalized", "pixels", "left out", preprocessing=lambda values: values.update(do_normalize=False)),
)
