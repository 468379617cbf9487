"""Find the reader of a file of weights, by content and not by name, and the writer of a container."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from pkgutil import resolve_name

from convert.errors import CheckpointError
from convert.files.base import TensorFile, Writer, open_regular
from convert.files.sharded import INDEX_SUFFIX, ShardedFile
from convert.files.zip import FAILURES, open_archive

MARKS: dict[str, tuple[bytes, ...]] = {
    "zip": (b"PK\x03\x04", b"PK\x05\x06"),  # a member, or the end of an empty archive
    "h5": (b"\x89HDF\r\n\x1a\n",),
    # PyTorch before 1.6 (torch.serialization, `MAGIC_NUMBER`, pickled)
    "legacy pytorch": (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19",),
    "pickle": tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6)),
}
"""First bytes of a file, by format."""
READERS = {
    "npz": "convert.files.npz:NpzFile",
    "safetensors": "convert.files.safetensors:SafetensorsFile",
    "h5": "convert.files.h5:H5File",
    "pytorch": "convert.files.pytorch:ZippedPickle",
    "legacy pytorch": "convert.files.pytorch:LegacyPickle",
    "keras": "convert.files.keras:KerasFile",
    "onnx": "convert.files.onnx:OnnxFile",
}
"""The class that reads each format, imported when it is needed. `WRITERS` likewise."""
WRITERS = {
    "npz": "convert.files.npz:NpzWriter",
    "safetensors": "convert.files.safetensors:SafetensorsWriter",
    "h5": "convert.files.h5:H5Writer",
    "keras": "convert.files.keras:KerasWriter",
    "onnx": "convert.files.onnx:OnnxWriter",
}
NEEDED = {"onnx": ("onnx", "an ONNX file; reading it needs onnx")}
"""The optional package, also the name of the extra, that reads a format; and how an error continues without it."""
KINDS = "safetensors, npz, h5, a file of torch.save, .keras, ONNX, or an index of shards"


def open_weights(path: Path, incomplete: bool = False) -> TensorFile:
    """Open a file of weights, an index of shards, or the only one of these in a folder.

    Raises `CheckpointError` for anything else, and for a damaged file. With `incomplete`, shards that are
    missing or damaged are left out and listed in `faults`.
    """
    file = find_weights(path)
    return ShardedFile(file, _open, incomplete) if kind(file) == "index" else _open(file)


def find_weights(path: Path) -> Path:
    """Return the file of weights, or the index of shards, at a path: the only one of these in a folder.

    Raises `CheckpointError` for a folder that holds none, or several.
    """
    return _in_folder(path) if path.is_dir() else path


def writer_of(container: str) -> type[Writer]:
    """Return the class that writes a new file of `container`: `npz`, `safetensors`, `h5`, `keras` or `onnx`."""
    found: type[Writer] = resolve_name(WRITERS[container])
    return found


def _open(file: Path) -> TensorFile:
    found = kind(file)
    package, needs = NEEDED.get(found or "", ("", ""))
    if package and importlib.util.find_spec(package) is None:
        raise CheckpointError(f"{file} is {needs}: pip install -e '.[{package}]'")
    if found in READERS:
        opened: TensorFile = resolve_name(READERS[found])(file)
        return opened
    if found == "pickle":
        raise CheckpointError(f"{file} is a pickle that torch.save did not write; such files are not read")
    empty = "" if file.stat().st_size else "; it is empty"
    raise CheckpointError(f"{file} is not a file of weights (expected {KINDS}){empty}")


def kind(path: Path) -> str | None:
    """Return the format of a file, judged by the first bytes; None for an unknown format."""
    with open_regular(path) as file:
        start = file.read(64)
    if start[7:9] == b"\0{":  # first, because the bytes before are a length and can equal any other mark
        return "safetensors"
    if start.lstrip().startswith(b"{") and path.name.endswith(INDEX_SUFFIX):
        return "index"
    # A protocol buffer has no mark; it starts with the version of the format and the name of the producer.
    if start[:1] == b"\x08" and start[2:3] == b"\x12":
        return "onnx"
    found = next((name for name, marks in MARKS.items() if start.startswith(marks)), None)
    if found == "zip":
        return "pytorch" if b"/data.pkl" in start else _kind_of_archive(path)
    return found


def _kind_of_archive(path: Path) -> str:
    try:
        with open_regular(path) as file, open_archive(file) as archive:
            names = archive.namelist()
    except FAILURES:
        return "npz"
    if any(name.endswith("/data.pkl") for name in names):
        return "pytorch"
    return "keras" if {"config.json", "model.weights.h5"} & set(names) else "npz"


def _in_folder(folder: Path) -> Path:
    """Return the weights in a folder: an index, else the only file; safetensors where there are several kinds."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if file.is_file() and (container := kind(file)):
            found.setdefault(container, []).append(file)
    indices = {name: file for file in found.get("index", []) if (name := file.name.removesuffix(INDEX_SUFFIX))}
    if indices:
        name = min(indices, key=lambda name: not name.endswith(".safetensors"))
        if folder / name in found.get("safetensors", []):  # libraries would prefer it to the index
            raise CheckpointError(f"{folder} holds both {name} and {indices[name].name}; name one of them")
        return indices[name]
    files = found.get("safetensors") or [file for group in found.values() for file in group]
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise CheckpointError(f"{folder} must hold exactly one file of weights ({KINDS}); found: {names}")
    return files[0]
