"""Open a file of weights by content, whatever the file is called."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from convert.errors import CheckpointError
from convert.files.base import TensorFile
from convert.files.npz import NpzFile
from convert.files.safetensors import SafetensorsFile
from convert.files.sharded import INDEX_SUFFIX, ShardedFile

ZIP = (b"PK\x03\x04", b"PK\x05\x06")
"""First bytes of a zip archive: a member, or the end of an empty archive."""
HDF5 = b"\x89HDF\r\n\x1a\n"
LEGACY_PICKLE = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
"""First bytes of a file that PyTorch before 1.6 wrote (torch.serialization, `MAGIC_NUMBER`, pickled)."""
PICKLES = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
KINDS = "safetensors, npz, h5, a file of torch.save, ONNX, or an index of shards"


def open_weights(path: Path) -> TensorFile:
    """Open a file of weights, an index of shards, or the only one of these in a folder.

    Raises `CheckpointError` for anything else, and for a damaged file.
    """
    file = _in_folder(path) if path.is_dir() else path
    if file.exists() and not file.is_file():
        raise CheckpointError(f"{file} is not a regular file")
    return ShardedFile(file, _open) if kind(file) == "index" else _open(file)


def _open(file: Path) -> TensorFile:
    match kind(file):
        case "npz":
            return NpzFile(file)
        case "safetensors":
            return SafetensorsFile(file)
        case "h5":
            from convert.files.h5 import H5File

            return H5File(file)
        case "pytorch":
            from convert.files.pytorch import ZippedPickle

            return ZippedPickle(file)
        case "legacy pytorch":
            from convert.files.pytorch import LegacyPickle

            return LegacyPickle(file)
        case "onnx":
            if find_spec("onnx") is None:
                raise CheckpointError(f"{file} is an ONNX file; reading it needs onnx: pip install -e '.[onnx]'")
            from convert.files.onnx import OnnxFile

            return OnnxFile(file)
        case "pickle":
            raise CheckpointError(f"{file} is a pickle that torch.save did not write; such files are not read")
    empty = "" if file.stat().st_size else "; it is empty"
    raise CheckpointError(f"{file} is not a file of weights (expected {KINDS}){empty}")


def kind(path: Path) -> str | None:
    """Return the format of a file, judged by the first bytes; None for an unknown format."""
    with open(path, "rb") as file:
        start = file.read(64)
    if start[7:9] == b"\0{":  # first, because the bytes before are a length and can equal any other mark
        return "safetensors"
    if start.startswith(ZIP):
        return "pytorch" if b"/data.pkl" in start or _is_pickled(path) else "npz"
    if start.startswith(HDF5):
        return "h5"
    if start.startswith(LEGACY_PICKLE):
        return "legacy pytorch"
    if start.startswith(PICKLES):
        return "pickle"
    if start.lstrip().startswith(b"{") and path.name.endswith(INDEX_SUFFIX):
        return "index"
    # A protocol buffer has no mark; it starts with the version of the format and the name of the producer.
    if start[:1] == b"\x08" and start[2:3] == b"\x12":
        return "onnx"
    return None


def _is_pickled(path: Path) -> bool:
    try:
        with ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (BadZipFile, NotImplementedError, ValueError):
        return False


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
