"""Named arrays in a file: where they are, how to read a part of one, how to write them."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import stat
import tempfile
import threading
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from convert.errors import CheckpointError
from convert.network.dtypes import DTYPES, DType

IN_MEMORY = 32 << 20
"""Largest packed array, in bytes, that is unpacked in memory; a larger one goes to a file in `TMPDIR`."""
CHUNK = 1 << 20
"""Bytes read and hashed at once: small enough that copied data is still in the second-level cache."""
MAX_TENSORS = 10_000
"""Most arrays in a checkpoint: the deepest BiT has 459 parameters, and three times as many with an optimizer."""
MAX_NAME = 250
"""Longest name of an array in characters: several times the longest of any layout, Keras' paths included."""
MAX_AXES, MAX_LENGTH = 32, 2**63 - 1
"""Most axes of an array, as in HDF5, and the longest axis: a signed 64-bit number, as in every container."""
MAX_DIRECTORY = 8 << 20
"""Largest directory of a file in bytes (a header, an index, a pickle): `MAX_TENSORS` entries of 800 bytes each."""


@dataclass(frozen=True)
class Tensor:
    """Name, shape and element type of an array, wherever it is stored."""

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
    """An array in a file, starting at the byte `offset`."""

    offset: int
    order: tuple[int, ...] | None = None
    """Axes in storage order, slowest first; None if they are stored in their own order."""
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
    """Size and SHA-256 of a file."""

    bytes: int
    sha256: str


class TensorFile(contextlib.ExitStack[None]):
    """A file of named arrays, opened for reading. Only the directory is held in memory.

    A subclass overrides `_open_directory`, which fills `tensors`, `packed` and `checksums`, enters what
    must be closed (this is an `ExitStack`), and raises `CheckpointError` for anything that cannot be right.
    """

    container: str

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.tensors: dict[str, StoredTensor] = {}
        self.others: dict[str, str] = {}
        """Arrays that cannot be weights, by name, with the reason."""
        self.notes: list[str] = []
        """Sentences that name the parts of the file that are ignored."""
        self.faults: list[str] = []
        """Sentences that name what is missing, if a file that is not complete may be opened."""
        self.stated: Mapping[str, Any] = {}
        """A configuration in the file itself, in the terms of `config.json`."""
        self.labels: list[str] = []
        """Names of the classes, if the file holds them."""
        self.checksums: list[Checksum] = []
        self.packed: set[str] = set()
        """Arrays that must be unpacked to be read; their `offset` counts from the start of the unpacked bytes."""
        self._spool: tuple[str, tempfile.SpooledTemporaryFile[bytes]] | None = None
        self._file = self.enter_context(open_regular(path))
        self._identity = self._size_and_time()
        self.nbytes = self._identity[0]
        try:
            self._open_directory()
            self._check_names([*self.tensors, *self.others])
        except BaseException:
            self.close()
            raise

    def _open_directory(self) -> None:
        pass

    def read(self, tensor: StoredTensor, start: int, out: NDArray[np.generic]) -> None:
        """Fill `out` with the elements from index `start` on, in storage order, as little-endian bits.

        Raises `CheckpointError` if the file ends too early.
        """
        view, offset = out.view(np.uint8).data, tensor.offset + start * tensor.dtype.itemsize
        if tensor.key not in self.packed:
            self._pread(view, offset)
        else:
            file = self._unpacked(tensor.key)
            file.seek(offset)
            if file.readinto(view) != len(view):
                raise CheckpointError(f"{self.path}: {tensor.key} ends too early; the file is damaged")
        if tensor.big_endian:
            out.byteswap(inplace=True)

    def unpack(self, key: str) -> Iterator[bytes]:
        """Yield the bytes of a packed array. Raises `CheckpointError` if they are damaged."""
        raise KeyError(key)

    def digests(self, stop: threading.Event | None = None) -> dict[str, File]:
        """Return the size and SHA-256 of each file of this checkpoint. Reads and checks every byte as `sha256` does."""
        return {self.path.name: File(self.nbytes, self.sha256(stop))}

    def sha256(self, stop: threading.Event | None = None) -> str:
        """Read the file once from end to end; return the SHA-256 and check every checksum of the container.

        Raises `CheckpointError` for a wrong checksum, or if the file changed since it was opened.
        Returns early, with an empty string, when `stop` is set.
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
                        f"{self.path}: {checksum.key} is damaged (CRC-32 {crc:08x}, "
                        f"expected {checksum.crc32:08x}); fetch the file again"
                    )
                crc, current = 0, current + 1
        if self._size_and_time() != self._identity:
            raise CheckpointError(f"{self.path} changed while it was read; run the command again")
        return digest.hexdigest()

    def _size_and_time(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def _unpacked(self, key: str) -> tempfile.SpooledTemporaryFile[bytes]:
        """Return the unpacked bytes of an array, which are kept until another array is read."""
        if self._spool is None or self._spool[0] != key:
            if self._spool is not None:
                self._spool[1].close()
            file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 (closed by `close`)
            self._spool = key, self.enter_context(file)
            file.writelines(self.unpack(key))
        return self._spool[1]

    def _pread(self, out: memoryview, offset: int) -> None:
        done = 0
        while done < len(out):
            count = os.preadv(self._file.fileno(), [out[done:]], offset + done)
            if count == 0:
                raise CheckpointError(f"{self.path} ends at byte {offset + done}, too early; it is truncated")
            done += count

    def _check_names(self, names: Sequence[str]) -> None:
        """Raise `CheckpointError` for more names than any checkpoint has, and for one that is too long or unprintable.

        Readers call it as soon as they know the names, before these are looked at or shown.
        """
        if len(names) > MAX_TENSORS:
            raise CheckpointError(f"{self.path} holds more than {MAX_TENSORS} arrays; no BiT checkpoint has as many")
        for name in names:
            if len(name) > MAX_NAME or not name.isprintable():
                raise CheckpointError(
                    f"{self.path}: {shown(name)} is not the name of an array "
                    f"(expected at most {MAX_NAME} printable characters)"
                )

    def _check_disjoint(self, spans: Sequence[tuple[int, int, str]], end: int) -> None:
        """Raise `CheckpointError` if any `(start, end, name)` overlaps another or reaches beyond `end`."""
        position, last = 0, ""
        for start, stop, name in sorted(spans):
            if start < position and stop > start:
                raise CheckpointError(f"{self.path}: {last} and {name} overlap; the file is damaged")
            if stop > end:
                raise CheckpointError(f"{self.path}: {name} reaches beyond the end of the file; it is truncated")
            if stop > start:
                position, last = stop, name

    def _check_size(self, tensor: Tensor, nbytes: int) -> None:
        """Raise `CheckpointError` unless `nbytes` bytes of data fit the tensor's shape."""
        if len(tensor.shape) > MAX_AXES or any(abs(length) > MAX_LENGTH for length in tensor.shape):
            raise CheckpointError(
                f"{self.path}: {tensor.key} has more axes than {MAX_AXES}, or one beyond {MAX_LENGTH}"
            )
        if min(tensor.shape, default=1) < 0 or tensor.nbytes != nbytes:
            shape = f"shape {list(tensor.shape)} of {tensor.dtype.name}"
            raise CheckpointError(f"{self.path}: {tensor.key} has {nbytes} bytes of data, which does not fit {shape}")

    def _wrong_type(self, key: str, found: object) -> CheckpointError:
        expected = ", ".join(dtype.name for dtype in DTYPES)
        return CheckpointError(f"{self.path}: {key} holds elements of type {shown(found)}; expected one of {expected}")


