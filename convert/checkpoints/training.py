"""`training.json`: how a network was fine-tuned. It travels with the weights through every conversion."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec

from convert.checkpoints.records import MAX_BYTES, Count, Name, Sha256, parse_record
from convert.files.base import open_regular

TRAINING_NAME = "training.json"
SCHEMA = 1
MAX_STEPS = 1 << 20
"""Most steps of a training; the longest schedule of the rule has 20,000."""

Number = Annotated[float, msgspec.Meta(ge=-1e39, le=1e39)]
"""A number of float32; losses can be large before a training diverges."""
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Rates = Annotated[list[Number], msgspec.Meta(max_length=MAX_STEPS)]


@dataclass(frozen=True)
class DataUsed:
    """The images of a training."""

    name: Name
    """As it was given: the name of the folder or data set."""
    training_images: Count
    validation_images: Count
    classes: Count
    training_sha256: Sha256
    """Over names, labels and bytes of the training images; the same on every machine."""
    validation_sha256: Sha256
    skipped: Count = 0
    """Images that were left out because they cannot be read."""


@dataclass(frozen=True)
class Evaluated:
    """A result on the validation images."""

    step: Count
    loss: Number
    accuracy: Share


@dataclass(frozen=True)
class TrainingCurve:
    """Loss and rate of each step, and the evaluations."""

    loss: Rates
    learning_rate: Rates
    evaluations: Annotated[list[Evaluated], msgspec.Meta(max_length=MAX_STEPS)]


@dataclass(frozen=True)
class Training:
    """The content of `training.json`."""

    checkpoint: Name
    """The name of the checkpoint that was fine-tuned."""
    checkpoint_sha256: Sha256
    """SHA-256 of the original file, with which the conversions before began."""
    data: DataUsed
    settings: dict[str, Any]
    """Every setting, as `bit.finetuning.settings.Settings.to_dict` gives them."""
    changed: tuple[Name, ...]
    """The settings that are not those of BiT-HyperRule."""
    versions: dict[Name, Name]
    """Python, the libraries and the kind of device."""
    curve: TrainingCurve
    schema: int = field(default=SCHEMA)

    @property
    def accuracy(self) -> float | None:
        """The accuracy after the last step, in [0, 1]; None if nothing was evaluated."""
        return self.curve.evaluations[-1].accuracy if self.curve.evaluations else None

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {**asdict(self), "changed": list(self.changed)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Training:
        """Return what `to_dict` gave. Raises `ValueError` for anything else."""
        found = msgspec.convert(values, cls, strict=True)
        numbers = [*found.curve.loss, *found.curve.learning_rate]
        aligned = len(found.curve.loss) == len(found.curve.learning_rate)
        if found.schema != SCHEMA or not all(map(math.isfinite, numbers)) or not aligned:
            raise ValueError(f"{TRAINING_NAME} is not of schema {SCHEMA}, or has numbers that are not finite")
        return found

    @classmethod
    def beside(cls, folder: Path) -> Training | None:
        """Return the record in a folder; None for another path, and for a file of that name of another program."""
        path = folder / TRAINING_NAME
        try:
            with open_regular(path) as file:
                return cls.from_dict(parse_record(file.read(MAX_BYTES + 1)))
        except (OSError, ValueError):
            return None
