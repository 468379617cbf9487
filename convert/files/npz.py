"""NumPy's `.npz`: a zip archive of `.npy` members, read in place, written member by member."""

from __future__ import annotations

import ast
import io
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.errors import CheckpointError
from convert.files.base import NO_METADATA, Metadata, StoredTensor, Tensor, Writer, shown
from convert.files.zip import ArchiveFile
from convert.network import dtypes

MAX_HEADER = 10_000
INTEGERS = ("i", "u", "b")
"""Kinds of elements that cannot be weights but are harmless, such as step counters of a training run."""


class NpzFile(ArchiveFile):
    """A `.npz` opened for reading. Stored members are read in place, deflated ones are unpacked.

    Raises `CheckpointError` for anything but an archive of plain arrays; objects are never unpickled.
    """

    container = "npz"

    def _open_directory(self) -> None:
        super()._open_directory()
        for name, info in self.members.items():
            if not name.endswith(".npy"):
                raise CheckpointError(f"{self.path}: {name} is not an .npy array")
            self._read_header(name.removesuffix(".npy"), info)

    def unpack(self, key: str) -> Iterator[bytes]:
        return self.content(f"{key}.npy")

    def _read_header(self, key: str, info: zipfile.ZipInfo) -> None:
        start = next(self.content(info.filename, MAX_HEADER), b"")
        try:
            shape, fortran_order, descr, length = parse_header(start)
        except (ValueError, TypeError, SyntaxError, AttributeError, LookupError, RecursionError, MemoryError):
            raise CheckpointError(f"{self.path}: {info.filename} is not a plain .npy array") from None
        known = dtypes.from_npy(descr)
        if known is None:
            if descr[1:2] not in INTEGERS:
                raise self._wrong_type(key, "object (never unpickled)" if descr[1:] == "O" else descr)
            self.others[key] = f"holds elements of type {shown(descr)}"
            return
        if info.compress_type == zipfile.ZIP_STORED:
            offset = self.offsets[info.filename] + length
        else:
            self.packed.add(key)
            offset = length
        order = tuple(reversed(range(len(shape)))) if fortran_order and len(shape) > 1 else None
        self.tensors[key] = StoredTensor(key, shape, known[0], offset, order, big_endian=known[1])
        self._check_size(self.tensors[key], info.file_size - length)


def parse_header(start: bytes) -> tuple[tuple[int, ...], bool, str, int]:
    """Return shape, Fortran order, `descr` and length of the `.npy` header that `start` begins with.

    Follows the description of the format (numpy.lib.format); NumPy's own reader loses the byte order
    of bfloat16. Raises `ValueError`, or whatever `ast.literal_eval` raises, for an invalid header.
    """
    prefix = {1: 10, 2: 12, 3: 12}.get(start[6] if start[:6] == b"\x93NUMPY" else 0, 0)
    end = prefix + int.from_bytes(start[8:prefix], "little")
    if not prefix or end > len(start):
        raise ValueError("no header of a known version, or an incomplete one")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns about some invalid literals
        header = ast.literal_eval(start[prefix:end].decode("latin1"))
    shape, fortran_order, descr = (header.pop(name) for name in ("shape", "fortran_order", "descr"))
    whole = isinstance(shape, tuple) and all(type(length) is int for length in shape)
    if header or not whole or type(fortran_order) is not bool or not isinstance(descr, str):
        raise ValueError("an entry of the header is unknown or of the wrong type")
    return shape, fortran_order, descr, end


class NpzWriter(Writer):
    """A new `.npz` of stored members, sorted by name, as `numpy.savez` writes them."""

    buffering = io.DEFAULT_BUFFER_SIZE

    def __init__(self, path: Path, tensors: Sequence[Tensor], metadata: Metadata = NO_METADATA) -> None:
        super().__init__(path, tensors, metadata)
        self._archive = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)
        self.callback(setattr, self._archive, "fp", None)  # leaves an unfinished archive without a directory

    @staticmethod
    def ordered(tensors: Iterable[Tensor]) -> list[Tensor]:
        return sorted(tensors, key=lambda tensor: tensor.key)

    def write(self, tensor: Tensor, blocks: Iterable[NDArray[np.generic]]) -> None:
        with self._archive.open(zipfile.ZipInfo(tensor.key + ".npy"), "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(
                member, {"descr": tensor.dtype.npy, "fortran_order": False, "shape": tensor.shape}
            )
            for block in blocks:
                member.write(block.view(np.uint8).data)
        super().finish()

    def finish(self) -> None:
        self._archive.close()
        super().finish()
