"""`conversion.json`: what a folder was converted from, and what was written."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import convert
from convert.errors import CheckpointError
from convert.files.atomic import new_file

CONVERSION_NAME = "conversion.json"
VERIFICATION_NAME = "verification.json"


@dataclass(frozen=True)
class Source:
    path: str
    """Relative to the folder."""
    layout: str
    container: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Origin:
    """The first file of a chain of conversions, for which outputs may be recorded."""

    name: str
    sha256: str


@dataclass(frozen=True)
class File:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ConversionRecord:
    name: str
    architecture: str
    classes: int
    layout: str
    origin: Origin
    source: Source
    files: dict[str, File]
    """Every file that was written, by name, but for the record itself."""
    tensors: list[dict[str, Any]]
    """For each: its canonical name, both keys, the transform, dtype and new shape."""
    converter: str = field(default=f"bit-convert {convert.__version__}")

    def write(self, folder: Path) -> None:
        write_json(folder / CONVERSION_NAME, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> ConversionRecord | None:
        """The record in `folder`, None if it has none. Raises `CheckpointError` if it is damaged."""
        path = folder / CONVERSION_NAME
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text("utf-8"))
            values["origin"], values["source"] = Origin(**values["origin"]), Source(**values["source"])
            values["files"] = {name: File(**file) for name, file in values["files"].items()}
            record = cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged ({error})") from None
        rows = isinstance(record.tensors, list) and all(
            isinstance(row, dict) and all(isinstance(value, str | list) for value in row.values())
            for row in record.tensors
        )
        if not rows:
            raise CheckpointError(f"{path} is damaged (its tensors are no rows)")
        texts = (record.name, record.layout, record.architecture, record.origin.name, record.source.path)
        hashes = (record.origin.sha256, record.source.sha256, *(file.sha256 for file in record.files.values()))
        if not all(isinstance(text, str) and text.isprintable() for text in (*texts, *record.files)):
            raise CheckpointError(f"{path} is damaged (a name or path is none)")
        if not all(isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) for digest in hashes):
            raise CheckpointError(f"{path} is damaged (a SHA-256 is none)")
        if not record.name or record.name in (".", "..") or "/" in record.name:
            raise CheckpointError(f"{path} is damaged (its name {record.name!r} cannot be that of a folder)")
        return record

    @classmethod
    def beside(cls, path: Path) -> ConversionRecord | None:
        """The record in a folder, or that in the folder of a file which it lists."""
        if path.is_dir():
            return cls.read(path)
        with contextlib.suppress(CheckpointError):  # of something else that is called so
            record = cls.read(path.parent)
            return record if record is not None and path.name in record.files else None
        return None


def foreign_names(folder: Path) -> list[str]:
    """What lies in a folder and is not of the conversion recorded there."""
    record = ConversionRecord.read(folder)
    ours = {*record.files, CONVERSION_NAME, VERIFICATION_NAME} if record is not None else set()
    return sorted(path.name for path in folder.iterdir() if path.name not in ours or not path.is_file())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file of strict JSON, whole or not at all."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with new_file(path) as partial:
        partial.write_text(text, "utf-8")
