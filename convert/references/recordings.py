"""Outputs that were recorded for known checkpoints, see `reference_outputs/README.md`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import convert
from convert.errors import CheckpointError
from convert.files.atomic import new_file
from convert.network.taps import Key, Summary
from convert.verification.metrics import summary_error

SHIPPED = Path(__file__).parent.parent.parent / "reference_outputs"
"""The records that come with the project."""
CHECKPOINT_NAME = "checkpoint.json"
"""In each folder of records, which file they are of."""
RECORDER = f"bit-convert {convert.__version__}"
TRUTH, FLOAT32 = "f64", "f32"
"""Dtypes of runs: one in float64 is the truth, those in float32 show how far rounding takes one from it."""


@dataclass(frozen=True)
class Recording:
    """What one run computed."""

    implementation: str
    framework: str
    inputs: Mapping[str, tuple[int, int, int, int]]
    """By name: seed, count, height and width of the images, see `inputs.images`."""
    taps: Mapping[Key, Summary]
    dtype: str = TRUTH
    about: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else was noted: architecture, environment."""

    def write(self, path: Path) -> None:
        """Write the record, in float64 throughout, whole or not at all."""
        arrays = {}
        for (name, tap), summary in self.taps.items():
            for part, values in summary.items():
                arrays[f"{name}/{tap}/{part}" if part else f"{name}/{tap}"] = np.ascontiguousarray(values)
        said = {"implementation": self.implementation, "framework": self.framework, "dtype": self.dtype}
        reference = {**said, **self.about, "inputs": {name: list(numbers) for name, numbers in self.inputs.items()}}
        with new_file(path) as partial:
            save_file(arrays, partial, metadata={"reference": json.dumps(reference)})


@dataclass(frozen=True)
class Recordings:
    """All runs on one checkpoint."""

    name: str
    truth: Recording
    float32: tuple[Recording, ...]

    @property
    def own(self) -> bool:
        """Whether they are of `bit record`, not of the original code."""
        return "recorder" in self.truth.about

    def float32_error(self, key: Key) -> float:
        """The larger error of the float32 runs at a tap."""
        expected = self.truth.taps.get(key, {})
        return max(summary_error(record.taps.get(key, {}), expected) for record in self.float32)


def find(sha256: str, folders: Iterable[Path] = (SHIPPED,), ws_eps: float | None = None) -> Recordings | None:
    """The records of the checkpoint whose file has this SHA-256, if there are any.

    Those of `bit record` must be of this version and, if it is given, of that epsilon. Raises
    `CheckpointError` for records that cannot be read.
    """
    for folder in folders:
        for about in sorted(folder.glob(f"*/{CHECKPOINT_NAME}")):
            try:
                stated = json.loads(about.read_text("utf-8"))
                found = _read(stated["name"], about.parent) if stated["sha256"] == sha256 else None
                if found is not None and (not found.own or _is_current(found.truth.about, ws_eps)):
                    return found
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                raise CheckpointError(f"the records in {about.parent} are damaged ({error}); remove them") from None
    return None


def _is_current(about: Mapping[str, Any], ws_eps: float | None) -> bool:
    return about["recorder"] == RECORDER and ws_eps in (None, about["ws_eps"])


def _read(name: str, folder: Path) -> Recordings:
    records = [_load(path) for path in sorted(folder.glob("*.safetensors"))]
    truth = [record for record in records if record.dtype == TRUTH]
    float32 = tuple(record for record in records if record.dtype == FLOAT32)
    if len(truth) != 1 or not float32:
        raise ValueError(f"{len(truth)} runs in float64 and {len(float32)} in float32, where one and at least one are")
    return Recordings(name, truth[0], float32)


def _load(path: Path) -> Recording:
    taps: dict[Key, dict[str, NDArray[np.float64]]] = {}
    with safe_open(path, framework="numpy") as file:
        about = json.loads(file.metadata()["reference"])
        for key in file.keys():  # noqa: SIM118 (not a dictionary)
            source, _, tap = key.partition("/")
            part = next((part for part in ("stats", "sample") if tap.endswith(f"/{part}")), "")
            taps.setdefault((source, tap.removesuffix(f"/{part}") if part else tap), {})[part] = file.get_tensor(key)
    inputs = {name: tuple(numbers) for name, numbers in about.pop("inputs").items()}
    said = (about.pop(key) for key in ("implementation", "framework", "dtype"))
    implementation, framework, dtype = said
    return Recording(implementation, framework, inputs, taps, dtype, about)
