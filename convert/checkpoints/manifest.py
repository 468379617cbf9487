"""`conversion.json`: what a folder was converted from, and what was written."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import convert
from convert.checkpoints.options import ConversionOptions
from convert.errors import CheckpointError
from convert.files.atomic import write_json
from convert.files.base import File, combined_sha256
from convert.network.dtypes import BY_NAME

MANIFEST_NAME = "conversion.json"
VERIFICATION_NAME, REPORT_NAME = "verification.json", "verification.html"
REPORT_NAMES = (VERIFICATION_NAME, REPORT_NAME)
"""What a verification writes, and cannot hold the hash of."""


@dataclass(frozen=True)
class Source:
    path: str
    """Relative to the folder."""
    layout: str
    container: str
    files: dict[str, File]
    """One, but for shards, which come with their index."""

    @property
    def sha256(self) -> str:
        return combined_sha256(self.files)


@dataclass(frozen=True)
class Origin:
    """The first file of a chain of conversions, for which outputs may be recorded."""

    name: str
    sha256: str
    head: str = "keep"
    """What became of its head in the conversions since, this one included; see `ConversionOptions`."""
    roundings: tuple[str, ...] = ()
    """The dtypes to which its weights were rounded by them, one for each."""

    @property
    def roundoff(self) -> float:
        """The largest relative error that a weight got by that."""
        return sum(BY_NAME[name].roundoff for name in self.roundings)


@dataclass(frozen=True)
class Manifest:
    name: str
    architecture: str
    classes: int
    """0: it has no head."""
    ws_eps: float
    """The epsilon of weight standardization with which these weights are meant to be run."""
    layout: str
    changes: ConversionOptions
    origin: Origin
    source: Source
    files: dict[str, File]
    """Every file that was written, by name, but for the record itself."""
    tensors: list[dict[str, Any]]
    """For each: its canonical name, both keys, the transform, dtype and new shape."""
    converter: str = field(default=f"bit-convert {convert.__version__}")

    def write(self, folder: Path) -> None:
        write_json(folder / MANIFEST_NAME, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The record in `folder`, None if it has none. Raises `CheckpointError` if it is damaged."""
        path = folder / MANIFEST_NAME
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text("utf-8"))
            origin, source = values["origin"], values["source"]
            origin["roundings"] = tuple(origin["roundings"])
            source["files"] = _files(source["files"])
            values |= {
                "origin": Origin(**origin),
                "source": Source(**source),
                "changes": ConversionOptions(**values["changes"]),
                "files": _files(values["files"]),
            }
            record = cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, CheckpointError) as error:
            raise CheckpointError(f"{path} is damaged ({error})") from None
        rows = isinstance(record.tensors, list) and all(
            isinstance(row, dict) and all(isinstance(value, str | list | float | None) for value in row.values())
            for row in record.tensors
        )
        if not rows:
            raise CheckpointError(f"{path} is damaged (its tensors are no rows)")
        texts = (record.name, record.layout, record.architecture, record.origin.name, record.source.path)
        files = {**record.source.files, **record.files}
        hashes = (record.origin.sha256, *(file.sha256 for file in (*record.source.files.values(), *files.values())))
        if not all(isinstance(text, str) and text.isprintable() for text in (*texts, *files)):
            raise CheckpointError(f"{path} is damaged (a name or path is none)")
        roundings = record.origin.roundings
        known = len(roundings) <= 9 and all(isinstance(name, str) and name in BY_NAME for name in roundings)
        if type(record.ws_eps) is not float or not 0 < record.ws_eps < 1 or not known or not record.source.files:
            raise CheckpointError(f"{path} is damaged (its epsilon, a rounding or its source is none)")
        if not all(isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) for digest in hashes):
            raise CheckpointError(f"{path} is damaged (a SHA-256 is none)")
        if not record.name or record.name in (".", "..") or "/" in record.name:
            raise CheckpointError(f"{path} is damaged (its name {record.name!r} cannot be that of a folder)")
        return record

    @classmethod
    def beside(cls, path: Path) -> Manifest | None:
        """The record in a folder, or that in the folder of a file which it lists."""
        if path.is_dir():
            return cls.read(path)
        with contextlib.suppress(CheckpointError):  # of something else that is called so
            record = cls.read(path.parent)
            return record if record is not None and path.name in record.files else None
        return None


def _files(values: dict[str, Any]) -> dict[str, File]:
    return {name: File(**file) for name, file in values.items()}


def foreign_names(folder: Path) -> list[str]:
    """What lies in a folder and is not of the conversion recorded there."""
    record = Manifest.read(folder)
    ours = {*record.files, MANIFEST_NAME, *REPORT_NAMES} if record is not None else set()
    return sorted(path.name for path in folder.iterdir() if path.name not in ours or not path.is_file())
