"""ONNX models: the weights of a graph, within the file or, beyond two gigabytes, in one beside it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx.external_data_helper import ExternalDataInfo, set_external_data

from convert.errors import CheckpointError
from convert.files.base import File, StoredTensor, Tensor, TensorFile
from convert.network.dtypes import FLOAT32

MAX_EMBEDDED = (2 << 30) - (64 << 20)
"""Bytes of weights in the file itself: a protocol buffer holds two gigabytes in all."""
LABELS = "labels"
"""The property that holds the names of the classes, a list in JSON."""
DATA_SUFFIX = ".data"


class OnnxFile(TensorFile):
    """The initializers of an ONNX model. Raises `CheckpointError` for a file that is none, or is damaged."""

    container = "onnx"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._data: TensorFile | None = None
        try:
            try:
                self.model = onnx.load(path, load_external_data=False)
            except DecodeError as error:
                raise CheckpointError(f"{path} is not a complete ONNX file ({error})") from None
            self._embedded = {tensor.name: tensor for tensor in self.model.graph.initializer}
            if len(self._embedded) != len(self.model.graph.initializer):
                raise CheckpointError(f"{path} holds two initializers of one name")
            self.labels = self._labels()
            for name, tensor in self._embedded.items():
                self.tensors[name] = self._stored(name, tensor)
        except BaseException:
            self.close()
            raise

    def without_weights(self) -> onnx.ModelProto:
        """A copy of the model with all but its initializers."""
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
        beside = self._data.digests(stop) if self._data is not None else {}
        return {**super().digests(stop), **beside}

    def close(self) -> None:
        if self._data is not None:
            self._data.close()
        super().close()

    def _labels(self) -> list[str]:
        for entry in self.model.metadata_props:
            if entry.key == LABELS:
                try:
                    return [str(label) for label in json.loads(entry.value)]
                except (ValueError, TypeError):
                    raise CheckpointError(f"{self.path} has labels that are no list") from None
        return []

    def _stored(self, name: str, tensor: onnx.TensorProto) -> StoredTensor:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            raise CheckpointError(f"{self.path}: {name} is not float32")
        offset, nbytes = 0, len(tensor.raw_data)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            try:
                about = ExternalDataInfo(tensor)
            except ValueError:
                raise CheckpointError(f"{self.path}: {name} lies at no number") from None
            if about.location != self.path.name + DATA_SUFFIX:
                raise CheckpointError(f"{self.path} names {about.location!r}, other than its own data")
            if self._data is None:
                self._data = TensorFile(self.path.with_name(about.location))
            offset, nbytes = about.offset or 0, about.length or 0
            if not 0 <= offset <= self._data.nbytes - nbytes:
                raise CheckpointError(f"{self.path}: {name} reaches beyond the end of its data; it is truncated")
        stored = StoredTensor(name, tuple(tensor.dims), FLOAT32, offset)
        if stored.nbytes != nbytes:
            raise CheckpointError(f"{self.path}: {name} has {nbytes} bytes, other than its shape says")
        return stored


class OnnxWriter:
    """Writes the weights of `graph` and then the model, whose other parts are given."""

    def __init__(self, path: Path, tensors: Sequence[Tensor], model: onnx.ModelProto) -> None:
        self._path, self._model = path, model
        self._data = None
        if sum(tensor.nbytes for tensor in tensors) > MAX_EMBEDDED:
            self._data = open(path.with_name(path.name + DATA_SUFFIX), "xb")  # noqa: SIM115 (closed by `close`)
        path.touch(exist_ok=False)
        self.written = 0
        """The bytes from the start of the file that will not change any more."""

    def write(self, tensor: Tensor, blocks: Iterable[NDArray[np.generic]]) -> None:
        """Add one array, given as its elements' bits in C order."""
        item = self._model.graph.initializer.add(
            name=tensor.key, data_type=onnx.TensorProto.FLOAT, dims=tensor.shape, raw_data=b""
        )
        if self._data is None:
            item.raw_data = b"".join(block.tobytes() for block in blocks)
            return
        set_external_data(item, self._path.name + DATA_SUFFIX, self._data.tell(), tensor.nbytes)
        item.ClearField("raw_data")
        for block in blocks:
            self._data.write(block.view(np.uint8).data)

    def finish(self) -> None:
        """Write the model, and hand it to the operating system."""
        if self._data is not None:
            self._data.flush()
            os.fsync(self._data.fileno())
        self._path.write_bytes(self._model.SerializeToString(deterministic=True))
        self.written = self._path.stat().st_size

    def close(self) -> None:
        if self._data is not None:
            self._data.close()
