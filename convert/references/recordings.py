"""Recordings: stored outputs of runs on known checkpoints, see `reference_outputs/README.md`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bit import __version__
from bit.config import BitConfig
from convert.errors import CheckpointError
from convert.files.atomic import new_file
from convert.files.base import file_sha256
from convert.network.taps import Key, Summary
from convert.sources.resolve import cache_folder, user_path

_PACKAGE, _NAME = Path(__file__).parent.parent, "reference_outputs"
SHIPPED = _PACKAGE / _NAME if (_PACKAGE / _NAME).is_dir() else _PACKAGE.parent / _NAME
"""The recordings that come with the project: inside an installed package, else at the top of the checkout."""
CHECKPOINT = "checkpoint.json"
"""The file in each folder of recordings that names their checkpoint."""
RECORDER = f"bit-convert {__version__}"
"""The value of `recorder` in recordings of this version; those of Google's code have none."""


class RecordedCheckpoint(msgspec.Struct, frozen=True):
    """The content of `checkpoint.json`: the name of the recorded checkpoint, and the SHA-256 of the file."""

    name: str
    sha256: str

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises `OSError`, and `ValueError` for an invalid file."""
        return msgspec.json.decode((folder / CHECKPOINT).read_bytes(), type=cls)


@dataclass(frozen=True)
class Recording:
    """The outputs of one run."""

    implementation: str
    framework: str
    inputs: Mapping[str, tuple[int, int, int, int]]
    """Seed, count, height and width of the images of each input, see `inputs.images`."""
    taps: Mapping[Key, Summary]
    dtype: str
    """`f64` for the run that others are compared with, `f32` for runs that show the effect of rounding."""
    about: Mapping[str, Any]
    """Further metadata, such as the architecture and the environment."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises `OSError`, `SafetensorError`, `KeyError` or `ValueError` for an invalid file."""
        taps: dict[Key, dict[str, NDArray[np.float64]]] = {}
        with safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()["reference"])
            for key in file.keys():  # noqa: SIM118 (not a dictionary)
                name, _, tap = key.partition("/")
                tap, _, part = tap.rpartition("/") if tap.endswith(("/stats", "/sample")) else (tap, "", "")
                taps.setdefault((name, tap), {})[part] = file.get_tensor(key)
        inputs = msgspec.convert(about.pop("inputs"), dict[str, tuple[int, int, int, int]])
        run = {key: about.pop(key) for key in ("implementation", "framework", "dtype")}
        return cls(**run, inputs=inputs, taps=taps, about=about)

    def write(self, path: Path) -> None:
        """Write the recording, in float64 throughout, whole or not at all."""
        arrays = {
            f"{name}/{tap}/{part}".removesuffix("/"): np.ascontiguousarray(values)
            for (name, tap), summary in self.taps.items()
            for part, values in summary.items()
        }
        run = {"implementation": self.implementation, "framework": self.framework, "dtype": self.dtype}
        metadata = {"reference": json.dumps({**run, **self.about, "inputs": self.inputs})}
        with new_file(path) as partial:
            save_file(arrays, partial, metadata=metadata)


@dataclass(frozen=True)
class Recordings:
    """All recordings of one checkpoint."""

    name: str
    float64: Recording
    float32: tuple[Recording, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the file of each recording, by name."""

    @property
    def own(self) -> bool:
        """Return whether `bit record` made them, not the original code."""
        return "recorder" in self.float64.about

    @classmethod
    def read(cls, name: str, folder: Path) -> Self:
        """Raises what `Recording.read` raises, and `ValueError` unless one is in float64 and others in float32."""
        paths = sorted(folder.glob("*.safetensors"))
        found = [Recording.read(path) for path in paths]
        float64, float32 = (tuple(item for item in found if item.dtype == dtype) for dtype in ("f64", "f32"))
        if len(float64) != 1 or not float32:
            counts = f"{len(float64)} runs in float64 and {len(float32)} in float32"
            raise ValueError(f"{counts}; expected one in float64 and at least one in float32")
        return cls(name, float64[0], float32, {path.name: file_sha256(path) for path in paths})


def recordings_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder for recordings that are made here: the given one, else `recordings` in the cache folder."""
    return user_path(folder or cache_folder() / "recordings")


def find_recordings(
    sha256: str, folders: Iterable[Path] = (SHIPPED,), ws_eps: float | None = None
) -> Recordings | None:
    """Return the recordings of the checkpoint whose file has this SHA-256, or None.

    With `ws_eps` they must be of that epsilon; Google's code has 1e-10. Recordings of `bit record` are used only
    if they are of this version. Raises `CheckpointError` for recordings that cannot be read.
    """
    for parent in folders:
        for file in sorted(parent.glob(f"*/{CHECKPOINT}")):
            try:
                checkpoint = RecordedCheckpoint.read(file.parent)
                if checkpoint.sha256 != sha256:
                    continue
                found = Recordings.read(checkpoint.name, file.parent)
                about = found.float64.about
                epsilon = about["ws_eps"] if found.own else BitConfig().ws_eps
                if ws_eps in (None, epsilon) and (not found.own or about["recorder"] == RECORDER):
                    return found
            except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
                raise CheckpointError(f"the recordings in {file.parent} are damaged ({error}); remove them") from None
    return None
