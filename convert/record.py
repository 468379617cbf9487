"""`conversion.json`: what a folder was converted from, and what was written."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import convert
from convert.errors import CheckpointError

CONVERSION_NAME = "conversion.json"


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
        texts = (record.name, record.layout, record.origin.sha256, record.source.path, record.source.sha256)
        if not all(isinstance(text, str) for text in texts) or "/" in record.name:
            raise CheckpointError(f"{path} is damaged (a name, path or hash is none)")
        return record


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
