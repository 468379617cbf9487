"""HDF5, as Keras writes it: arrays in groups.

The HDF5 library reads the directory and lays out a new file; the bytes of the arrays are then read and
written in place, as in any other container. A damaged file can make the library loop for ever or crash,
where no signal and no `except` helps. It therefore reads in a separate process (`h5_reader`), whose
processor time and memory are limited; starting one takes a fifth of a second.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import h5py
import msgspec
import numpy as np
from numpy.typing import NDArray

from convert.errors import CheckpointError
from convert.files.base import NO_METADATA, Metadata, StoredTensor, Tensor, TensorFile, Writer
from convert.files.h5_reader import BFLOAT16_MARK, Directory
from convert.network.dtypes import BFLOAT16, BY_NAME

SERVE = (
    "import sys; given, sys.path[:] = sys.argv[1:4], sys.argv[4:]; "
    "from convert.files import h5_reader; h5_reader.serve(*map(int, given))"
)
"""Program of the process, which imports from where this process does."""


class H5Arrays(TensorFile):
    """A file whose arrays are in HDF5, which may be the whole file or a part of it.

    Raises `CheckpointError` for a damaged file, and for anything in it but groups and plain arrays.
    """

    def _open_h5(self, start: int, size: int) -> None:
        """Add the arrays of the HDF5 file that begins at the byte `start`; links and external arrays are refused."""
        handle = self._file.fileno()
        self._reader = self.enter_context(
            subprocess.Popen(
                [sys.executable, "-P", "-c", SERVE, str(handle), str(start), str(size), *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=[handle],
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # each thread would count as memory
            )
        )
        self.callback(self._reader.kill)
        spans = []
        directory = msgspec.json.decode(b"".join(self._answers()), type=Directory)
        if directory.optimizer:
            self.notes.append("the state of the optimizer is ignored")
        for entry in directory.entries:
            offset = entry.offset if entry.packed else start + entry.offset
            tensor = StoredTensor(entry.key, entry.shape, BY_NAME[entry.dtype], offset, big_endian=entry.big_endian)
            self.tensors[entry.key] = tensor
            if entry.packed:
                self.packed.add(entry.key)
            else:
                spans.append((tensor.offset, tensor.offset + tensor.nbytes, entry.key))
        self._check_disjoint(spans, start + size)
        if not self.packed:
            self._reader.kill()

    def unpack(self, key: str) -> Iterator[bytes]:
        """Yield the elements of an array that is compressed or stored within the directory itself."""
        assert self._reader.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `_answers` reports that the process has ended
            os.write(self._reader.stdin.fileno(), msgspec.json.encode(key) + b"\n")
        yield from self._answers()

    def _answers(self) -> Iterator[bytes]:
        """Yield the data of an answer of the process. Raises `CheckpointError` for an error, or if it has ended."""
        stream = self._reader.stdout
        assert stream is not None
        while True:
            head = stream.read(9)
            content = stream.read(int.from_bytes(head[1:], "little"))
            match head[:1]:
                case b"d":
                    yield content
                case b".":
                    return
                case b"e":
                    raise CheckpointError(f"{self.path}{content.decode()}")
                case _:
                    raise CheckpointError(
                        f"{self.path} cannot be read: the HDF5 library crashed, or needed too much time or memory; "
                        "the file is damaged"
                    )


class H5File(H5Arrays):
    """An HDF5 file opened for reading; see `H5Arrays`."""

    container = "h5"

    def _open_directory(self) -> None:
        self._open_h5(0, self.nbytes)


class H5Writer(Writer):
    """A new HDF5 file: h5py lays it out, then each array is written at the offset that it got.

    Uses the format of 2008, whose directory has checksums, and stores no times: the same arrays give the same bytes.
    """

    mode = "rb+"

    def __init__(self, path: Path, tensors: Sequence[Tensor], metadata: Metadata = NO_METADATA) -> None:
        self._offsets = lay_out(path, tensors, metadata)
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


def lay_out(path: Path, tensors: Iterable[Tensor], metadata: Metadata = NO_METADATA) -> dict[str, int]:
    """Create an HDF5 file with groups, attributes and arrays without elements; return the offset of each array."""
    with h5py.File(_create(path)) as file:
        for group, values in metadata.attributes.items():
            for name, value in values.items():  # text as bytes, which Keras 2 expects and decodes
                encoded = value.encode() if isinstance(value, str) else np.array([text.encode() for text in value])
                _group(file, group).attrs[name] = encoded
        return {tensor.key: _allocate(file, tensor) for tensor in tensors}


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
