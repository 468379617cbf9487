"""`conversion.json`: the source of a conversion, the options, and the files that were written."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, NotRequired, TypedDict, TypeVar

import msgspec

from bit import __version__
from convert.checkpoints.options import HEAD, ConversionOptions
from convert.checkpoints.records import MAX_BYTES, Count, Name, Sha256, parse_record
from convert.errors import CheckpointError
from convert.files.atomic import is_unfinished, json_text, write_json
from convert.files.base import MAX_AXES, MAX_TENSORS, File, combined_sha256, shown
from convert.files.sharded import SIZE
from convert.layouts import LAYOUTS
from convert.network.dtypes import BY_NAME

MANIFEST_NAME = "conversion.json"
VERIFICATION_NAME, REPORT_NAME = "verification.json", "verification.html"
REPORT_NAMES = (VERIFICATION_NAME, REPORT_NAME)
"""The files that a verification writes; the manifest does not list them."""
SIGNATURE_NAME, ATTESTATION_NAME = "model.sig", "conversion.intoto.json"
SIGNING_NAMES = (SIGNATURE_NAME, ATTESTATION_NAME)
"""The files that signing a folder writes, see `convert.signing`; the manifest does not list them either."""
CARD_NAME, CARD_MARK = "README.md", "<!-- Written by bit-convert; a card without this line is never replaced. -->"
"""The model card, and the last line of one that was not written by hand."""

SCHEMA = 2
"""Version of the manifest's format."""
CONVERTER = "bit-convert"
MAX_ROUNDINGS = 9
MAX_FILES = 10_000
"""Most files of a checkpoint: one for each array would be fewer."""
MAX_FILE_NAME, MAX_PATH = 255, 2 * 4096
"""Most characters of the name of a file, and of a relative path between two of the longest that Linux has."""
MAX_CLASSES = 1 << 20
"""Most classes, as in `BitConfig`."""

Address = Annotated[
    str,
    msgspec.Meta(max_length=MAX_PATH, pattern=r"^(https://[\w.-]+/[\w./%-]+|hf:[\w.-]+/[\w.-]+@[\w.-]+)\Z"),
]
"""A published file's URL, or `hf:owner/name@commit`; it cannot hold a password."""
Decoded = TypeVar("Decoded")


@dataclass(frozen=True)
class Source:
    """The checkpoint that was converted."""

    path: str
    """Relative to the converted folder."""
    layout: Name
    container: Name
    files: dict[str, File]
    """One file, or the shards and their index."""
    address: Address | None = None
    """The place from which the files were fetched, if they have the hashes that were stated there; None for local
    files, whatever they are called."""

    @property
    def sha256(self) -> str:
        return combined_sha256(self.files)


@dataclass(frozen=True)
class Origin:
    """The first checkpoint of a chain of conversions; recordings are found by the hash of it."""

    name: str
    sha256: Sha256
    head: str = "keep"
    """The option `head` of the last conversion, this one included, that changed the head."""
    roundings: tuple[str, ...] = ()
    """The dtypes to which these conversions rounded the weights, one for each that did."""
    address: Address | None = None
    """The place from which the first checkpoint was fetched, as in `Source.address`."""
    ws_eps: float | None = None
    """The epsilon of weight standardization that the first checkpoint was taken to be trained with; None in
    manifests of earlier versions."""
    labelled: bool = False
    """True if one of these conversions named the classes."""

    @property
    def roundoff(self) -> float:
        """The largest relative error of a weight that the roundings can cause."""
        return sum(BY_NAME[name].roundoff for name in self.roundings)


