"""Outputs of the original code that were recorded for known checkpoints, see `reference_outputs/README.md`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from convert.taps import Summary, summary_error

FOLDER = Path(__file__).parent.parent.parent / "reference_outputs"
TRUTH = "pytorch-f64"
FLOAT32 = ("pytorch-f32", "tf2-f32")
"""The original code in float32: its distance from the truth is the rounding that it has itself."""

Key = tuple[str, str]
"""An input's name and a tap's."""


@dataclass(frozen=True)
class Record:
    """What one run of the original code computed."""

    implementation: str
    framework: str
    inputs: Mapping[str, tuple[int, int, int, int]]
    """By name: seed, count, height and width of the images, see `images`."""
    taps: Mapping[Key, Summary]


@dataclass(frozen=True)
class Records:
    """All runs on one checkpoint."""

    name: str
    truth: Record
    float32: tuple[Record, ...]

    def float32_error(self, key: Key) -> float:
        """The larger error of the original code's own float32 runs at a tap."""
        return max(summary_error(record.taps[key], self.truth.taps[key]) for record in self.float32)


def find(sha256: str, folder: Path = FOLDER) -> Records | None:
    """The records of the checkpoint whose file has this SHA-256, if there are any."""
    index = json.loads((folder / "checkpoints.json").read_text("utf-8"))
    for name, checkpoint in index.items():
        if checkpoint["sha256"] == sha256:
            truth, *float32 = (_load(folder / name / f"{run}.safetensors") for run in (TRUTH, *FLOAT32))
            return Records(name, truth, tuple(float32))
    return None


def images(seed: int, count: int, height: int, width: int, channels: int = 3) -> NDArray[np.float32]:
    """`count` inputs `[N, H, W, C]` in [-1, 1]: a smooth field (a bilinear 8×8 grid) under noise.

    With three channels these are the inputs of the records, bit for bit.
    """
    rng = np.random.RandomState(seed)
    field = rng.uniform(-1, 1, (count, 9, 9, channels))
    for axis, size in ((1, height), (2, width)):
        position = np.arange(size) * 8 / size
        left = position.astype(int)
        weight = (position - left).reshape((-1, 1, 1) if axis == 1 else (-1, 1))
        field = field.take(left, axis) * (1 - weight) + field.take(left + 1, axis) * weight
    noise = rng.uniform(-1, 1, (count, height, width, channels))
    return (0.75 * field + 0.25 * noise).astype(np.float32)


def _load(path: Path) -> Record:
    taps: dict[Key, dict[str, NDArray[np.float64]]] = {}
    with safe_open(path, framework="numpy") as file:
        about = json.loads(file.metadata()["reference"])
        for key in file.keys():  # noqa: SIM118 (not a dictionary)
            source, _, tap = key.partition("/")
            part = next((part for part in ("stats", "sample") if tap.endswith(f"/{part}")), "")
            taps.setdefault((source, tap.removesuffix(f"/{part}") if part else tap), {})[part] = file.get_tensor(key)
    inputs = {name: tuple(numbers) for name, numbers in about["inputs"].items()}
    return Record(about["implementation"], about["framework"], inputs, taps)
