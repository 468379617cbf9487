"""Loss, learning rate and accuracy through a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass(frozen=True)
class Evaluation:
    """The result on the images for evaluation."""

    step: int
    """Steps that were taken before."""
    loss: float
    accuracy: float
    """Share of images whose most probable class is the right one, in [0, 1]."""


@dataclass
class Curve:
    """The course of a training so far."""

    loss: list[float] = field(default_factory=list)
    """Mean loss of each step's images."""
    learning_rate: list[float] = field(default_factory=list)
    """The rate of each step."""
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def accuracy(self) -> float | None:
        """The last measured accuracy; None if nothing was evaluated."""
        return self.evaluations[-1].accuracy if self.evaluations else None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the curve that `to_dict` gave. Raises `KeyError` or `TypeError` for anything else."""
        evaluations = [Evaluation(**item) for item in values["evaluations"]]
        return cls(list(values["loss"]), list(values["learning_rate"]), evaluations)
