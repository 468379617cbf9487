"""The safetensors format: an 8-byte length, a JSON header, then the arrays end to end.

Read and written by the description of the format (huggingface/safetensors, README, "Format"), so
that arrays stream; the library itself takes whole arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from bit.files import parse_json
from convert.errors import CheckpointError
from convert.files.base import (
    MAX_DIRECTORY,
    MAX_LENGTH,
    NO_METADATA,
    Metadata,
    StoredTensor,
    Tensor,
    TensorFile,
    Writer,
    shown,
)
from convert.network.dtypes import BY_SAFETENSORS

Natural = Annotated[int, msgspec.Meta(ge=0, le=MAX_LENGTH)]


class Entry(msgspec.Struct):
    """One tensor in the header."""

    dtype: str
    shape: tuple[Natural, ...]
    data_offsets: tuple[Natural, Natural]


class SafetensorsFile(TensorFile):
    """A safetensors file opened for reading. Raises `CheckpointError` for a header that breaks the format."""

    container = "safetensors"

    def _open_directory(self) -> None:
        length = bytearray(8)
        if self.nbytes < 8:
            raise CheckpointError(f"{self.path} is too short for a safetensors file; it is truncated")
        self._pread(memoryview(length), 0)
        size = int.from_bytes(length, "little")
        if size > min(self.nbytes - 8, MAX_DIRECTORY):
            raise CheckpointError(f"{self.path} states a header of {size} bytes, which is too long; it is damaged")
        text = bytearray(size)
        self._pread(memoryview(text), 8)
        try:
            header = parse_json(bytes(text))
        except ValueError as error:
            raise CheckpointError(f"{self.path} has a damaged header ({shown(error)})") from None
        if not isinstance(header, dict):
            raise CheckpointError(f"{self.path} has a damaged header (not an object)")
        header.pop("__metadata__", None)
        self._check_names(list(header))
        self.tensors = {key: self._tensor(key, entry, 8 + size) for key, entry in header.items()}
        spans = [(tensor.offset, tensor.offset + tensor.nbytes, key) for key, tensor in self.tensors.items()]
        self._check_disjoint(spans, self.nbytes)
        expected = 8 + size + sum(tensor.nbytes for tensor in self.tensors.values())
        if expected != self.nbytes:
            raise CheckpointError(f"{self.path} has {self.nbytes} bytes, but the header describes {expected}")

    def _tensor(self, key: str, values: Any, data: int) -> StoredTensor:
        try:
            entry = msgspec.convert(values, Entry)
        except msgspec.ValidationError as error:
            raise CheckpointError(f"{self.path} has a damaged header (the entry of {key}: {error})") from None
        if entry.dtype not in BY_SAFETENSORS:
            raise self._wrong_type(key, entry.dtype)
        start, end = entry.data_offsets
        tensor = StoredTensor(key, entry.shape, BY_SAFETENSORS[entry.dtype], data + start)
        self._check_size(tensor, end - start)
        return tensor


class SafetensorsWriter(Writer):
    """A new safetensors file. Tensors of larger elements come first, so that each is aligned."""

    def __init__(self, path: Path, tensors: Sequence[Tensor], metadata: Metadata = NO_METADATA) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for tensor in tensors:
            start, offset = offset, offset + tensor.nbytes
            header[tensor.key] = Entry(tensor.dtype.safetensors, tensor.shape, (start, offset))
        text = msgspec.json.encode(header)
        text += b" " * (-len(text) % 8)
        super().__init__(path, tensors, metadata)
        self._append(memoryview(len(text).to_bytes(8, "little") + text))

    @staticmethod
    def ordered(tensors: Iterable[Tensor]) -> list[Tensor]:
        return sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)

    def write(self, tensor: Tensor, blocks: Iterable[NDArray[np.generic]]) -> None:
        for block in blocks:
            self._append(block.view(np.uint8).data)
            self.written = self._file.tell()
