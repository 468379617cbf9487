"""Arrays that lie in a file: where they are, and how to read a part of one."""

from __future__ import annotations

import hashlib
import math
import os
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from convert.dtypes import DType
from convert.errors import CheckpointError

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
    fortran_order: bool = False
    big_endian: bool = False


@dataclass(frozen=True)
class Checksum:
    """The CRC-32 that the bytes from `start` to `end` must have."""

    key: str
    start: int
    end: int
    crc32: int


class TensorFile:
    """A file of named arrays, opened for reading. Nothing but its directory is held in memory.

    A subclass fills `tensors` and `checksums` from the container's directory, and raises
    `CheckpointError` for anything in it that cannot be right.
    """

    container: str

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, StoredTensor] = {}
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


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
