"""Arrays that lie in a file: where they are, and how to read a part of one."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from convert.errors import CheckpointError
from convert.network.dtypes import DType

IN_MEMORY = 32 << 20
"""An array that is packed is unpacked in memory up to this size, a larger one to a file in `TMPDIR`."""
CHUNK = 1 << 20
"""Bytes read at once to be hashed: what was copied is then still in the second-level cache."""


@dataclass(frozen=True)
class Tensor:
    """What an array is, wherever it is stored."""

    key: str
    shape: tuple[int, ...]
    dtype: DType

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor(Tensor):
    """An array in a file, from the byte `offset` on."""

    offset: int
    order: tuple[int, ...] | None = None
    """Its axes as they lie in the file, slowest first; None: in their own order."""
    big_endian: bool = False

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return self.shape if self.order is None else tuple(self.shape[axis] for axis in self.order)


@dataclass(frozen=True)
class Checksum:
    """The CRC-32 that the bytes from `start` to `end` must have."""

    key: str
    start: int
    end: int
    crc32: int


@dataclass(frozen=True)
class File:
    bytes: int
    sha256: str


class TensorFile:
    """A file of named arrays, opened for reading. Nothing but its directory is held in memory.

    A subclass fills `tensors` and `checksums` from the container's directory, and raises
    `CheckpointError` for anything in it that cannot be right.
    """

    container: str

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, StoredTensor] = {}
        self.others: dict[str, str] = {}
        """Arrays that cannot be weights, by name, with the reason in words."""
        self.notes: list[str] = []
        """What of the file was left aside, in words."""
        self.labels: list[str] = []
        """The names of the classes, if the file holds them."""
        self.checksums: list[Checksum] = []
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed by `close`)
        status = os.fstat(self._file.fileno())
        self.nbytes = status.st_size
        self._identity = (status.st_size, status.st_mtime_ns)

    def read(self, tensor: StoredTensor, start: int, out: NDArray[np.generic]) -> None:
        """Fill `out` with the elements from index `start` on, in stored order, as little-endian bits.

        Raises `CheckpointError` if the file ends before.
        """
        self._pread(out.view(np.uint8).data, tensor.offset + start * tensor.dtype.itemsize)
        if tensor.big_endian:
            out.byteswap(inplace=True)

    def digests(self, stop: threading.Event | None = None) -> dict[str, File]:
        """Read every byte once and hold it to the checksums of its container; each file's size and SHA-256.

        Raises `CheckpointError` as `sha256` does.
        """
        return {self.path.name: File(self.nbytes, self.sha256(stop))}

    def sha256(self, stop: threading.Event | None = None) -> str:
        """Read the file once from end to end: its SHA-256, and every checksum of its container.

        Raises `CheckpointError` for a checksum that does not hold, or if the file changed since it
        was opened. Returns early, with an empty string, when `stop` is set.
        """
        digest, buffer = hashlib.sha256(), bytearray(CHUNK)
        pending = sorted(self.checksums, key=lambda checksum: checksum.start)
        crc = current = 0
        for offset in range(0, self.nbytes, CHUNK):
            if stop is not None and stop.is_set():
                return ""
            chunk = memoryview(buffer)[: min(CHUNK, self.nbytes - offset)]
            self._pread(chunk, offset)
            digest.update(chunk)
            while current < len(pending) and pending[current].start < offset + len(chunk):
                checksum = pending[current]
                start, end = max(checksum.start - offset, 0), min(checksum.end - offset, len(chunk))
                crc = zlib.crc32(chunk[start:end], crc)
                if checksum.end > offset + len(chunk):
                    break
                if crc != checksum.crc32:
                    raise CheckpointError(
                        f"{self.path}: {checksum.key} is damaged (its CRC-32 is {crc:08x}, "
                        f"the file's directory says {checksum.crc32:08x}); fetch the file again"
                    )
                crc, current = 0, current + 1
        status = os.fstat(self._file.fileno())
        if (status.st_size, status.st_mtime_ns) != self._identity:
            raise CheckpointError(f"{self.path} changed while it was read")
        return digest.hexdigest()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pread(self, out: memoryview, offset: int) -> None:
        done = 0
        while done < len(out):
            count = os.preadv(self._file.fileno(), [out[done:]], offset + done)
            if count == 0:
                raise CheckpointError(f"{self.path} ends at byte {offset + done}, before its directory says")
            done += count

    def _check_disjoint(self, spans: Sequence[tuple[int, int, str]], end: int) -> None:
        """Raise `CheckpointError` unless the `(start, end, name)` lie apart from each other and within the file."""
        position, last = 0, ""
        for start, stop, name in sorted(spans):
            if start < position and stop > start:
                raise CheckpointError(f"{self.path}: {last} and {name} overlap in the file")
            if stop > end:
                raise CheckpointError(f"{self.path}: {name} reaches beyond the end of the file; it is truncated")
            if stop > start:
                position, last = stop, name


class PackedTensorFile(TensorFile):
    """A file some of whose arrays must be unpacked to be read; one at a time is kept."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.packed: set[str] = set()
        """The names of those arrays; their `offset` is that in what `unpack` gives."""
        self._unpacked: tuple[str, IO[bytes]] | None = None

    def unpack(self, key: str) -> Iterator[bytes]:
        """The bytes of a packed array. Raises `CheckpointError` if they are damaged."""
        raise KeyError(key)

    def read(self, tensor: StoredTensor, start: int, out: NDArray[np.generic]) -> None:
        if tensor.key not in self.packed:
            super().read(tensor, start, out)
            return
        if self._unpacked is None or self._unpacked[0] != tensor.key:
            self._drop()
            self._unpacked = (tensor.key, self._spool(tensor.key))
        file = self._unpacked[1]
        file.seek(tensor.offset + start * tensor.dtype.itemsize)
        view = out.view(np.uint8).data
        if file.readinto(view) != len(view):  # type: ignore[attr-defined]
            raise CheckpointError(f"{self.path}: {tensor.key} ends before its header says")
        if tensor.big_endian:
            out.byteswap(inplace=True)

    def close(self) -> None:
        self._drop()
        super().close()

    def _spool(self, key: str) -> IO[bytes]:
        file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 (kept for reading)
        try:
            file.writelines(self.unpack(key))
        except BaseException:
            file.close()
            raise
        return file

    def _drop(self) -> None:
        if self._unpacked is not None:
            self._unpacked[1].close()
            self._unpacked = None


def combined_sha256(files: Mapping[str, File]) -> str:
    """That of the file, if it is one; of several, that of what the command `sha256sum` prints of them."""
    if len(files) == 1:
        return next(iter(files.values())).sha256
    lines = "".join(f"{file.sha256}  {name}\n" for name, file in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
