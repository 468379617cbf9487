"""NumPy's `.npz`: a zip archive of `.npy` members, read from their offsets, written member by member."""

from __future__ import annotations

import ast
import re
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from convert import dtypes
from convert.errors import CheckpointError
from convert.files.tensors import CHUNK, Checksum, StoredTensor, Tensor, TensorFile

MAX_HEADER = 10_000
MAX_INFLATION = 1032
"""DEFLATE cannot shrink more (RFC 1951: 258 bytes in two bits)."""
IN_MEMORY = 32 << 20
"""A deflated member up to this size is inflated in memory, a larger one to a file in `TMPDIR`."""
ENCRYPTED, PATCHED, UTF8 = 0x41, 0x20, 0x800
"""Bits of a member's flags (PKWARE, APPNOTE 4.4.4)."""


class NpzFile(TensorFile):
    """A `.npz` opened for reading. Stored members are read in place, deflated ones streamed through.

    Raises `CheckpointError` for anything that is not an archive of plain arrays; objects are never
    unpickled, and member names are never used as paths.
    """

    container = "npz"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._deflated: dict[str, zipfile.ZipInfo] = {}
        self._inflated: tuple[str, IO[bytes]] | None = None
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            self.close()
            raise CheckpointError(f"{path} is not a complete npz file ({error})") from None
        try:
            self._read_directory()
        except BaseException:
            self.close()
            raise

    def read(self, tensor: StoredTensor, start: int, out: NDArray[np.generic]) -> None:
        info = self._deflated.get(tensor.key)
        if info is None:
            super().read(tensor, start, out)
            return
        file = self._inflate(tensor.key, info)
        file.seek(tensor.offset + start * tensor.dtype.itemsize)
        view = out.view(np.uint8).data
        if file.readinto(view) != len(view):  # type: ignore[attr-defined]
            raise CheckpointError(f"{self.path}: {info.filename} ends before its header says")
        if tensor.big_endian:
            out.byteswap(inplace=True)

    def close(self) -> None:
        if self._inflated is not None:
            self._inflated[1].close()
        if hasattr(self, "_archive"):
            self._archive.close()
        super().close()

    def _read_directory(self) -> None:
        spans = []
        for info in self._archive.infolist():
            name = info.filename
            if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or "\0" in name:
                raise CheckpointError(f"{self.path}: the member name {name!r} is not that of an array")
            key = name.removesuffix(".npy")
            if name.endswith("/data.pkl"):
                raise CheckpointError(f"{self.path} is a PyTorch pickle, which is not read; save it as safetensors")
            if key == name:
                raise CheckpointError(f"{self.path}: {name} is not an .npy array")
            if key in self.tensors:
                raise CheckpointError(f"{self.path} holds two members named {name}")
            data = self._data_offset(info)
            spans.append((info.header_offset, data + info.compress_size, name))
            if info.compress_type == zipfile.ZIP_STORED:
                if info.compress_size != info.file_size:
                    raise CheckpointError(f"{self.path}: {name} is stored, but with two different sizes")
                self.tensors[key] = self._header(key, info, data)
                self.checksums.append(Checksum(key, data, data + info.file_size, info.CRC))
            else:
                if info.file_size > MAX_INFLATION * (info.compress_size + 1):
                    raise CheckpointError(f"{self.path}: {name} claims {info.file_size} bytes, more than it can hold")
                self._deflated[key] = info
                self.tensors[key] = self._header(key, info, 0)
        self._check_disjoint(spans, self.nbytes)

    def _data_offset(self, info: zipfile.ZipInfo) -> int:
        """Where a member's bytes begin: behind its local header, whose length the directory does not tell."""
        if info.flag_bits & (ENCRYPTED | PATCHED):
            raise CheckpointError(f"{self.path}: {info.filename} is encrypted or a patch")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CheckpointError(
                f"{self.path}: {info.filename} is compressed by method {info.compress_type}; "
                "only stored and deflated members are read"
            )
        header = bytearray(30)
        if not 0 <= info.header_offset <= self.nbytes - len(header):
            raise CheckpointError(f"{self.path}: {info.filename} lies outside the file; it is truncated")
        self._pread(memoryview(header), info.header_offset)
        if header[:4] != b"PK\x03\x04":
            raise CheckpointError(f"{self.path}: {info.filename} has no local header where the directory says")
        name_length, extra_length = struct.unpack_from("<HH", header, 26)
        name = bytearray(min(name_length, self.nbytes - info.header_offset - len(header)))
        self._pread(memoryview(name), info.header_offset + len(header))
        if bytes(name) != info.orig_filename.encode("utf-8" if info.flag_bits & UTF8 else "cp437"):
            raise CheckpointError(f"{self.path}: {info.filename} is called otherwise where it lies in the file")
        return int(info.header_offset + 30 + name_length + extra_length)

    def _header(self, key: str, info: zipfile.ZipInfo, member: int) -> StoredTensor:
        """Parse a member's `.npy` header; `member` is where its bytes begin in what `read` reads."""
        if info.compress_type == zipfile.ZIP_STORED:
            first = bytearray(min(MAX_HEADER, info.file_size, max(0, self.nbytes - member)))
            self._pread(memoryview(first), member)
        else:
            first = bytearray(self._stream(info, MAX_HEADER))
        try:
            shape, fortran_order, descr, header_bytes = parse_header(bytes(first))
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            raise CheckpointError(f"{self.path}: {info.filename} is no plain .npy array") from None
        known = dtypes.from_npy(descr)
        if known is None:
            kind = "object, which are never unpickled" if descr[1:] == "O" else descr
            raise CheckpointError(
                f"{self.path}: {info.filename} holds elements of type {kind}; weights are "
                + ", ".join(dtype.name for dtype in dtypes.DTYPES)
            )
        dtype, big_endian = known
        tensor = StoredTensor(key, shape, dtype, member + header_bytes, fortran_order and len(shape) > 1, big_endian)
        if min(shape, default=1) < 0 or header_bytes + tensor.nbytes != info.file_size:
            raise CheckpointError(
                f"{self.path}: {info.filename} says it has the shape {list(shape)} of {dtype.name}, "
                f"but the member has {info.file_size - header_bytes} bytes of data"
            )
        return tensor

    def _stream(self, info: zipfile.ZipInfo, count: int) -> bytes:
        try:
            with self._archive.open(info) as member:
                return member.read(count)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise CheckpointError(f"{self.path}: {info.filename} is damaged ({error}); fetch the file again") from None

    def _inflate(self, key: str, info: zipfile.ZipInfo) -> IO[bytes]:
        """The member's bytes as a file, its CRC-32 checked by `zipfile`; one member is kept at a time."""
        if self._inflated is not None:
            if self._inflated[0] == key:
                return self._inflated[1]
            self._inflated[1].close()
            self._inflated = None
        file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 (kept for reading)
        try:
            with self._archive.open(info) as member:
                while chunk := member.read(CHUNK):
                    file.write(chunk)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            file.close()
            raise CheckpointError(f"{self.path}: {key} is damaged ({error}); fetch the file again") from None
        self._inflated = (key, file)
        return file


