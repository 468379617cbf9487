"""HDF5, as Keras writes it: arrays in groups, read from their offsets, written at theirs.

h5py reads the directory and lays a new file out; the arrays' bytes are then read and written in
place, as in any other container.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from convert.errors import CheckpointError
from convert.files.base import CHUNK, PackedTensorFile, StoredTensor, Tensor
from convert.files.zip import MAX_INFLATION
from convert.network import dtypes
from convert.network.dtypes import BFLOAT16, DType

Attributes = Mapping[str, Mapping[str, str | Sequence[str]]]
"""By the path of a group, its attributes; the root is `/`."""
MAX_DEPTH = 32
FAILURES = (OSError, RuntimeError, ValueError, TypeError, KeyError, OverflowError, MemoryError)
"""What h5py raises for damaged files."""
BFLOAT16_MARK = ("dtype", "bfloat16")
"""The attribute by which Keras 3 says what the two-byte elements of an array are."""


class H5File(PackedTensorFile):
    """An HDF5 file opened for reading; links to elsewhere, and arrays stored elsewhere, are refused.

    Raises `CheckpointError` for a damaged file, and for anything in it but groups and plain arrays.
    """

    container = "h5"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._spans: list[tuple[int, int, str]] = []
        self._seen: set[object] = set()
        try:
            self._file_h5 = h5py.File(path, "r", locking=False)
        except FAILURES as error:
            super().close()
            raise CheckpointError(f"{path} is not a complete h5 file ({_reason(error)})") from None
        try:
            self._walk(self._file_h5, "", 0)
            self._check_disjoint(self._spans, self.nbytes)
            if len({tensor.big_endian for tensor in self.tensors.values()}) > 1:
                raise CheckpointError(f"{path} holds arrays of both byte orders; it is damaged")
        except CheckpointError:
            self.close()
            raise
        except FAILURES as error:
            self.close()
            raise CheckpointError(f"{path} is damaged ({_reason(error)}); fetch the file again") from None

    def unpack(self, key: str) -> Iterator[bytes]:
        """The elements of an array that is compressed, in chunks, or within the directory itself."""
        tensor = self.tensors[key]
        rows = max(1, CHUNK // max(1, tensor.nbytes // max(1, tensor.shape[0] if tensor.shape else 1)))
        try:
            dataset = self._file_h5[key]
            for start in range(0, len(dataset), rows) if dataset.shape else ():
                yield dataset[start : start + rows].tobytes()
            if not dataset.shape:
                yield dataset[()].tobytes()
        except FAILURES as error:
            raise CheckpointError(f"{self.path}: {key} is damaged ({_reason(error)}); fetch the file again") from None

    def close(self) -> None:
        self._file_h5.close()
        super().close()

    def _walk(self, group: h5py.Group, prefix: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise CheckpointError(f"{self.path}: its groups lie more than {MAX_DEPTH} deep")
        for name in group:
            key = f"{prefix}{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise CheckpointError(f"{self.path}: {key} is a link to elsewhere, which is not followed")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in self._seen:
                raise CheckpointError(f"{self.path}: {key} is in the file under two names")
            self._seen.add(address)
            self._spans.append((address, address + 1, f"the header of {key}"))
            if isinstance(item, h5py.Group):
                self._walk(item, f"{key}/", depth + 1)
            elif isinstance(item, h5py.Dataset):
                self.tensors[key] = self._tensor(key, item)
            else:
                raise CheckpointError(f"{self.path}: {key} is neither a group nor an array")

    def _tensor(self, key: str, item: h5py.Dataset) -> StoredTensor:
        known = _dtype(item)
        if known is None:
            raise CheckpointError(
                f"{self.path}: {key} holds elements of type {item.dtype}; weights are "
                + ", ".join(dtype.name for dtype in dtypes.DTYPES)
            )
        if item.shape is None:
            raise CheckpointError(f"{self.path}: {key} has no elements")
        dtype, big_endian = known
        plan = item.id.get_create_plist()
        if plan.get_external_count() or plan.get_layout() == h5py.h5d.VIRTUAL:
            raise CheckpointError(f"{self.path}: {key} is stored in another file, which is not read")
        stored, offset = item.id.get_storage_size(), item.id.get_offset()
        contiguous = plan.get_layout() == h5py.h5d.CONTIGUOUS and offset is not None
        tensor = StoredTensor(key, item.shape, dtype, offset if contiguous else 0, big_endian=big_endian)
        if stored == 0 and tensor.nbytes:
            raise CheckpointError(f"{self.path}: {key} was never written")
        if tensor.nbytes != stored if contiguous else tensor.nbytes > MAX_INFLATION * stored:
            raise CheckpointError(
                f"{self.path}: {key} says it has the shape {list(item.shape)} of {dtype.name}, "
                f"but has {stored} bytes of data"
            )
        if plan.get_layout() == h5py.h5d.CHUNKED and not _has_every_chunk(item):
            raise CheckpointError(f"{self.path}: {key} was not written as a whole")
        if contiguous:
            self._spans.append((offset, offset + tensor.nbytes, key))
        else:
            self.packed.add(key)
        return tensor


class H5Writer:
    """Writes an HDF5 file: first all but the elements, through h5py, then these, each array at its place.

    The format's version of 2008 is used, whose directory has checksums. No times are kept in it: the same arrays give
    the same bytes.
    """

    def __init__(self, path: Path, tensors: Sequence[Tensor], attributes: Attributes) -> None:
        with h5py.File(_create(path)) as file:
            for group, values in attributes.items():
                for name, value in values.items():
                    _group(file, group).attrs[name] = _attribute(value)
            self._offsets = {tensor.key: _allocate(file, tensor) for tensor in tensors}
        self._file = open(path, "rb+", buffering=0)  # noqa: SIM115 (closed by `close`)
        self._end = path.stat().st_size
        self.written = 0
        """The bytes from the start of the file that will not change any more."""

    def write(self, tensor: Tensor, blocks: Iterable[NDArray[np.generic]]) -> None:
        """Write one array, given as its elements' bits in C order."""
        position = self._offsets.pop(tensor.key)
        # HDF5 need not lay arrays out in the order in which they were made.
        before = min(self._offsets.values(), default=self._end)
        for block in blocks:
            data = block.view(np.uint8).data
            while data:
                count = os.pwrite(self._file.fileno(), data, position)
                data, position = data[count:], position + count
            self.written = max(self.written, min(position, before))

    def finish(self) -> None:
        """Write what closes the file, and hand it to the operating system."""
        self.written = self._end

    def close(self) -> None:
        self._file.close()


