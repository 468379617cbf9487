"""NumPy's `.npz`: a zip archive of `.npy` members, read from their offsets, written member by member."""

from __future__ import annotations

import ast
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.errors import CheckpointError
from convert.files.base import StoredTensor, Tensor
from convert.files.zip import ArchiveFile
from convert.network import dtypes

MAX_HEADER = 10_000
INTEGERS = ("i", "u", "b")
"""Kinds of elements that are no weights, but harmless: counters of a training, say."""


class NpzFile(ArchiveFile):
    """A `.npz` opened for reading. Stored members are read in place, deflated ones unpacked.

    Raises `CheckpointError` for anything that is not an archive of plain arrays; objects are never
    unpickled.
    """

    container = "npz"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            for name, info in self.members.items():
                key = name.removesuffix(".npy")
                if key == name:
                    raise CheckpointError(f"{self.path}: {name} is not an .npy array")
                if info.compress_type != zipfile.ZIP_STORED:
                    self.packed.add(key)
                self._read_header(key, info)
        except BaseException:
            self.close()
            raise

    def unpack(self, key: str) -> Iterator[bytes]:
        return self.content(f"{key}.npy")

    def _read_header(self, key: str, info: zipfile.ZipInfo) -> None:
        """Parse a member's `.npy` header."""
        first = self.start_of(info.filename, min(MAX_HEADER, info.file_size))
        member = 0 if key in self.packed else self.offsets[info.filename]
        try:
            shape, fortran_order, descr, header_bytes = parse_header(first)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            raise CheckpointError(f"{self.path}: {info.filename} is no plain .npy array") from None
        known = dtypes.from_npy(descr)
        if known is None and descr[1:2] in INTEGERS:
            self.others[key] = f"holds elements of type {descr}"
            return
        if known is None:
            kind = "object, which are never unpickled" if descr[1:] == "O" else descr
            raise CheckpointError(
                f"{self.path}: {info.filename} holds elements of type {kind}; weights are "
                + ", ".join(dtype.name for dtype in dtypes.DTYPES)
            )
        dtype, big_endian = known
        order = tuple(reversed(range(len(shape)))) if fortran_order and len(shape) > 1 else None
        tensor = StoredTensor(key, shape, dtype, member + header_bytes, order, big_endian)
        if min(shape, default=1) < 0 or header_bytes + tensor.nbytes != info.file_size:
            raise CheckpointError(
                f"{self.path}: {info.filename} says it has the shape {list(shape)} of {dtype.name}, "
                f"but the member has {info.file_size - header_bytes} bytes of data"
            )
        self.tensors[key] = tensor


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
