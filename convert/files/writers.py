"""The writer of each container, imported when it is needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from convert.files.base import NO_METADATA, Metadata, Tensor, Writer
from convert.files.npz import NpzWriter
from convert.files.safetensors import SafetensorsWriter


def open_writer(container: str, path: Path, tensors: Sequence[Tensor], metadata: Metadata = NO_METADATA) -> Writer:
    """Create a file of `container` (`npz`, `safetensors`, `h5` or `onnx`) that will hold `tensors`, in that order."""
    return _writer(container)(path, tensors, metadata)


def ordered(container: str, tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the tensors in the order in which `container` stores them."""
    return _writer(container).ordered(tensors)


def _writer(container: str) -> type[Writer]:
    match container:
        case "npz":
            return NpzWriter
        case "safetensors":
            return SafetensorsWriter
        case "h5":
            from convert.files.h5 import H5Writer

            return H5Writer
        case "onnx":
            from convert.files.onnx import OnnxWriter

            return OnnxWriter
    raise ValueError(f"no writer for the container {container!r}")
