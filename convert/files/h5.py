"""HDF5, as Keras writes it: arrays in groups.

h5py reads the directory and lays out a new file; the bytes of the arrays are then read and written
in place, as in any other container.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from convert.errors import CheckpointError
from convert.files.base import CHUNK, NO_METADATA, Metadata, StoredTensor, Tensor, TensorFile, Writer
from convert.files.zip import MAX_INFLATION
from convert.network import dtypes
from convert.network.dtypes import BFLOAT16, DType

MAX_DEPTH = 32
FAILURES = (OSError, RuntimeError, ValueError, TypeError, KeyError, OverflowError, MemoryError)
"""Exceptions that h5py raises for damaged files."""
BFLOAT16_MARK = ("dtype", "bfloat16")
"""The attribute by which Keras 3 marks two-byte elements as bfloat16."""


class H5File(TensorFile):
    """An HDF5 file opened for reading; links and arrays stored in other files are refused.

    Raises `CheckpointError` for a damaged file, and for anything in it but groups and plain arrays.
    """

    container = "h5"

    def _open_directory(self) -> None:
        self._spans: list[tuple[int, int, str]] = []
        self._seen: set[object] = set()
        with self._readable(" is not a complete h5 file"):
            self._directory = self.enter_context(h5py.File(self.path, "r", locking=False))
        with self._readable(" is damaged"):
            self._walk(self._directory, "")
        self._check_disjoint(self._spans, self.nbytes)
        if len({tensor.big_endian for tensor in self.tensors.values()}) > 1:
            raise CheckpointError(f"{self.path} holds arrays of both byte orders; it is damaged")

    def unpack(self, key: str) -> Iterator[bytes]:
        """Yield the elements, in chunks, of an array that is compressed or stored within the directory itself."""
        tensor = self.tensors[key]
        with self._readable(f": {key} is damaged"):
            dataset = self._directory[key]
            if not tensor.shape:
                yield dataset[()].tobytes()
                return
            rows = max(1, CHUNK * len(dataset) // max(1, tensor.nbytes))
            for start in range(0, len(dataset), rows):
                yield dataset[start : start + rows].tobytes()

    @contextlib.contextmanager
    def _readable(self, fault: str) -> Iterator[None]:
        """Raise the errors of h5py as `CheckpointError`."""
        try:
            yield
        except CheckpointError:
            raise
        except FAILURES as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CheckpointError(f"{self.path}{fault} ({reason}); fetch the file again") from None

    def _walk(self, group: h5py.Group, prefix: str) -> None:
        if prefix.count("/") > MAX_DEPTH:
            raise CheckpointError(f"{self.path}: groups are nested more than {MAX_DEPTH} deep")
        for name in group:
            key = f"{prefix}{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise CheckpointError(f"{self.path}: {key} is a link to another place, which is not followed")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in self._seen:
                raise CheckpointError(f"{self.path}: {key} has a second name in the file; store it once")
            self._seen.add(address)
            self._spans.append((address, address + 1, f"the header of {key}"))
            if isinstance(item, h5py.Group):
                self._walk(item, f"{key}/")
            elif isinstance(item, h5py.Dataset):
                self.tensors[key] = self._tensor(key, item)
            else:
                raise CheckpointError(f"{self.path}: {key} is neither a group nor an array")

    def _tensor(self, key: str, item: h5py.Dataset) -> StoredTensor:
        known = _dtype(item)
        if known is None:
            raise self._wrong_type(key, item.dtype)
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
            raise CheckpointError(f"{self.path}: {key} was created but never filled")
        if contiguous or tensor.nbytes > MAX_INFLATION * stored:
            self._check_size(tensor, stored)
        if plan.get_layout() == h5py.h5d.CHUNKED and not _has_every_chunk(item):
            raise CheckpointError(f"{self.path}: some chunks of {key} are missing")
        if contiguous:
            self._spans.append((offset, offset + tensor.nbytes, key))
        else:
            self.packed.add(key)
        return tensor


class H5Writer(Writer):
    """A new HDF5 file: h5py lays it out, then each array is written at the offset that it got.

    Uses the format of 2008, whose directory has checksums, and stores no times: the same arrays give the same bytes.
    """

    mode = "rb+"

    def __init__(self, path: Path, tensors: Sequence[Tensor], metadata: Metadata = NO_METADATA) -> None:
        with h5py.File(_create(path)) as file:
            for group, values in metadata.attributes.items():
                for name, value in values.items():  # text as bytes, which Keras 2 expects and decodes
                    encoded = value.encode() if isinstance(value, str) else np.array([text.encode() for text in value])
                    _group(file, group).attrs[name] = encoded
            self._offsets = {tensor.key: _allocate(file, tensor) for tensor in tensors}
        super().__init__(path, tensors, metadata)
        self._end = self._file.seek(0, os.SEEK_END)

    def write(self, tensor: Tensor, blocks: Iterable[NDArray[np.generic]]) -> None:
        self._file.seek(self._offsets.pop(tensor.key))
        # HDF5 may lay arrays out in another order than they were created in.
        before = min(self._offsets.values(), default=self._end)
        for block in blocks:
            self._append(block.view(np.uint8).data)
            self.written = max(self.written, min(self._file.tell(), before))

    def finish(self) -> None:
        self.written = self._end


def _create(path: Path) -> h5py.h5f.FileID:
    access, root = h5py.h5p.create(h5py.h5p.FILE_ACCESS), h5py.h5p.create(h5py.h5p.FILE_CREATE)
    access.set_libver_bounds(h5py.h5f.LIBVER_V18, h5py.h5f.LIBVER_V18)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    root.set_obj_track_times(False)
    return h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_EXCL, root, access)


def _group(file: h5py.File, name: str) -> h5py.Group:
    """Return the group of this name, created without a time, parents included."""
    if name not in file:
        parent, _, last = name.rpartition("/")
        plan = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
        plan.set_obj_track_times(False)
        h5py.h5g.create(_group(file, parent or "/").id, last.encode(), gcpl=plan)
    return file[name]


def _allocate(file: h5py.File, tensor: Tensor) -> int:
    """Create an array without elements; return the offset in the file where they belong."""
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
    """Return True if all chunks of an array are stored; HDF5 would read missing ones as zeros."""
    stored: list[tuple[int, ...]] = []
    item.id.chunk_iter(lambda chunk: stored.append(chunk.chunk_offset))
    starts = [range(0, length, step) for length, step in zip(item.shape, item.chunks, strict=True)]
    return len(stored) == math.prod(map(len, starts)) and sorted(stored) == list(itertools.product(*starts))