def parse_header(start: bytes) -> tuple[tuple[int, ...], bool, str, int]:
    """Shape, Fortran order, `descr` and the length of the `.npy` header that `start` begins with.

    By the format's description (numpy.lib.format). Raises `ValueError`, or what `ast.literal_eval`
    raises, for anything else than a plain header.
    """
    if start[:6] != b"\x93NUMPY" or start[6:7] not in (b"\x01", b"\x02", b"\x03"):
        raise ValueError("it does not begin as one")
    prefix = 10 if start[6] == 1 else 12
    end = prefix + int.from_bytes(start[8:prefix], "little")
    if end > len(start):
        raise ValueError("its header is cut short or too long")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that Python has to say of what is no literal
        header = ast.literal_eval(start[prefix:end].decode("latin1"))
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise ValueError("its header has other entries than descr, fortran_order and shape")
    shape, fortran_order, descr = header["shape"], header["fortran_order"], header["descr"]
    whole = isinstance(shape, tuple) and all(type(length) is int for length in shape)
    if not whole or type(fortran_order) is not bool or not isinstance(descr, str):
        raise ValueError("an entry of its header is of the wrong type")
    return shape, fortran_order, descr, end


class NpzWriter:
    """Writes a `.npz` of stored members, in the given order, as `numpy.savez` does."""

    def __init__(self, path: Path, tensors: Sequence[Tensor]) -> None:
        self._file = open(path, "xb+")  # noqa: SIM115 (closed by `close`)
        self._archive = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)
        self.written = 0
        """The bytes from the start of the file that will not change any more."""

    def write(self, tensor: Tensor, blocks: Iterable[NDArray[np.generic]]) -> None:
        """Append one array, given as its elements' bits in C order."""
        with self._archive.open(zipfile.ZipInfo(tensor.key + ".npy"), "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(
                member, {"descr": tensor.dtype.npy, "fortran_order": False, "shape": tensor.shape}
            )
            for block in blocks:
                member.write(block.view(np.uint8).data)
        self._file.flush()
        self.written = self._file.tell()

    def finish(self) -> None:
        """Write what closes the file, and hand it to the operating system."""
        self._archive.close()
        self._file.flush()
        self.written = self._file.tell()

    def close(self) -> None:
        self._archive.fp = None  # an archive that is not finished stays without a directory
        self._file.close()
