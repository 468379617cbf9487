"""Operators on the tables of names and axes: what a converter with a wrong row writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import permutations
from random import Random

from mutants.mutant import Operator
from mutants.networks import Base

from convert.layouts.layout import Layout, Row
from convert.network.axes import Transform
from convert.network.parameters import KINDS, Parameter, Place, parameters


@dataclasses.dataclass(frozen=True)
class Wrong(Layout):
    """A table that writes parameters under the names of others, with other axes, or under no known name."""

    renamed: Mapping[Place, Place] = dataclasses.field(default_factory=dict)
    lost: Place | None = None
    row: Mapping[Place, str] = dataclasses.field(default_factory=dict)
    """Other letters of the axes for one parameter."""

    def key(self, place: Place) -> str:
        if place == self.lost:
            return "unused/" + super().key(place) if "/" in super().key(place) else "unused." + super().key(place)
        return super().key(self.renamed.get(place, place))

    def axes(self, place: Place) -> str:
        return self.row.get(place) or super().axes(place)


def _wrong(base: Base, **changes: object) -> Wrong:
    fields = {item.name: getattr(base.layout, item.name) for item in dataclasses.fields(Layout)}
    return Wrong(**{**fields, **changes})  # type: ignore[arg-type]


def _shapes(base: Base) -> dict[Place, tuple[int, ...]]:
    return {item.place: item.shape for item in parameters(base.config)}


def _kinds(base: Base) -> list[str]:
    return list(dict.fromkeys(place.kind for place in base.places.values()))


def _fits(base: Base, renamed: Mapping[Place, Place]) -> bool:
    shapes = _shapes(base)
    return bool(renamed) and all(shapes.get(new) == shapes[old] for old, new in renamed.items())


def _pairs(base: Base) -> list[str]:
    """Return pairs of kinds whose rows can be exchanged in some place."""
    kinds = _kinds(base)
    return [f"{a} and {b}" for i, a in enumerate(kinds) for b in kinds[i + 1 :] if _fits(base, _swap(base, a, b))]


def _swap(base: Base, first: str, second: str) -> dict[Place, Place]:
    """Exchange two rows wherever both have the same shape."""
    shapes, renamed = _shapes(base), dict[Place, Place]()
    for place in base.places.values():
        if place.kind == first:
            other = Place(second, place.stage, place.layer)
            if shapes.get(other) == shapes[place]:
                renamed |= {place: other, other: place}
    return renamed


def _exchange(base: Base, place: str, rng: Random) -> Layout:
    first, _, second = place.partition(" and ")
    return _wrong(base, renamed=_swap(base, first, second))


def _cycle(base: Base, chosen: Iterable[Place], by: str) -> dict[Place, Place]:
    """Move parameters to the next unit of their stage, or to the next stage; the last takes the place of the first."""
    renamed, shapes = dict[Place, Place](), _shapes(base)
    groups: dict[tuple[object, ...], list[Place]] = {}
    for place in chosen:
        if place.kind.startswith("unit/"):
            fixed = place.stage if by == "layer" else place.layer
            groups.setdefault((place.kind, fixed, shapes[place]), []).append(place)
    for group in groups.values():
        renamed |= dict(zip(group, [*group[1:], group[0]], strict=True)) if len(group) > 1 else {}
    return renamed


def _moved(by: str, whole: bool) -> tuple[Callable[[Base], Sequence[str]], Callable[[Base, str, Random], Layout]]:
    def chosen(base: Base, kind: str) -> list[Place]:
        return [place for place in base.places.values() if whole or place.kind == kind]

    def places(base: Base) -> list[str]:
        kinds = ["every row"] if whole else _kinds(base)
        return [kind for kind in kinds if _cycle(base, chosen(base, kind), by)]

    def apply(base: Base, place: str, rng: Random) -> Layout:
        return _wrong(base, renamed=_cycle(base, chosen(base, place), by))

    return places, apply


def _axes(base: Base, name: str) -> list[str]:
    """Return every other order of the axes in which the array has the same shape."""
    place, layout = base.places[name], base.layout
    item = Parameter(place, base.weights[name].shape)
    letters, expected = layout.axes(place), layout.shape(item)
    found = {"".join(order) for order in permutations(letters)} - {letters}
    return sorted(axes for axes in found if Transform(item.axes, axes).shape(item.shape) == expected)


def _ordered(base: Base) -> list[str]:
    return [f"{name} as {axes}" for name in base.places for axes in _axes(base, name)]


def _reorder(base: Base, place: str, rng: Random) -> Layout:
    name, _, axes = place.partition(" as ")
    return _wrong(base, row={base.places[name]: axes})


def _row_orders(base: Base) -> list[str]:
    """Return orders of the axes that every array of a kind allows."""
    found = []
    for kind in _kinds(base):
        orders = [set(_axes(base, name)) for name, place in base.places.items() if place.kind == kind]
        found += [f"{kind} as {axes}" for axes in sorted(set.intersection(*orders))]
    return found


def _reorder_row(base: Base, place: str, rng: Random) -> Layout:
    kind, _, axes = place.partition(" as ")
    return _wrong(base, rows={**base.layout.rows, kind: Row(base.layout.rows[kind].template, axes)})


def _untransformed(base: Base, name: str) -> str | None:
    """Return the axes that an array has if it is written as it lies in the source."""
    from convert.layouts import LAYOUTS

    place = base.places[name]
    target, source = base.layout.axes(place), LAYOUTS[base.layouts[0]].axes(place)
    shape = base.weights[name].shape
    fits = Transform(KINDS[place.kind], source).shape(shape) == Transform(KINDS[place.kind], target).shape(shape)
    return source if source != target and fits else None


def _doubled(base: Base, name: str) -> str | None:
    """Return the axes that an array has if the transform is applied twice."""
    from convert.layouts import LAYOUTS

    place = base.places[name]
    target, source = base.layout.axes(place), LAYOUTS[base.layouts[0]].axes(place)
    if len(source) != len(target) or sorted(source) != sorted(target) or "1" in source:
        return None
    order = [source.index(letter) for letter in target]
    twice = "".join(target[index] for index in order)
    shape = base.weights[name].shape
    fits = Transform(KINDS[place.kind], twice).shape(shape) == Transform(KINDS[place.kind], target).shape(shape)
    return twice if twice != target and fits else None


def _with_axes(
    find: Callable[[Base, str], str | None],
) -> tuple[Callable[[Base], Sequence[str]], Callable[[Base, str, Random], Layout]]:
    def places(base: Base) -> list[str]:
        return [name for name in base.places if find(base, name)]

    def apply(base: Base, place: str, rng: Random) -> Layout:
        return _wrong(base, row={base.places[place]: find(base, place)})

    return places, apply


def _misspelt(base: Base, place: str, rng: Random) -> Layout:
    return _wrong(base, lost=base.places[place])


_EXCHANGED = "are exchanged|holds the values of|in another order|rolled"
_ORDER = "exchanged|mirrored|turned|reshape|another order|shifted|values differ|unrelated"
_SIZE = "the permuted axes have length 1, so that the array is the same"
OPERATORS = (
    Operator("layout tables", "two rows of one shape exchanged", _EXCHANGED, _pairs, _exchange),
    Operator("layout tables", "one row off by one unit", _EXCHANGED, *_moved("layer", False)),
    Operator("layout tables", "one row off by one stage", _EXCHANGED, *_moved("stage", False)),
    Operator("layout tables", "every row off by one unit", _EXCHANGED, *_moved("layer", True)),
    Operator("layout tables", "every row off by one stage", _EXCHANGED, *_moved("stage", True)),
    Operator("layout tables", "another order of one array's axes", _ORDER, _ordered, _reorder, _SIZE),
    Operator("layout tables", "another order of a row's axes", _ORDER, _row_orders, _reorder_row, _SIZE),
    Operator("layout tables", "transform left out", _ORDER, *_with_axes(_untransformed), _SIZE),
    Operator("layout tables", "transform applied twice", _ORDER, *_with_axes(_doubled), _SIZE),
    Operator("layout tables", "name misspelt", "missing|unknown|unused", lambda base: list(base.places), _misspelt),
)
