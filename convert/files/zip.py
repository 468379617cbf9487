"""Zip archives whose members are read in place, with names, sizes and offsets checked."""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from convert.errors import CheckpointError
from convert.files.base import CHUNK, MAX_DIRECTORY, Checksum, TensorFile, shown

MAX_INFLATION = 1032
"""Largest compression ratio of DEFLATE (RFC 1951: 258 bytes in two bits)."""
ENCRYPTED, PATCHED, UTF8 = 0x41, 0x20, 0x800
"""Bits of a member's flags (PKWARE, APPNOTE 4.4.4)."""
FAILURES = (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error)
"""Exceptions that `zipfile` raises for damaged archives."""


class ArchiveFile(TensorFile):
    """A zip archive opened for reading. Member names are never used as paths.

    Raises `CheckpointError` for an archive that is damaged or cannot be read safely: members that
    are encrypted, overlap, reach beyond the file, have another name in the directory than in their
    own header, or claim more bytes than they can hold.
    """

    def __init__(self, path: Path) -> None:
        self.members: dict[str, zipfile.ZipInfo] = {}
        self.offsets: dict[str, int] = {}
        """Offset of each member's bytes, deflated or not."""
        super().__init__(path)

    def _open_directory(self) -> None:
        try:
            self._archive = self.enter_context(open_archive(self._file))
        except FAILURES as error:
            raise CheckpointError(f"{self.path} is not a complete {self.container} file ({shown(error)})") from None
        self._check_names(self._archive.namelist())
        spans = []
        for info in self._archive.infolist():
            name = info.filename
            if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name):
                raise CheckpointError(f"{self.path}: the member name {name!r} is not the name of an array")
            if name in self.members:
                raise CheckpointError(f"{self.path} holds two members named {name}")
            offset = self._data_offset(info)
            self.members[name], self.offsets[name] = info, offset
            spans.append((info.header_offset, offset + info.compress_size, name))
            if info.compress_type == zipfile.ZIP_STORED:
                if info.compress_size != info.file_size:
                    raise CheckpointError(f"{self.path}: {name} is stored with two different sizes; it is damaged")
                self.checksums.append(Checksum(name, offset, offset + info.file_size, info.CRC))
            elif info.file_size > MAX_INFLATION * (info.compress_size + 1):
                raise CheckpointError(f"{self.path}: {name} claims {info.file_size} bytes, more than it can hold")
        self._check_disjoint(spans, self.nbytes)

    def content(self, name: str, count: int = CHUNK) -> Iterator[bytes]:
        """Yield the bytes of a member, inflated, `count` at once; `zipfile` checks the CRC-32."""
        try:
            with self._archive.open(self.members[name]) as member:
                while chunk := member.read(count):
                    yield chunk
        except (*FAILURES, zlib.error, EOFError) as error:
            raise CheckpointError(f"{self.path}: {name} is damaged ({shown(error)}); fetch the file again") from None

    def _data_offset(self, info: zipfile.ZipInfo) -> int:
        """Return the offset of a member's bytes: after the local header, whose length the directory does not state."""
        if info.flag_bits & (ENCRYPTED | PATCHED):
            raise CheckpointError(f"{self.path}: {info.filename} is encrypted or a patch; pack the arrays plainly")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CheckpointError(
                f"{self.path}: {info.filename} is compressed by method {info.compress_type}; "
                "only stored and deflated members are read"
            )
        header = bytearray(30)
        if not 0 <= info.header_offset <= self.nbytes - len(header):
            raise CheckpointError(f"{self.path}: {info.filename} is outside the file; it is truncated")
        self._pread(memoryview(header), info.header_offset)
        if header[:4] != b"PK\x03\x04":
            raise CheckpointError(f"{self.path}: {info.filename} has no local header where the directory says")
        name_length, extra_length = struct.unpack_from("<HH", header, 26)
        name = bytearray(min(name_length, self.nbytes - info.header_offset - len(header)))
        self._pread(memoryview(name), info.header_offset + len(header))
        if bytes(name) != info.orig_filename.encode("utf-8" if info.flag_bits & UTF8 else "cp437"):
            raise CheckpointError(f"{self.path}: {info.filename} has another name in the member's own header")
        return int(info.header_offset + 30 + name_length + extra_length)


class _Bounded(io.RawIOBase):
    """A file of which no more than `MAX_DIRECTORY` bytes are read at once, as `zipfile` reads a whole directory."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"a directory of more than {MAX_DIRECTORY} bytes")
        return self._file.read(size if size >= 0 else MAX_DIRECTORY)


def open_archive(file: io.FileIO) -> zipfile.ZipFile:
    """Open an archive in an open file, whose directory is bounded. Raises one of `FAILURES` for a damaged archive."""
    return zipfile.ZipFile(_Bounded(file))
