"""A library's names and axes for BiT's parameters, as a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from bit.config import BitConfig
from convert.network.axes import Transform
from convert.network.parameters import KINDS, Parameter, Place

Attributes = Mapping[str, Mapping[str, Any]]
"""The attributes of each group of an h5 file by the group's path; the root is `/`."""
Companions = Callable[[BitConfig, str, str, str], dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Row:
    """The name template of one kind of parameter, and the letters of the axes in this layout.

    In the template `{block}` and `{unit}` count from 1, `{stage}` and `{layer}` from 0; `{_stage}` and
    `{_layer}` are empty for the first and `_1`, `_2`, … for the others.
    """

    template: str
    axes: str


@dataclass(frozen=True)
class Export:
    """Settings for writing a layout: container, file names and the JSON files beside the weights."""

    library: str
    """The library that defines the names, for people to read."""
    container: str
    """`safetensors`, `npz`, `h5`, `keras` or `onnx`."""
    weights_name: str = "model.safetensors"
    """Name of the weights file; `{name}` stands for the checkpoint's name."""
    loading: str = ""
    """Python that loads a converted folder; `{folder}` and `{name}` stand for the folder and the checkpoint's name."""
    caveat: Callable[[BitConfig], str | None] = lambda config: None
    """Returns a warning for users of the library about a network, or None."""
    companions: Companions = lambda config, dtype, name, profile: {}
    """Returns the JSON files that the library reads beside the weights, from the configuration and the
    names of the dtype, the checkpoint and the preprocessing profile."""
    profile: str | None = None
    """The preprocessing profile used by default; None if the layout does not state preprocessing."""
    stated: Callable[[BitConfig, Mapping[str, Any]], BitConfig] = lambda config, values: config
    """Returns the configuration with what only the library's `config.json` states added.

    Raises `ValueError` where that contradicts the arrays or describes a network other than BiT.
    """
    attributes: Callable[[Sequence[str]], Attributes] = lambda keys: {}
    """Returns the group attributes of an h5 file from the names of the arrays."""
    labelled: bool = True
    """True if the layout stores class names."""
    shards: bool = False
    """True if the library reads weights that are split into several files with an index."""


@dataclass(frozen=True)
class Layout:
    """A naming table, and how files with these names are written."""

    name: str
    rows: Mapping[str, Row]
    """One row for each of `parameters.KINDS`. The three norms and convolutions of a unit may share a row: `{n}`
    in the kind and the template stands for 1, 2 and 3, and `{abc}` in the template for a, b and c."""
    ws_eps: float
    """The weight-standardization epsilon of the library that defines the layout."""
    export: Export
    spellings: Mapping[str, str] = field(default_factory=dict)
    """Regular expressions for parts of names that some files spell differently, with the table's spelling."""
    folded: bool = False
    """True if kernels are standardized in the file, so that it cannot be converted back."""

    def __post_init__(self) -> None:
        rows = {
            kind.replace("{n}", n): Row(row.template.replace("{n}", n).replace("{abc}", letter), row.axes)
            for kind, row in self.rows.items()
            for n, letter in (("1", "a"), ("2", "b"), ("3", "c"))
        }
        object.__setattr__(self, "rows", rows)
        if set(rows) != set(KINDS):
            raise ValueError(f"layout {self.name} must have one row for each kind of parameter")

    def key(self, place: Place) -> str:
        """Return the layout's name of a parameter."""
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
        """Return the letters of a parameter's axes."""
        return self.rows[place.kind].axes

    def shape(self, parameter: Parameter) -> tuple[int, ...]:
        """Return the shape of a parameter's array in this layout."""
        return Transform(parameter.axes, self.axes(parameter.place)).shape(parameter.shape)

    def place(self, key: str) -> Place | None:
        """Return the parameter that this layout calls `key`, or None if it has no such name."""
        for spelling, ours in self.spellings.items():
            key = re.sub(spelling, ours, key)
        for kind, row in self.rows.items():
            if match := _pattern(row.template).fullmatch(key):
                found = {index: int(digits or 0) for index, digits in match.groupdict().items()}
                stage = found.get("stage", found.get("_stage", found.get("block", 1) - 1))
                layer = found.get("layer", found.get("_layer", found.get("unit", 1) - 1))
                place = Place(kind, stage, layer)
                return place if self.key(place) == key and min(stage, layer) >= 0 else None
        return None

    def locate(self, keys: Iterable[str]) -> dict[Place, list[str]]:
        """Return the names in `keys` by the parameter that they name; two names for one parameter are an error."""
        located: dict[Place, list[str]] = {}
        for key in keys:
            if (place := self.place(key)) is not None:
                located.setdefault(place, []).append(key)
        return located


@cache
def _pattern(template: str) -> re.Pattern[str]:
    """Return a pattern for every name that the template can give; `place` rejects the other names it matches."""
    seen: set[str] = set()

    def index(match: re.Match[str]) -> str:
        name = match[1]
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?:_(?P<{name}>[0-9]{{1,6}}))?" if name.startswith("_") else f"(?P<{name}>[0-9]{{1,6}})"

    return re.compile(re.sub(r"\\{(_?[a-z]+)(?::02d)?\\}", index, re.escape(template)))