@dataclass(frozen=True)
class Metadata:
    """Contents of a new file beside the tensors; a container ignores what it has no place for."""

    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """HDF5: attributes by the path of their group, which is `/` for the root."""
    graph: Callable[[], Any] | None = None
    """ONNX: returns the `onnx.ModelProto` to add the weights to; `.keras`: the other members of the archive by name.
    Called once, by the writers of these two only."""


NO_METADATA = Metadata()


class Writer(contextlib.ExitStack[None]):
    """A new file of named arrays. Write each tensor once, in the order of `ordered`, then call `finish`.

    A file that was closed without `finish` is incomplete.
    """

    mode, buffering = "xb", 0
    """Arguments of `open` for the new file."""
    written = 0
    """Bytes from the start of the file that will not change again."""

    def __init__(self, path: Path, tensors: Sequence[Tensor], metadata: Metadata = NO_METADATA) -> None:
        super().__init__()
        file = open(path, self.mode, self.buffering)  # noqa: SIM115 (closed by `close`)
        self._file: IO[bytes] = self.enter_context(file)

    @staticmethod
    def ordered(tensors: Iterable[Tensor]) -> list[Tensor]:
        """Return the tensors in the order in which this container stores them."""
        return list(tensors)

    @abstractmethod
    def write(self, tensor: Tensor, blocks: Iterable[NDArray[np.generic]]) -> None:
        """Write one tensor, given as flat arrays of element bits in C order."""

    def finish(self) -> None:
        """Complete the file and hand it to the operating system."""
        self._file.flush()
        self.written = self._file.tell()

    def _append(self, data: memoryview) -> None:
        while data:
            data = data[self._file.write(data) :]


def combined_sha256(files: Mapping[str, File]) -> str:
    """Return the SHA-256 of a single file; of several, that of the text that `sha256sum` prints about them."""
    if len(files) == 1:
        return next(iter(files.values())).sha256
    lines = "".join(f"{file.sha256}  {name}\n" for name, file in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits. Raises `CheckpointError` unless it is a regular file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_regular(path: Path) -> FileIO:
    """Open a file for reading, unbuffered. Raises `CheckpointError` for a pipe, a device or a folder.

    Does not wait for the writer of a pipe, as `open` would.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CheckpointError(f"{path} is not a regular file")
    return FileIO(handle)


def shown(value: object, most: int = 100) -> str:
    """Return text from a file in one line of at most `most` characters; anything but printable text is escaped."""
    text = str(value)
    start = text[: most + 1]
    escaped = start if start.isprintable() else repr(start)[1:-1]
    return escaped if len(escaped) <= most else escaped[: most - 1] + "…"
