"""ONNX models: the weights of a graph, in the file itself or, beyond two gigabytes, in a second file.

A model is a protocol buffer. The library for them holds it in memory several times. Here the
fields that lead to the weights are followed in the file (protobuf.dev, "Encoding"; the numbers are those of
onnx.proto), the weights are read in place, and only the rest is parsed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx.external_data_helper import set_external_data

from convert.errors import CheckpointError
from convert.files.base import NO_METADATA, File, Metadata, StoredTensor, Tensor, TensorFile, Writer, shown
from convert.network.dtypes import FLOAT32

MAX_EMBEDDED = (2 << 30) - (64 << 20)
"""Largest size of the weights in the file itself, in bytes: a protocol buffer holds two gigabytes in all."""
FIELD = 64
"""Bytes that are counted for a field besides those that it has."""
MAX_GRAPH = 4 << 20
"""Largest model without weights, in bytes, of which parsing may make a hundredfold: five times that of R152x4
with the class names of ImageNet-21k."""
LABELS = "labels"
"""The property that holds the names of the classes, a list in JSON."""
DATA_SUFFIX = ".data"
MAX_HEAD = 20
"""Most bytes of the number and the size of a field, two numbers of 64 bits, seven bits in each byte."""
GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
"""Fields of `ModelProto`, `GraphProto` and `TensorProto`."""


class OnnxFile(TensorFile):
    """The initializers of an ONNX model. Raises `CheckpointError` for a damaged file or another format."""

    container = "onnx"
    _data: TensorFile | None = None

    def _open_directory(self) -> None:
        self._weights: list[tuple[int, int]] = []
        """Offset and size of the weights of each initializer."""
        self._kept = 0
        self._external: set[str] = set()
        content = self._without_weights(0, self.nbytes, (GRAPH, INITIALIZER))
        try:
            self.model = onnx.ModelProto.FromString(content)
        except DecodeError as error:
            raise CheckpointError(f"{self.path} is not a complete ONNX file ({shown(error)})") from None
        initializers = self.model.graph.initializer
        names = [self._text(tensor.name) for tensor in initializers]
        self._check_names(names)
        if len(set(names)) != len(names):
            raise CheckpointError(f"{self.path} holds two initializers of one name")
        self.properties = self._entries(self.model.metadata_props)
        """The properties of the model by name."""
        try:
            self.labels = msgspec.json.decode(self.properties.get(LABELS, "[]"), type=list[str])
        except (msgspec.MsgspecError, RecursionError):
            raise CheckpointError(f"{self.path}: the property {LABELS} is not a list of names in JSON") from None
        for name, tensor, weights in zip(names, initializers, self._weights, strict=True):
            self.tensors[name] = self._stored(name, tensor, *weights)

    def without_weights(self) -> onnx.ModelProto:
        """Return a copy of the model with all but the initializers."""
        bare = onnx.ModelProto()
        bare.CopyFrom(self.model)
        del bare.graph.initializer[:]
        return bare

    def read(self, tensor: StoredTensor, start: int, out: NDArray[np.generic]) -> None:
        if tensor.key in self._external:
            assert self._data is not None
            self._data.read(tensor, start, out)
        else:
            super().read(tensor, start, out)

    def digests(self, stop: threading.Event | None = None) -> dict[str, File]:
        return {**super().digests(stop), **(self._data.digests(stop) if self._data is not None else {})}

    def _without_weights(self, start: int, end: int, path: tuple[int, ...]) -> bytes:
        """Return the message from `start` to `end` without the weights, whose places are added to `_weights`.

        `path` has the numbers of the fields that lead from the message to those that hold weights.
        """
        kept, found = bytearray(), 0
        for number, begin, data, stop in self._fields(start, end):
            wanted = number == (path[0] if path else RAW_DATA)
            self._kept += FIELD + (0 if wanted else stop - begin)
            if self._kept > MAX_GRAPH:
                raise CheckpointError(f"{self.path} has more than {MAX_GRAPH} bytes beside the weights; BiT has fewer")
            if not wanted:
                field = bytearray(stop - begin)
                self._pread(memoryview(field), begin)
                kept += field
            elif path:
                inner = self._without_weights(data, stop, path[1:])
                kept += _encoded(number << 3 | 2) + _encoded(len(inner)) + inner
            else:
                self._weights.append((data, stop - data))
            found += wanted
        if not path and not found:
            self._weights.append((0, 0))
        if found > 1 and path != (INITIALIZER,):
            raise CheckpointError(f"{self.path} states a graph or the weights of a tensor twice; it is damaged")
        return bytes(kept)

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield the number of each field of a message; where the field begins, where the value begins and ends.

        The number is 0 if the value is not a message, text or bytes.
        """
        position = start
        while position < end:
            head = bytearray(min(MAX_HEAD, end - position))
            self._pread(memoryview(head), position)
            try:
                number, before, size = _field(head)
            except (IndexError, KeyError, ValueError):
                raise CheckpointError(f"{self.path} is not a complete ONNX file (at byte {position})") from None
            begin, position = position, position + before + size
            if position > end:
                raise CheckpointError(f"{self.path} is not a complete ONNX file (it is truncated)")
            yield number, begin, begin + before, position

    def _text(self, value: str | bytes) -> str:
        """Return text of the model. Raises `CheckpointError` if it is not UTF-8, which protobuf returns as bytes."""
        if not isinstance(value, str):
            raise CheckpointError(f"{self.path} holds a name that is not UTF-8 ({shown(value)}); it is damaged")
        return value

    def _entries(self, entries: Iterable[onnx.StringStringEntryProto]) -> Mapping[str, str]:
        return {self._text(entry.key): self._text(entry.value) for entry in entries}

    def _stored(self, name: str, tensor: onnx.TensorProto, offset: int, nbytes: int) -> StoredTensor:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            raise CheckpointError(f"{self.path}: {name} is not float32")
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            offset, nbytes = self._external_place(name, self._entries(tensor.external_data))
        stored = StoredTensor(name, tuple(tensor.dims), FLOAT32, offset)
        self._check_size(stored, nbytes)
        return stored

    def _external_place(self, name: str, stated: Mapping[str, str]) -> tuple[int, int]:
        """Return the offset and size of weights in the second file."""
        expected = self.path.name + DATA_SUFFIX
        if (location := stated.get("location")) != expected:
            raise CheckpointError(f"{self.path} stores weights in '{shown(location)}'; expected {expected!r}")
        numbers = [stated.get(key, "0") for key in ("offset", "length")]
        if not all(number.isdecimal() and len(number) < 20 for number in numbers):
            raise CheckpointError(f"{self.path}: the offset or length of {name} is not a number of bytes")
        offset, nbytes = map(int, numbers)
        if self._data is None:
            self._data = self.enter_context(TensorFile(self.path.with_name(expected)))
        if offset + nbytes > self._data.nbytes:
            raise CheckpointError(f"{self.path}: {name} reaches beyond the end of the data; it is truncated")
        self._external.add(name)
        return offset, nbytes


