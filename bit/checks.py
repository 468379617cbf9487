"""Check that a folder holds the model that is to be loaded: the layout, and every tensor with the right shape."""

from __future__ import annotations

import shlex
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from bit.config import BitConfig
from bit.files import read_json, short

READS: Mapping[str, tuple[str, ...]] = {
    "transformers": ("transformers", "timm"),
    "flax": ("flax",),
    "keras": ("keras",),
}
"""The layouts that a loader of this package reads, by the layout that it asks for."""
FOLDED: Mapping[str, str] = {
    "onnx": "onnxruntime.InferenceSession runs it",
    "keras-saved": "keras.saving.load_model loads it",
}
"""The layouts whose kernels are standardized in the file, so that they are not converted; and what loads them."""
LAYOUTS = ("transformers", "timm", "google", "google-tf2", "flax", "keras", *FOLDED)
ENDINGS: Mapping[str, str] = {
    ".npz": "google",
    ".weights.h5": "keras",
    ".h5": "google-tf2",
    ".onnx": "onnx",
    ".keras": "keras-saved",
}
"""Layouts by the end of a file's name, the longer end first."""
NAMES: Mapping[str, tuple[str, ...]] = {
    "flax": ("root_block/",),
    "timm": ("stem.conv.",),
    "transformers": ("bit.embedder.", "embedder."),
}
"""Layouts in safetensors, by what the name of the first convolution begins with."""
REGISTERED = "bit>BiT"
"""The name under which Keras knows the class `bit.keras.BiT`."""
MOST_CONFIGURATION = 1 << 20
"""Bytes that are read of the configuration in a `.keras` file; the name of the class is at the start."""
MANIFEST_NAME = "conversion.json"
"""The file in which `bit convert` states the layout."""
MAX_PROBLEMS = 12
"""Problems that a message lists; the rest are counted."""
MAX_NAME = 200
"""Most characters of a tensor's name that are shown."""


def check_layout(path: str | Path, wanted: str) -> None:
    """Raise `ValueError` if a folder has another layout than a loader reads, or if `path` is a file of weights.

    The message says which layout it is, and how to convert it to `wanted`, a layout of `READS`. Nothing is raised
    for what is not recognized.
    """
    path = Path(path)
    found, is_file = layout_of(path), path.is_file()
    if not is_file and (found is None or found in READS[wanted]):
        return
    what = "file" if is_file else "folder"
    what = f"a {what}" if found is None else f"a {what} of the layout {found}"
    if path.suffix == ".keras" and found == "keras":
        raise ValueError(f"{path} is a saved model: load it with keras.saving.load_model, after import bit.keras")
    if found in READS[wanted]:
        raise ValueError(f"{path} is {what}; name the folder that holds it and config.json: {path.parent}")
    if found is not None and found in FOLDED:
        advice = f"{FOLDED[found]}; to load it here, convert what it was made from: bit convert SOURCE --to {wanted}"
    else:
        advice = f"convert it first: bit convert {shlex.quote(str(path))} --to {wanted}"
    raise ValueError(f"{path} is {what}, not a folder of the layout {wanted}; {advice}")


def layout_of(path: Path) -> str | None:
    """Return the layout of a folder or a file of weights by the manifest, file names and tensor names, or None."""
    if path.is_file():
        return _layout_of_file(path)
    if not path.is_dir():
        return None
    try:
        stated = read_json(path / MANIFEST_NAME).get("layout")
    except (OSError, ValueError):
        stated = None
    if stated in LAYOUTS:
        return str(stated)
    found = {_layout_of_file(file) for file in sorted(path.iterdir()) if file.is_file()} - {None}
    return found.pop() if len(found) == 1 else None


def _layout_of_file(path: Path) -> str | None:
    if path.name.endswith(".safetensors"):
        try:
            with safe_open(path, framework="numpy") as file:
                keys = list(file.keys())
        except (OSError, SafetensorError):
            return None
        found = (layout for layout, starts in NAMES.items() if any(key.startswith(starts) for key in keys))
        return next(found, None)
    if path.name.endswith(".keras") and _is_model_of_ours(path):
        return "keras"
    return next((layout for ending, layout in ENDINGS.items() if path.name.endswith(ending)), None)


def _is_model_of_ours(path: Path) -> bool:
    """Return whether Keras saved a model of the class `bit.keras.BiT` in this file."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("config.json") as member:
            return f'"{REGISTERED}"'.encode() in member.read(MOST_CONFIGURATION)
    except (OSError, KeyError, NotImplementedError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error):
        return False


def mismatches(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> list[str]:
    """List every tensor that is missing, unexpected or misshapen, in this order; empty if all fit.

    Both arguments map tensor names to shapes.
    """
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {_shown(name)}" for name in found if name not in expected]
    return problems + [
        f"misshapen {name}, {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]


def check_size(config: BitConfig, found: Collection[str]) -> None:
    """Raise `ValueError` if a network has more units than there are tensors, before it is built."""
    if (units := sum(config.depths)) > len(found):
        raise ValueError(f"config.json describes {units} units, but there are only {len(found)} tensors")


def listed(problems: Sequence[str], advice: str = "") -> str:
    """Return the first `MAX_PROBLEMS` in one line, and the number of the others, with advice where to see them."""
    rest = len(problems) - MAX_PROBLEMS
    return "; ".join(problems[:MAX_PROBLEMS]) + (f"; and {rest} more{advice}" if rest > 0 else "")


def _shown(name: str) -> str:
    """Return the name of a tensor as it is, or escaped and shortened if it does not fit a line."""
    return name if name.isprintable() and len(name) <= MAX_NAME else short(name)
