"""A foreign naming of BiT's parameters, as a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from bit.config import BitConfig
from convert.network.axes import Transform
from convert.network.parameters import KINDS, Parameter, Place

Attributes = Mapping[str, Mapping[str, Any]]
"""By the path of a group, its attributes; the root is `/`."""
Companions = Callable[[BitConfig, str, str, str], dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Row:
    """How a layout names one kind of parameter, and the letters of its axes there.

    In the template `{block}` and `{unit}` count from 1, `{stage}` and `{layer}` from 0; `{_stage}` and
    `{_layer}` are nothing for the first, then `_1` and so on.
    """

    template: str
    axes: str


@dataclass(frozen=True)
class Layout:
    name: str
    rows: Mapping[str, Row]
    """One row for each of `parameters.KINDS`."""
    library: str
    """Whose names they are."""
    container: str
    """What it is written as: `safetensors`, `npz`, `h5` or `onnx`."""
    weights_name: str
    """The file that is written, `{name}` being the checkpoint's."""
    ws_eps: float
    """The weight-standardization epsilon of the library that owns the layout."""
    caveat: Callable[[BitConfig], str | None] = lambda config: None
    """What a user of the library should know about this network in it."""
    companions: Companions = lambda config, dtype, name, profile: {}
    """The JSON files that the library wants beside the weights, from the configuration and the names of
    the dtype, the checkpoint and the profile."""
    profile: str | None = None
    """Whose way to prepare images it states unless another is asked for; None: it states none."""
    stated: Callable[[BitConfig, Mapping[str, Any]], BitConfig] = lambda config, values: config
    """The configuration that the arrays imply, with what only the library's `config.json` says.

    Raises `ValueError` where that contradicts the arrays or describes another network than BiT's.
    """
    spellings: Mapping[str, str] = field(default_factory=dict)
    """Regular expressions for parts of names that some files spell otherwise, with what the table has."""
    attributes: Callable[[Sequence[str]], Attributes] = lambda keys: {}
    """What an h5 file says of its groups, from the names of its arrays."""
    labelled: bool = True
    """Whether it has a place for the names of the classes."""
    shards: bool = False
    """Whether the library reads weights in several files with an index."""
    folded: bool = False
    """Whether kernels are standardized in the file, so that it cannot be converted back."""

    def __post_init__(self) -> None:
        if set(self.rows) != set(KINDS):
            raise ValueError(f"layout {self.name} must have one row for each kind of parameter")

    def key(self, place: Place) -> str:
        """The layout's name of a parameter."""
        stage, layer = place.stage, place.layer
        return self.rows[place.kind].template.format(
            stage=stage,
            layer=layer,
            block=stage + 1,
            unit=layer + 1,
            _stage=f"_{stage}" if stage else "",
            _layer=f"_{layer}" if layer else "",
        )

    def axes(self, place: Place) -> str:
        return self.rows[place.kind].axes

    def shape(self, parameter: Parameter) -> tuple[int, ...]:
        """The shape that the parameter's array has in this layout."""
        return Transform(parameter.axes, self.axes(parameter.place)).shape(parameter.shape)

    def place(self, key: str) -> Place | None:
        """The parameter that this layout calls `key`; None if there is none."""
        for spelling, ours in self.spellings.items():
            key = re.sub(spelling, ours, key)
        for kind, pattern in self._patterns.items():
            if match := pattern.fullmatch(key):
                found = {index: int(digits or 0) for index, digits in match.groupdict().items()}
                stage = found.get("stage", found.get("_stage", found.get("block", 1) - 1))
                layer = found.get("layer", found.get("_layer", found.get("unit", 1) - 1))
                place = Place(kind, stage, layer)
                return place if self.key(place) == key and min(stage, layer) >= 0 else None
        return None

    def locate(self, keys: Iterable[str]) -> Located:
        """Which of `keys` names which parameter."""
        located = Located()
        for key in keys:
            place = self.place(key)
            if place is None:
                located.unexpected.append(key)
            else:
                located.keys.setdefault(place, []).append(key)
        return located

    @cached_property
    def _patterns(self) -> dict[str, re.Pattern[str]]:
        return {kind: _pattern(row.template) for kind, row in self.rows.items()}


def _pattern(template: str) -> re.Pattern[str]:
    """Matches what the template may make; `place` checks that it does."""
    seen: set[str] = set()

    def index(match: re.Match[str]) -> str:
        name = match[1]
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?:_(?P<{name}>[0-9]{{1,6}}))?" if name.startswith("_") else f"(?P<{name}>[0-9]{{1,6}})"

    return re.compile(re.sub(r"\\{(_?[a-z]+)(?::02d)?\\}", index, re.escape(template)))


@dataclass
class Located:
    """Foreign names by the parameter they mean; more than one each is a fault."""

    keys: dict[Place, list[str]] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
