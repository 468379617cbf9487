"""A mutant: one operator, applied at one place of one seeded network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

from mutants.networks import Base

FAMILIES = ("layout tables", "weights", "network", "preprocessing", "metadata")


@dataclass(frozen=True)
class Operator:
    """A way in which conversions go wrong."""

    family: str
    name: str
    words: str
    """Regular expression for the diagnosis that names it."""
    places: Callable[[Base], Sequence[str]]
    """Returns the places of a network that it can be applied at; none if it cannot."""
    apply: Callable[[Base, str, Random], Any]
    """Returns what the judge of the family takes: weights, a table, a network or JSON."""
    same: str = ""
    """The argument why a mutant may compute the same function; without one, none is counted as equivalent."""


@dataclass(frozen=True)
class Mutant:
    """One operator at one place; `number` is that of the network, and `seed` that of what the operator draws."""

    family: str
    operator: str
    place: str
    network: int
    seed: int

    @property
    def key(self) -> str:
        return f"{self.network}/{self.family}/{self.operator}/{self.place}"


@dataclass(frozen=True)
class Outcome:
    """The judgement on a mutant."""

    mutant: Mutant
    about: str
    """The network, and the layouts on both sides."""
    numbers: bool
    """Killed by the numbers alone: recordings, no source, hashes forged to fit."""
    taps: bool
    """Killed by the activations alone, without the fingerprints in a recording."""
    everything: bool
    """Killed by a verification with the source."""
    expected: str
    """The first part that it changes, or the file that it is in."""
    located: bool
    named: bool
    diagnosis: str
    equivalent: str = ""
    """The reason why it computes the same; empty if it does not."""
    field: Mapping[str, bool] = field(default_factory=dict)
    """Killed by what the field uses, by check."""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Outcome:
        return cls(**{**values, "mutant": Mutant(**values["mutant"])})
