"""The safetensors format: an 8-byte length, a JSON header, then the arrays end to end.

Read and written by the format's own description (huggingface/safetensors, README, "Format"), so
that arrays stream; the library itself takes whole ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.errors import CheckpointError
from convert.files.base import StoredTensor, Tensor, TensorFile
from convert.network.dtypes import BY_SAFETENSORS

MAX_HEADER = 100_000_000
"""As the library's own limit."""


class SafetensorsFile(TensorFile):
    """A safetensors file opened for reading. Raises `CheckpointError` for a header that breaks the format."""

    container = "safetensors"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> None:
        length = bytearray(8)
        if self.nbytes < 8:
            raise CheckpointError(f"{self.path} is too short for a safetensors file")
        self._pread(memoryview(length), 0)
        size = int.from_bytes(length, "little")
        if size > min(self.nbytes - 8, MAX_HEADER):
            raise CheckpointError(f"{self.path} claims a header of {size} bytes, more than it can have")
        text = bytearray(size)
        self._pread(memoryview(text), 8)
        try:
            header = json.loads(text.decode("utf-8"), object_pairs_hook=no_duplicates)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.path} has a damaged header ({error})") from None
        if not isinstance(header, dict):
            raise CheckpointError(f"{self.path} has a damaged header (not an object)")
        header.pop("__metadata__", None)
        spans = []
        for key, entry in header.items():
            tensor = self._tensor(key, entry, 8 + size)
            self.tensors[key] = tensor
            spans.append((tensor.offset, tensor.offset + tensor.nbytes, key))
        self._check_disjoint(spans, self.nbytes)
        if 8 + size + sum(tensor.nbytes for tensor in self.tensors.values()) != self.nbytes:
            raise CheckpointError(f"{self.path} has {self.nbytes} bytes, other than its header accounts for")

    def _tensor(self, key: str, entry: Any, data: int) -> StoredTensor:
        try:
            shape, (start, end), name = tuple(entry["shape"]), entry["data_offsets"], entry["dtype"]
            whole = isinstance(name, str) and all(type(n) is int and n >= 0 for n in (*shape, start, end))
        except (TypeError, KeyError, ValueError):
            whole = False
        if not whole:
            raise CheckpointError(f"{self.path} has a damaged header (the entry of {key})")
        if name not in BY_SAFETENSORS:
            raise CheckpointError(
                f"{self.path}: {key} holds elements of type {name}; weights are "
                + ", ".join(dtype.name for dtype in BY_SAFETENSORS.values())
            )
        tensor = StoredTensor(key, shape, BY_SAFETENSORS[name], data + start)
        if tensor.nbytes != end - start:
            raise CheckpointError(
                f"{self.path}: {key} says it has the shape {list(shape)} of {tensor.dtype.name}, "
                f"but has {end - start} bytes of data"
            )
        return tensor


class SafetensorsWriter:
    """Writes a safetensors file, each array at its final offset.

    Arrays must come in the order of `tensors`, which is that of the file: larger elements first,
    so that each is aligned.
    """

    def __init__(self, path: Path, tensors: Sequence[Tensor]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for tensor in tensors:
            header[tensor.key] = {
                "dtype": tensor.dtype.safetensors,
                "shape": list(tensor.shape),
                "data_offsets": [offset, offset + tensor.nbytes],
            }
            offset += tensor.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115 (closed by `close`)
        self.written = 0
        """The bytes from the start of the file that will not change any more."""
        self._write(memoryview(len(text).to_bytes(8, "little") + text))

    def write(self, tensor: Tensor, blocks: Iterable[NDArray[np.generic]]) -> None:
        """Append one array, given as its elements' bits in C order."""
        for block in blocks:
            self._write(block.view(np.uint8).data)

    def finish(self) -> None:
        """Write what closes the file, and hand it to the operating system."""

    def close(self) -> None:
        self._file.close()

    def _write(self, data: memoryview) -> None:
        while data:
            count = os.write(self._file.fileno(), data)
            data = data[count:]
            self.written += count


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: an object in which each name stands once. Raises `ValueError`."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found
