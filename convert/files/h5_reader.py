"""Read HDF5 files with the HDF5 library, in a separate process (see `convert.files.h5`).

`serve` answers on the standard output: first with the directory, then with the elements of each array whose
name comes on the standard input, one a line. An answer consists of parts: a letter (`d` data, `e` error,
`.` end), eight bytes of length, and that many bytes.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import resource
import signal
import sys
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import msgspec

from convert.errors import CheckpointError
from convert.files.base import CHUNK, MAX_TENSORS, StoredTensor, TensorFile, shown
from convert.files.zip import MAX_INFLATION
from convert.network import dtypes
from convert.network.dtypes import BFLOAT16, DType

SECONDS = 2
"""Processor time for an answer, several times what a small file takes."""
LISTED_IN_A_SECOND, UNPACKED_IN_A_SECOND = 1 << 20, 20 << 20
"""Bytes of a file, and of an array, for which a second is added: a tenth of what a laptop lists and unpacks."""
MOST_SECONDS = 15
"""Most processor time for the directory, of which `MAX_TENSORS` arrays take two."""
MEMORY = 1 << 30
"""Most bytes of memory; a chunk of `MAX_BLOCK` takes five times its size."""
MAX_DEPTH = 32
OPTIMIZER = "optimizer"
"""The group in which Keras 3 saves the state of the optimizer: numbers of steps, which are no weights, and momenta."""
MAX_BLOCK = 128 << 20
"""Most bytes that are unpacked at once: the largest convolution of R152x4 in float32, in a single chunk."""
GZIP, SHUFFLE, CHECKSUM, LZF = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, 32000
"""Numbers of the filters that are undone; h5py adds LZF to HDF5 (registered with the HDF Group)."""
MAX_MARK = 64
"""Largest `BFLOAT16_MARK` in bytes."""
FAILURES = (OSError, RuntimeError, ValueError, TypeError, LookupError, OverflowError, MemoryError)
"""Exceptions that h5py raises for damaged files, and `_lzf_size` for a chunk that ends too early."""
BFLOAT16_MARK = ("dtype", "bfloat16")
"""The attribute by which Keras 3 marks two-byte elements as bfloat16."""


class Entry(msgspec.Struct):
    """An array in the directory, in the terms of `StoredTensor`; `dtype` is a name."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    big_endian: bool
    packed: bool


class Directory(msgspec.Struct):
    """The answer with the directory."""

    entries: list[Entry]
    optimizer: bool
    """True if the file also has the state of an optimizer, which is left out."""


