"""ONNX models: the weights of a graph, in the file itself or, beyond two gigabytes, in a second file."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx.external_data_helper import ExternalDataInfo, set_external_data

from convert.errors import CheckpointError
from convert.files.base import NO_METADATA, File, Metadata, StoredTensor, Tensor, TensorFile, Writer
from convert.network.dtypes import FLOAT32

MAX_EMBEDDED = (2 << 30) - (64 << 20)
"""Largest size of the weights in the file itself, in bytes: a protocol buffer holds two gigabytes in all."""
LABELS = "labels"
"""The property that holds the names of the classes, a list in JSON."""
DATA_SUFFIX = ".data"


class OnnxFile(TensorFile):
    """The initializers of an ONNX model. Raises `CheckpointError` for a damaged file or another format."""

    container = "onnx"
    _data: TensorFile | None = None

    def _open_directory(self) -> None:
        try:
            self.model = onnx.load(self.path, load_external_data=False)
        except DecodeError as error:
            raise CheckpointError(f"{self.path} is not a complete ONNX file ({error})") from None
        self._embedded = {tensor.name: tensor for tensor in self.model.graph.initializer}
        if len(self._embedded) != len(self.model.graph.initializer):
            raise CheckpointError(f"{self.path} holds two initializers of one name")
        properties = {entry.key: entry.value for entry in self.model.metadata_props}
        try:
            self.labels = [str(label) for label in msgspec.json.decode(properties.get(LABELS, "[]"), type=list)]
        except msgspec.DecodeError:
            raise CheckpointError(f"{self.path}: the property {LABELS} is not a list in JSON") from None
        self.tensors = {name: self._stored(name, tensor) for name, tensor in self._embedded.items()}

    def without_weights(self) -> onnx.ModelProto:
        """Return a copy of the model with all but the initializers."""
        bare = onnx.ModelProto()
        bare.CopyFrom(self.model)
        del bare.graph.initializer[:]
        return bare

    def read(self, tensor: StoredTensor, start: int, out: NDArray[np.generic]) -> None:
        if self._embedded[tensor.key].data_location == onnx.TensorProto.EXTERNAL:
            assert self._data is not None
            self._data.read(tensor, start, out)
        else:
            values = np.frombuffer(self._embedded[tensor.key].raw_data, tensor.dtype.bits)
            out[:] = values[start : start + out.size]

    def digests(self, stop: threading.Event | None = None) -> dict[str, File]:
        return {**super().digests(stop), **(self._data.digests(stop) if self._data is not None else {})}

    def _stored(self, name: str, tensor: onnx.TensorProto) -> StoredTensor:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            raise CheckpointError(f"{self.path}: {name} is not float32")
        offset, nbytes = 0, len(tensor.raw_data)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            try:
                stated = ExternalDataInfo(tensor)
            except ValueError:
                raise CheckpointError(f"{self.path}: the offset of {name} is not a number") from None
            if stated.location != self.path.name + DATA_SUFFIX:
                raise CheckpointError(
                    f"{self.path} stores weights in {stated.location!r}; expected {self.path.name + DATA_SUFFIX!r}"
                )
            if self._data is None:
                self._data = self.enter_context(TensorFile(self.path.with_name(stated.location)))
            offset, nbytes = stated.offset or 0, stated.length or 0
            if not 0 <= offset <= self._data.nbytes - nbytes:
                raise CheckpointError(f"{self.path}: {name} reaches beyond the end of the data; it is truncated")
        stored = StoredTensor(name, tuple(tensor.dims), FLOAT32, offset)
        self._check_size(stored, nbytes)
        return stored


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