def _field(head: bytearray) -> tuple[int, int, int]:
    """Return number, length of key and size, and length of the value of the field that begins with `head`.

    Raises `ValueError`, `IndexError` or `KeyError` for an invalid field.
    """
    key, position = _number(head, 0)
    number, kind = key >> 3, key & 7
    if kind == 2:
        size, position = _number(head, position)
        return number, position, size
    if kind == 0:
        return 0, position, _number(head, position)[1] - position
    return 0, position, {1: 8, 5: 4}[kind]


def _number(head: bytearray, position: int) -> tuple[int, int]:
    """Return the number at `position`, seven bits in each byte, and the position behind it.

    Raises `ValueError` for more than ten bytes, or for more than the number needs: other readers may differ there.
    """
    value = 0
    for count in range(10):
        byte = head[position + count]
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80 and (byte or not count):
            return value, position + count + 1
        if not byte:
            break
    raise ValueError("an invalid number")


def _encoded(value: int) -> bytes:
    """Return a number as `_number` reads it."""
    content = bytearray()
    while value > 0x7F:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*content, value])


class OnnxWriter(Writer):
    """A new ONNX model: the graph of `metadata` with the weights added as initializers.

    Weights too large for one protocol buffer go to a second file, `….data`, while they are written.
    """

    def __init__(self, path: Path, tensors: Sequence[Tensor], metadata: Metadata = NO_METADATA) -> None:
        if metadata.graph is None:
            raise ValueError("an ONNX file needs a graph")
        super().__init__(path, tensors, metadata)
        self._model, self._data_path = metadata.graph(), path.with_name(path.name + DATA_SUFFIX)
        self._data: IO[bytes] | None = None
        if sum(tensor.nbytes for tensor in tensors) > MAX_EMBEDDED:
            self._data = self.enter_context(open(self._data_path, "xb"))  # noqa: SIM115 (closed by `close`)

    def write(self, tensor: Tensor, blocks: Iterable[NDArray[np.generic]]) -> None:
        item = self._model.graph.initializer.add(
            name=tensor.key, data_type=onnx.TensorProto.FLOAT, dims=tensor.shape, raw_data=b""
        )
        if self._data is None:
            item.raw_data = b"".join(block.tobytes() for block in blocks)
            return
        set_external_data(item, self._data_path.name, self._data.tell(), tensor.nbytes)
        item.ClearField("raw_data")
        for block in blocks:
            self._data.write(block.view(np.uint8).data)

    def finish(self) -> None:
        if self._data is not None:
            self._data.flush()
            os.fsync(self._data.fileno())
        self._append(memoryview(self._model.SerializeToString(deterministic=True)))
        super().finish()
