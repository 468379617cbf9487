"""Read files from a folder in which hf_xet stores uploads for the address `local://FOLDER`."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import hf_xet

ROW = 48
"""Bytes of a row in a shard (github.com/huggingface/xet-core, `mdb_shard`)."""


def restore(store: Path, sha256: str, size: int, path: Path) -> bool:
    """Write the file with that hash from the store to `path`; return whether the store has it."""
    for shard in store.glob("xet/xorbs/shards/*.mdb"):
        for name, found in _files(shard.read_bytes()):
            if found == sha256:
                with hf_xet.XetSession().new_file_download_group(endpoint=f"local://{store}") as group:
                    group.start_download_file(hf_xet.XetFileInfo(name, size), str(path))
                return True
    return False


def _files(shard: bytes) -> Iterator[tuple[str, str]]:
    """Yield Xet's hash and the SHA-256 of every file in a shard."""
    at = ROW
    while shard[at : at + 32] != b"\xff" * 32:
        flags, rows = struct.unpack_from("<II", shard, at + 32)
        after = at + ROW * (1 + rows * (1 + (flags >> 31)))
        if flags >> 30 & 1:
            yield _hash(shard[at : at + 32]), _hash(shard[after : after + 32])
        at = after + ROW * (flags >> 30 & 1)


def _hash(words: bytes) -> str:
    """Return the digits of a hash, which is stored as four 64-bit numbers, lowest byte first."""
    return struct.pack(">4Q", *struct.unpack("<4Q", words)).hex()