class TensorRow(TypedDict):
    """One converted tensor."""

    parameter: Name
    """The canonical name."""
    source: Name | None
    """The name in the source; None for a new tensor."""
    target: Name
    transform: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]{1,32} -> [a-z0-9]{1,32}\Z")]
    """The letters of the axes before and after."""
    dtype: Name
    shape: Annotated[list[Count], msgspec.Meta(max_length=MAX_AXES)]
    scale: NotRequired[Annotated[float, msgspec.Meta(gt=0)]]
    standardized_with_epsilon: NotRequired[Annotated[float, msgspec.Meta(gt=0, lt=1)]]


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
    max_shard_size: str | None = None
    """Largest size of one weights file, such as `5GB`; None if one file holds all weights."""
    reproducible: bool = False
    """True if a conversion of the same source, with the same options and by the same version, writes the same bytes."""
    converter: str = field(default=f"{CONVERTER} {__version__}")
    schema: int = SCHEMA
    own: ClassVar[bool] = True
    """False if there is no `conversion.json`: another program converted."""

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        origin, source = self.origin, self.source
        texts = {
            "name": self.name,
            "layout": self.layout,
            "architecture": self.architecture,
            "origin.name": origin.name,
            "converter": self.converter,
        }
        for place, files in (("source.files", source.files), ("files", self.files)):
            texts |= {f"{place}[{shown(name)!r}]": name for name in files}
        faults = [f"{place} is not a printable name" for place, text in texts.items() if not _is_printable(text)]
        if not _is_printable(source.path, MAX_PATH):
            faults.append("source.path is not a printable path")
        for place, files in (("source.files", source.files), ("files", self.files)):
            faults += _faults_of_files(place, files)
        if not _is_file_name(self.name):
            faults.append(f"name {shown(self.name)!r} cannot be the name of a folder")
        if self.own and not re.fullmatch(rf"{CONVERTER} [0-9][0-9A-Za-z.+-]*", self.converter):
            faults.append(f"converter is not {CONVERTER} with a version")
        if self.layout not in LAYOUTS:
            faults.append(f"layout is not one of {', '.join(LAYOUTS)}")
        if not 0 < self.ws_eps < 1:
            faults.append(f"ws_eps is {self.ws_eps:g}, expected a number between 0 and 1")
        if not 0 <= self.classes <= MAX_CLASSES:
            faults.append(f"classes is not a number from 0 to {MAX_CLASSES}")
        if origin.ws_eps is not None and not 0 < origin.ws_eps < 1:
            faults.append(f"origin.ws_eps is {origin.ws_eps:g}, expected a number between 0 and 1")
        if not HEAD.fullmatch(origin.head):
            faults.append("origin.head is not keep, drop or new:N")
        if len(origin.roundings) > MAX_ROUNDINGS or not all(name in BY_NAME for name in origin.roundings):
            faults.append(f"origin.roundings must list at most {MAX_ROUNDINGS} of {', '.join(BY_NAME)}")
        if len(self.tensors) > MAX_TENSORS or not all(row["dtype"] in BY_NAME for row in self.tensors):
            faults.append(f"tensors must have at most {MAX_TENSORS} rows, each with a dtype of {', '.join(BY_NAME)}")
        if self.max_shard_size is not None and not SIZE.fullmatch(self.max_shard_size):
            faults.append("max_shard_size is not a size such as 5GB")
        for column in ("parameter", "target"):
            if len({str(row[column]) for row in self.tensors}) != len(self.tensors):
                faults.append(f"tensors names a {column} twice")
        if faults:
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            raise CheckpointError(f"{faults[0]}{more}")  # msgspec adds where it was read, as to any `ValueError`

    def text(self) -> str:
        """Return the content of `conversion.json`."""
        return json_text(asdict(self))

    def write(self, folder: Path) -> None:
        write_json(folder / MANIFEST_NAME, asdict(self))

    def in_place_of(self, other: Manifest) -> Manifest:
        """Return this manifest with the places of `other`: path and addresses of the source, and the file's name.

        These say where the source was, not what was converted: they alone differ if a conversion is repeated
        elsewhere, or from a copy.
        """
        origin = replace(self.origin, address=other.origin.address)
        source = replace(self.source, path=other.source.path, address=other.source.address)
        if source.sha256 == other.source.sha256:
            source = replace(source, files=other.source.files)
        return replace(self, origin=origin, source=source)

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Return the manifest in `folder`, None if there is none.

        Raises `CheckpointError` if it is damaged or has another schema.
        """
        path = folder / MANIFEST_NAME
        data = _read(path)
        return cls.decode(data, path) if data is not None else None

    @classmethod
    def decode(cls, data: bytes, path: Path) -> Manifest:
        """Return the manifest with this content; `path` is named in errors, which are those of `read`."""
        header = _decoded(data, path, _Header)
        if header.converter.startswith(CONVERTER) and header.schema != SCHEMA:
            older = header.schema < SCHEMA
            version, advice = ("an older", "convert it again") if older else ("a newer", "update bit-convert")
            raise CheckpointError(f"{path} was written by {version} version (schema {header.schema}); {advice}")
        return _decoded(data, path, cls)

    @classmethod
    def beside(cls, path: Path) -> Manifest | None:
        """Return the manifest in a folder, or the one beside a file if it lists that file."""
        if path.is_dir():
            return cls.read(path)
        try:
            header = _header(path.parent)
        except CheckpointError:  # another program's file of the same name
            return None
        return cls.read(path.parent) if header is not None and path.name in header.files else None


@dataclass(frozen=True)
class InferredManifest(Manifest):
    """The manifest that the conversion of another program would have, see `convert.conversion.inferred`."""

    own: ClassVar[bool] = False


def is_signed(folder: Path) -> bool:
    """Return whether a folder holds a signature, valid or not."""
    return os.path.lexists(folder / SIGNATURE_NAME)


def is_own_card(card: bytes) -> bool:
    """Return whether a model card was written by this program."""
    return card.rstrip().endswith(CARD_MARK.encode())


def foreign_names(folder: Path) -> list[str]:
    """List what is in a folder and was not written by the conversion, of any schema, that is described there.

    A model card that was written by hand is foreign; a report that is being written, or was when a run was
    killed, is not.
    """
    header = _header(folder)
    files = set()
    if header is not None and header.converter.startswith(CONVERTER):
        files = {*header.files, MANIFEST_NAME, *REPORT_NAMES, *SIGNING_NAMES}
        if (folder / CARD_NAME).is_file() and is_own_card((folder / CARD_NAME).read_bytes()):
            files.add(CARD_NAME)
    others = (path for path in folder.iterdir() if path.name not in files or not path.is_file())
    return sorted(path.name for path in others if not is_unfinished(path, REPORT_NAMES))


@dataclass(frozen=True)
class _Header:
    """The part of a manifest that every version has."""

    files: dict[str, Any]
    converter: str = ""
    schema: Count = 1


def _header(folder: Path) -> _Header | None:
    path = folder / MANIFEST_NAME
    data = _read(path)
    return _decoded(data, path, _Header) if data is not None else None


def _read(path: Path) -> bytes | None:
    """Return the content of a record, up to one byte more than is parsed; None if there is no file."""
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        return file.read(MAX_BYTES + 1)


def _decoded(data: bytes, path: Path, kind: type[Decoded]) -> Decoded:
    try:
        return msgspec.convert(parse_record(data), kind)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}; convert again") from None


def _is_printable(text: str, most: int = MAX_FILE_NAME) -> bool:
    return len(text) <= most and text.isprintable()


def _is_file_name(name: str) -> bool:
    """Return whether a name stays in a folder when it is joined to the path of the folder."""
    return name not in ("", ".", "..") and "/" not in name


def _faults_of_files(place: str, files: dict[str, File]) -> list[str]:
    """Return the reasons why these cannot be names, sizes and hashes of the files of a checkpoint."""
    if not 1 <= len(files) <= MAX_FILES:
        return [f"{place} is empty" if not files else f"{place} lists more than {MAX_FILES} files"]
    faults = [f"{place}[{shown(name)!r}] is not the name of a file" for name in files if not _is_file_name(name)]
    for name, file in files.items():
        if not re.fullmatch("[0-9a-f]{64}", file.sha256):
            faults.append(f"{place}[{shown(name)!r}].sha256 is not a SHA-256 in hexadecimal digits")
        if not 0 <= file.bytes < 1 << 63:
            faults.append(f"{place}[{shown(name)!r}].bytes is not the size of a file")
    return faults
