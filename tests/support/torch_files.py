"""Small files of `torch.save`, whole and changed."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

ARRAY = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)


def zipped(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def repacked(path: Path, method: int = zipfile.ZIP_STORED, **changed: bytes | None) -> Path:
    """The archive as another program would pack it again, with other members or, for None, without them."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            written = changed.get(name.rpartition("/")[2].strip("."), content)
            if written is not None:
                archive.writestr(name, written)
    return path