def _create(path: Path) -> h5py.h5f.FileID:
    access, root = h5py.h5p.create(h5py.h5p.FILE_ACCESS), h5py.h5p.create(h5py.h5p.FILE_CREATE)
    access.set_libver_bounds(h5py.h5f.LIBVER_V18, h5py.h5f.LIBVER_V18)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    root.set_obj_track_times(False)
    return h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_EXCL, root, access)


def _group(file: h5py.File, name: str) -> h5py.Group:
    """The group of this name, made without a time, as are those that it lies in."""
    if name not in file:
        parent, _, last = name.rpartition("/")
        plan = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
        plan.set_obj_track_times(False)
        h5py.h5g.create(_group(file, parent or "/").id, last.encode(), gcpl=plan)
    return file[name]


def _allocate(file: h5py.File, tensor: Tensor) -> int:
    """Make an array without elements; the offset in the file at which they belong."""
    place = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    place.set_layout(h5py.h5d.CONTIGUOUS)
    place.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    place.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    dtype = np.dtype("V2") if tensor.dtype is BFLOAT16 else tensor.dtype.bits
    group, _, name = tensor.key.rpartition("/")
    dataset = _group(file, group or "/").create_dataset(name, tensor.shape, dtype, dcpl=place, track_times=False)
    if tensor.dtype is BFLOAT16:
        dataset.attrs[BFLOAT16_MARK[0]] = BFLOAT16_MARK[1]
    return int(dataset.id.get_offset())


def _dtype(item: h5py.Dataset) -> tuple[DType, bool] | None:
    if item.dtype.itemsize == 2 and item.attrs.get(BFLOAT16_MARK[0]) == BFLOAT16_MARK[1]:
        return BFLOAT16, item.dtype.byteorder == ">"
    return dtypes.from_npy(item.dtype.str) if item.dtype.kind == "f" else None


def _has_every_chunk(item: h5py.Dataset) -> bool:
    """Whether all chunks of an array are stored; HDF5 reads others as zeros."""
    stored: list[tuple[int, ...]] = []
    item.id.chunk_iter(lambda chunk: stored.append(chunk.chunk_offset))
    starts = [range(0, length, step) for length, step in zip(item.shape, item.chunks, strict=True)]
    return len(stored) == math.prod(map(len, starts)) and sorted(stored) == list(itertools.product(*starts))


def _attribute(value: str | Sequence[str]) -> object:
    """Text as bytes, as Keras 2 stores it and decodes what it reads."""
    return value.encode() if isinstance(value, str) else np.array([text.encode() for text in value])


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