class H5Reader(TensorFile):
    """An HDF5 file opened for reading in this process; links and arrays stored in other files are refused.

    Raises `CheckpointError` for a damaged file, and for anything in it but groups and plain arrays.
    """

    container = "h5"

    def __init__(self, path: Path, start: int = 0, size: int | None = None) -> None:
        """Read the whole file, or the `size` bytes from `start` on; offsets count from there."""
        self._start, self._size = start, size
        super().__init__(path)

    def _open_directory(self) -> None:
        self._spans: list[tuple[int, int, str]] = []
        self._seen: set[object] = set()
        self.optimizer = False
        self.nbytes = self.nbytes if self._size is None else self._size
        with self._readable(" is not a complete h5 file"):
            # The open file, not the path, which may name another file by now.
            name = f"/dev/fd/{self._file.fileno()}"
            part = self._size is not None and (self._start or self._size != self._identity[0])
            where: Any = _Part(self._file.fileno(), self._start, self.nbytes) if part else name
            self._directory = self.enter_context(h5py.File(where, "r", **({} if part else {"locking": False})))
        with self._readable(" is damaged"):
            self._walk(self._directory, "")
        self._check_disjoint(self._spans, self.nbytes)
        if len({tensor.big_endian for tensor in self.tensors.values()}) > 1:
            raise CheckpointError(f"{self.path} holds arrays of both byte orders; it is damaged")

    def _pread(self, out: memoryview, offset: int) -> None:
        super()._pread(out, self._start + offset)

    def unpack(self, key: str) -> Iterator[bytes]:
        """Yield the elements, in chunks, of an array that is compressed or stored within the directory itself."""
        tensor = self.tensors[key]
        with self._readable(f": {key} is damaged"):
            dataset = self._directory[key]
            if not tensor.shape:
                yield dataset[()].tobytes()
                return
            rows = _rows(dataset)
            if _filters(dataset):
                self._check_unpacked(dataset, key)
            for start in range(0, len(dataset), rows):
                yield dataset[start : start + rows].tobytes()

    def _check_unpacked(self, dataset: h5py.Dataset, key: str) -> None:
        """Raise `CheckpointError` unless each chunk unpacks to as many bytes as it should.

        HDF5 unpacks gigabytes, and reads behind the end of what is too short.
        """
        filters, nominal = _filters(dataset), math.prod(dataset.chunks) * dataset.dtype.itemsize
        for chunk in _chunks(dataset):
            # A filter is skipped for a chunk that it would make larger.
            applied = [number for place, number in enumerate(filters) if not chunk.filter_mask >> place & 1]
            packed = bytearray(min(chunk.size, self.nbytes))
            self._pread(memoryview(packed), chunk.byte_offset)
            size = nominal + 4 * (CHECKSUM in applied)
            if applied[-1:] == [CHECKSUM]:
                del packed[-4:]
                size -= 4
            unpacked = {GZIP: _inflated, LZF: _lzf_size}
            packer = next((number for number in applied if number in unpacked), None)
            found = len(packed) if packer is None else unpacked[packer](packed, size + 1)
            if found != size:
                raise CheckpointError(
                    f"{self.path}: {key} is damaged (a chunk does not hold the stated number of bytes)"
                )

    @contextlib.contextmanager
    def _readable(self, fault: str) -> Iterator[None]:
        """Raise the errors of h5py as `CheckpointError`."""
        try:
            yield
        except CheckpointError:
            raise
        except FAILURES as error:
            reason = shown(" ".join(str(error).split())) or type(error).__name__
            raise CheckpointError(f"{self.path}{fault} ({reason}); fetch the file again") from None

    def _walk(self, group: h5py.Group, prefix: str) -> None:
        if prefix.count("/") > MAX_DEPTH:
            raise CheckpointError(f"{self.path}: groups are nested more than {MAX_DEPTH} deep")
        if len(group) > MAX_TENSORS or len(self._seen) > 2 * MAX_TENSORS:  # groups count, too
            raise CheckpointError(f"{self.path} holds more than {MAX_TENSORS} arrays; no BiT checkpoint has as many")
        for name in group:
            if not prefix and name == OPTIMIZER:
                self.optimizer = True
                continue
            key = f"{prefix}{name}"
            self._check_names([key])
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
        if plan.get_layout() == h5py.h5d.CHUNKED:
            self._check_chunks(key, item)
        if contiguous:
            self._spans.append((offset, offset + tensor.nbytes, key))
        else:
            self.packed.add(key)
        return tensor

    def _check_chunks(self, key: str, item: h5py.Dataset) -> None:
        """Raise `CheckpointError` if the chunks are incomplete, or cannot be unpacked in bounded memory."""
        filters = _filters(item)
        if len({GZIP, LZF} & {*filters}) > 1 or sorted(filters) != sorted({GZIP, SHUFFLE, CHECKSUM, LZF} & {*filters}):
            raise CheckpointError(f"{self.path}: {key} is packed by unknown or several filters; expected gzip, or none")
        itemsize = item.dtype.itemsize
        band = min(item.chunks[0], len(item)) * math.prod(item.shape[1:]) * itemsize
        chunk = math.prod(item.chunks) * itemsize
        if max(band, chunk) > MAX_BLOCK:
            raise CheckpointError(
                f"{self.path}: a row of chunks of {key} has {max(band, chunk)} bytes, more than {MAX_BLOCK}; "
                "store it in smaller chunks, or without"
            )
        if not _has_every_chunk(item, chunk):
            raise CheckpointError(f"{self.path}: some chunks of {key} are missing or too large")


def _dtype(item: h5py.Dataset) -> tuple[DType, bool] | None:
    if item.dtype.itemsize == 2 and _is_marked(item):
        return BFLOAT16, item.dtype.byteorder == ">"
    return dtypes.from_npy(item.dtype.str) if item.dtype.kind == "f" else None


def _is_marked(item: h5py.Dataset) -> bool:
    """Return True if a short attribute says that an array holds bfloat16."""
    name, mark = BFLOAT16_MARK
    if name not in item.attrs:
        return False
    stored = item.attrs.get_id(name)
    return stored.shape == () and stored.get_storage_size() <= MAX_MARK and bool(item.attrs[name] == mark)


def _filters(item: h5py.Dataset) -> list[int]:
    """Return the numbers of an array's filters, in the order in which they were applied."""
    plan = item.id.get_create_plist()
    return [int(plan.get_filter(position)[0]) for position in range(plan.get_nfilters())]


