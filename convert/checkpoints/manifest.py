"""`conversion.json`: the source of a conversion, the options, and the files that were written."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict, TypeVar

import msgspec

from bit import __version__
from convert.checkpoints.options import ConversionOptions
from convert.errors import CheckpointError
from convert.files.atomic import write_json
from convert.files.base import File, combined_sha256
from convert.network.dtypes import BY_NAME

MANIFEST_NAME = "conversion.json"
VERIFICATION_NAME, REPORT_NAME = "verification.json", "verification.html"
REPORT_NAMES = (VERIFICATION_NAME, REPORT_NAME)
"""The files that a verification writes; the manifest does not list them."""

SCHEMA = 2
"""Version of the manifest's format."""
CONVERTER = "bit-convert"
MAX_ROUNDINGS = 9

Decoded = TypeVar("Decoded")


@dataclass(frozen=True)
class Source:
    """The checkpoint that was converted."""

    path: str
    """Relative to the converted folder."""
    layout: str
    container: str
    files: dict[str, File]
    """One file, or the shards and their index."""

    @property
    def sha256(self) -> str:
        return combined_sha256(self.files)


@dataclass(frozen=True)
class Origin:
    """The first checkpoint of a chain of conversions; recordings are found by the hash of it."""

    name: str
    sha256: str
    head: str = "keep"
    """The option `head` of the last conversion, this one included, that changed the head."""
    roundings: tuple[str, ...] = ()
    """The dtypes to which these conversions rounded the weights, one for each that did."""

    @property
    def roundoff(self) -> float:
        """The largest relative error of a weight that the roundings can cause."""
        return sum(BY_NAME[name].roundoff for name in self.roundings)


class TensorRow(TypedDict):
    """One converted tensor."""

    parameter: str
    """The canonical name."""
    source: str | None
    """The name in the source; None for a new tensor."""
    target: str
    transform: str
    dtype: str
    shape: list[int]
    scale: NotRequired[float]
    standardized_with_epsilon: NotRequired[float]


@dataclass(frozen=True)
class Manifest:
    """The description of a converted folder."""

    name: str
    architecture: str
    classes: int
    """0 for a network without a head."""
    ws_eps: float
    """The epsilon of weight standardization to run these weights with."""
    layout: str
    options: ConversionOptions
    origin: Origin
    source: Source
    files: dict[str, File]
    """Every file that was written, by name, except the manifest itself."""
    tensors: list[TensorRow]
    converter: str = field(default=f"{CONVERTER} {__version__}")
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        origin, source = self.origin, self.source
        texts = {
            "name": self.name,
            "layout": self.layout,
            "architecture": self.architecture,
            "origin.name": origin.name,
            "source.path": source.path,
        }
        hashes = {"origin.sha256": origin.sha256}
        for place, files in (("source.files", source.files), ("files", self.files)):
            texts |= {f"{place}[{name!r}]": name for name in files}
            hashes |= {f"{place}[{name!r}].sha256": file.sha256 for name, file in files.items()}
        faults = [f"{place} is not a printable name" for place, text in texts.items() if not text.isprintable()]
        for place, digest in hashes.items():
            if not re.fullmatch("[0-9a-f]{64}", digest):
                faults.append(f"{place} is not a SHA-256 in hexadecimal digits")
        if not self.name or self.name in (".", "..") or "/" in self.name:
            faults.append(f"name {self.name!r} cannot be the name of a folder")
        if not 0 < self.ws_eps < 1:
            faults.append(f"ws_eps is {self.ws_eps:g}, expected a number between 0 and 1")
        if len(origin.roundings) > MAX_ROUNDINGS or not all(name in BY_NAME for name in origin.roundings):
            faults.append(f"origin.roundings must list at most {MAX_ROUNDINGS} of {', '.join(BY_NAME)}")
        if not source.files:
            faults.append("source.files is empty")
        if faults:
            raise ValueError("; ".join(faults))

    def write(self, folder: Path) -> None:
        write_json(folder / MANIFEST_NAME, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Return the manifest in `folder`, None if there is none.

        Raises `CheckpointError` if it is damaged or has another schema.
        """
        header = _decoded(folder, _Header)
        if header is None:
            return None
        if header.converter.startswith(CONVERTER) and header.schema != SCHEMA:
            older = header.schema < SCHEMA
            version, advice = ("an older", "convert it again") if older else ("a newer", "update bit-convert")
            schema = f"{version} version (schema {header.schema})"
            raise CheckpointError(f"{folder / MANIFEST_NAME} was written by {schema}; {advice}")
        return _decoded(folder, cls)

    @classmethod
    def beside(cls, path: Path) -> Manifest | None:
        """Return the manifest in a folder, or the one beside a file if it lists that file."""
        if path.is_dir():
            return cls.read(path)
        try:
            header = _decoded(path.parent, _Header)
        except CheckpointError:  # another program's file of the same name
            return None
        return cls.read(path.parent) if header is not None and path.name in header.files else None


def foreign_names(folder: Path) -> list[str]:
    """List what is in a folder and was not written by the conversion, of any schema, that is described there."""
    header = _decoded(folder, _Header)
    files = set()
    if header is not None and header.converter.startswith(CONVERTER):
        files = {*header.files, MANIFEST_NAME, *REPORT_NAMES}
    return sorted(path.name for path in folder.iterdir() if path.name not in files or not path.is_file())


@dataclass(frozen=True)
class _Header:
    """The part of a manifest that every version has."""

    files: dict[str, Any]
    converter: str = ""
    schema: int = 1


def _decoded(folder: Path, kind: type[Decoded]) -> Decoded | None:
    path = folder / MANIFEST_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind) if path.is_file() else None
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; convert again") from None
