"""A checkpoint that was opened: which layout and which network it is, and where each parameter lies."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bit.config import CONFIG_NAME, BitConfig
from convert.architecture import bind, check_name, found_in_words, infer
from convert.errors import CheckpointError
from convert.files.npz import NpzFile
from convert.files.safetensors import SafetensorsFile
from convert.files.tensors import StoredTensor, TensorFile
from convert.layouts import LAYOUTS
from convert.layouts.layout import Layout, Located
from convert.parameters import KINDS, Place, parameters
from convert.record import ConversionRecord
from convert.transforms import Transform

ZIP = (b"PK\x03\x04", b"PK\x05\x06")
"""What a zip archive begins with: a member, or the end of an empty one."""


def checkpoint_name(path: Path) -> str:
    """What a file or folder is called: as the conversion that wrote it recorded, else by its own name."""
    record = ConversionRecord.beside(path)
    if record is not None:
        return record.name
    return path.resolve().name if path.is_dir() else path.stem


class Checkpoint:
    """Weights of one BiT network in one file of any layout.

    `path` is that file, or a folder that holds it. Raises `CheckpointError` unless the file holds
    every parameter of one network once, in one layout, and its name states no other network.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        self.record = ConversionRecord.beside(path)
        if not str(path.absolute()).isprintable():
            raise CheckpointError(f"the name {str(path)!r} cannot be recorded; rename it")
        self.name = name or checkpoint_name(path)
        self.file = _open(_weights(path))
        try:
            shapes = {key: tensor.shape for key, tensor in self.file.tensors.items()}
            self.layout, located = _detect(shapes)
            self.config: BitConfig = infer(self.layout, located, shapes)
            self.keys = bind(self.config, self.layout, located, shapes)
            check_name(self.name, self.config)
            if path.is_dir() or self.record is not None:
                self.config = _with_stated(self.config, self.layout, self.file.path.parent)
            self._places = {parameter.name: parameter.place for parameter in parameters(self.config)}
        except CheckpointError as error:
            self.file.close()
            raise CheckpointError(f"{self.file.path}: {error}", error.problems) from None

    def tensor(self, place: Place) -> StoredTensor:
        """Where a parameter lies in the file."""
        return self.file.tensors[self.keys[place]]

    def stored_axes(self, place: Place) -> str:
        """The letters of a parameter's axes as they lie in the file, slowest first."""
        axes = self.layout.axes(place)
        return axes[::-1] if self.tensor(place).fortran_order else axes

    def stored_shape(self, place: Place) -> tuple[int, ...]:
        tensor = self.tensor(place)
        return tensor.shape[::-1] if tensor.fortran_order else tensor.shape

    def weights(self, name: str) -> NDArray[np.float64]:
        """One parameter by its canonical name, in float64, with its canonical axes."""
        place = self._places[name]
        tensor = self.tensor(place)
        bits = np.empty(tensor.size, tensor.dtype.bits)
        self.file.read(tensor, 0, bits)
        stored = tensor.dtype.to_float64(bits).reshape(self.stored_shape(place))
        return Transform(self.stored_axes(place), KINDS[place.kind])(stored)

    @property
    def dtype(self) -> str:
        """The name of the elements' type, float32 if there are several."""
        names = {tensor.dtype.name for tensor in self.file.tensors.values()}
        return names.pop() if len(names) == 1 else "float32"

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.file.tensors.values())

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _with_stated(config: BitConfig, layout: Layout, folder: Path) -> BitConfig:
    """What the `config.json` in a folder adds; `CheckpointError` where it says another network."""
    file = folder / CONFIG_NAME
    if not file.is_file():
        return config
    try:
        return layout.stated(config, dict(json.loads(file.read_text("utf-8"))))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{CONFIG_NAME} beside it does not fit: {error}") from None


def _weights(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [file for suffix in ("*.safetensors", "*.npz") for file in path.glob(suffix)]
    if len(found) != 1:
        names = ", ".join(sorted(file.name for file in found)) or "none"
        raise CheckpointError(f"{path} must hold one .safetensors or .npz file; it holds {names}")
    return found[0]


def _open(path: Path) -> TensorFile:
    """Open a file by what it contains, whatever it is called."""
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is not a regular file")
    with open(path, "rb") as file:
        start = file.read(9)
    if start.startswith(ZIP):
        return NpzFile(path)
    if start[8:9] == b"{":
        return SafetensorsFile(path)
    raise CheckpointError(f"{path} is neither an npz nor a safetensors file" + (" (it is empty)" if not start else ""))


def _detect(shapes: dict[str, tuple[int, ...]]) -> tuple[Layout, Located]:
    """The layout that knows most of the names."""
    candidates = [(layout, layout.locate(shapes)) for layout in LAYOUTS.values()]
    layout, located = max(candidates, key=lambda candidate: len(candidate[1].keys))
    if not located.keys:
        raise CheckpointError(f"holds no BiT weights of a known layout ({found_in_words(shapes)})")
    return layout, located
