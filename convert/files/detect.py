"""Opening a file of weights by what it contains, whatever it is called."""

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
"""What a zip archive begins with: a member, or the end of an empty one."""
HDF5 = b"\x89HDF\r\n\x1a\n"
LEGACY_PICKLE = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
"""Of files of PyTorch before 1.6 (torch.serialization, `MAGIC_NUMBER`, pickled)."""
PICKLES = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
KINDS = "safetensors, npz, h5, a file of torch.save, ONNX, or an index of shards"


def open_weights(path: Path) -> TensorFile:
    """Open a file, an index of shards, or the one of either that lies in a folder.

    Raises `CheckpointError` for anything else, and for what is damaged.
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
            raise CheckpointError(f"{file} is a pickle that torch.save did not write; pickles are not read")
    raise CheckpointError(f"{file} is no file of weights ({KINDS})" + ("" if file.stat().st_size else "; it is empty"))


def kind(path: Path) -> str | None:
    """What a file contains, by how it begins; None if it is no file of weights."""
    with open(path, "rb") as file:
        start = file.read(64)
    if start[7:9] == b"\0{":  # first, as what it begins with is a length, and can be any mark of the others
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
    # A protocol buffer has no mark: the version of the format and the name of the producer come first.
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
    """The weights in a folder: those of an index, else the only file; of several kinds safetensors."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if file.is_file() and (of := kind(file)):
            found.setdefault(of, []).append(file)
    indices = {of: name for name in found.get("index", []) if (of := name.name.removesuffix(INDEX_SUFFIX))}
    if indices:
        name = min(indices, key=lambda name: not name.endswith(".safetensors"))
        if folder / name in found.get("safetensors", []):  # which libraries would prefer to the index
            raise CheckpointError(f"{folder} holds both {name} and {indices[name].name}; name one of them")
        return indices[name]
    files = found.get("safetensors") or [file for group in found.values() for file in group]
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise CheckpointError(f"{folder} must hold one file of weights ({KINDS}); it holds {names}")
    return files[0]