def _inflated(packed: bytearray, most: int) -> int:
    """Return the number of bytes in a stream of zlib, at most `most`. Raises `ValueError` if it is damaged."""
    try:
        return len(zlib.decompressobj().decompress(packed, most))
    except zlib.error as error:
        raise ValueError(error) from None


def _lzf_size(packed: bytearray, most: int) -> int:
    """Return the number of bytes that LZF unpacks, or one that is larger than `most` (LibLZF, `lzf_d.c`)."""
    position = size = 0
    while position < len(packed) and size <= most:
        control = packed[position]
        if control < 32:  # that many literal bytes, and one
            size, position = size + control + 1, position + control + 2
        else:  # a copy of two bytes more than the upper three bits say, or of nine and the next byte
            long = control >> 5 == 7
            size += (control >> 5) + 2 + (packed[position + 1] if long else 0)
            position += 3 if long else 2
    return size


def _rows(item: h5py.Dataset) -> int:
    """Return the rows that are read at once: whole chunks, so that each is unpacked once, of about `CHUNK` bytes."""
    step = int(item.chunks[0]) if item.chunks else 1
    row = math.prod(item.shape[1:]) * item.dtype.itemsize
    return step * max(1, CHUNK // max(1, int(step * row)))


def _chunks(item: h5py.Dataset) -> list[h5py.h5d.StoreInfo]:
    """Return where the chunks are, and stop after more than there can be, as in a directory that has a loop."""
    most = math.prod(-(-length // step) for length, step in zip(item.shape, item.chunks, strict=True))
    stored: list[h5py.h5d.StoreInfo] = []

    def add(chunk: h5py.h5d.StoreInfo) -> bool | None:
        stored.append(chunk)
        return True if len(stored) > most else None

    item.id.chunk_iter(add)
    return stored


def _has_every_chunk(item: h5py.Dataset, nbytes: int) -> bool:
    """Return True if all chunks of an array are stored; HDF5 would read missing ones as zeros.

    None may be larger than packing makes one of `nbytes` bytes, about 0.1 percent (zlib, `deflateBound`).
    """
    stored = _chunks(item)
    starts = [range(0, length, step) for length, step in zip(item.shape, item.chunks, strict=True)]
    return (
        len(stored) == math.prod(map(len, starts))
        and sorted(chunk.chunk_offset for chunk in stored) == list(itertools.product(*starts))
        and all(chunk.size <= nbytes + nbytes // 100 + 64 for chunk in stored)
    )


class _Part(io.RawIOBase):
    """A part of an open file as a file."""

    def __init__(self, handle: int, start: int, size: int) -> None:
        self._handle, self._start, self._nbytes, self._position = handle, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._nbytes}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, out: Any) -> int:
        view = memoryview(out).cast("B")[: max(self._nbytes - self._position, 0)]
        count = os.preadv(self._handle, [view], self._start + self._position) if view else 0
        self._position += count
        return count


def serve(handle: int, start: int, size: int) -> None:
    """Answer until the standard input ends, about the part of the file with this descriptor."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent receives it too, and ends this process
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # where the system sets a lower limit
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    path = Path(f"/dev/fd/{handle}")
    _limit(min(SECONDS + size / LISTED_IN_A_SECOND, MOST_SECONDS))
    try:
        with H5Reader(path, start, size) as file:
            entries = [
                Entry(key, tensor.shape, tensor.dtype.name, tensor.offset, tensor.big_endian, key in file.packed)
                for key, tensor in file.tensors.items()
            ]
            _answer([msgspec.json.encode(Directory(entries, file.optimizer))])
            for line in sys.stdin.buffer:
                key = msgspec.json.decode(line, type=str)
                _limit(SECONDS + file.tensors[key].nbytes / UNPACKED_IN_A_SECOND)
                _answer(file.unpack(key))
    except (CheckpointError, OSError) as error:
        _send(b"e", str(error).removeprefix(str(path)).encode(errors="replace"))


def _answer(blocks: Iterable[bytes]) -> None:
    for block in blocks:
        _send(b"d", block)
    _send(b".", b"")


def _send(kind: bytes, content: bytes) -> None:
    sys.stdout.buffer.write(kind + len(content).to_bytes(8, "little") + content)
    sys.stdout.buffer.flush()


def _limit(seconds: float) -> None:
    """End this process after so much more processor time: the system does, even if HDF5 never returns."""
    soonest = math.ceil(time.process_time() + seconds)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    limit = soonest if most == resource.RLIM_INFINITY else min(soonest, most)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, most))
