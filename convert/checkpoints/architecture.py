"""Which network a set of arrays is, by their shapes, and whether a name says the same."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence

from bit.config import BitConfig
from convert.errors import CheckpointError
from convert.layouts.layout import Layout, Located
from convert.network.axes import Transform
from convert.network.parameters import KINDS, Parameter, Place, parameters

STATED = re.compile(r"(?<![a-z0-9])(?:r|resnet|resnetv2_)(\d{2,3})x(\d{1,2})(?![a-z0-9])", re.IGNORECASE)


def infer(layout: Layout, located: Located, shapes: Mapping[str, tuple[int, ...]]) -> BitConfig:
    """The configuration that the arrays' shapes imply, with `num_labels` 0 if there is no head.

    `shapes` are the arrays' own, as `layout` has them. Raises `CheckpointError` when the arrays
    from which sizes are read are missing or cannot be BiT's.
    """

    def lengths(*kinds: str, stage: int = 0) -> Mapping[str, int]:
        """The axis lengths of the first array of these kinds whose axes are what they should be."""
        for place in (
            place for kind in kinds for place in sorted(by_stage.get((kind, stage), []), key=lambda p: p.layer)
        ):
            with contextlib.suppress(ValueError):
                transform = Transform(layout.axes(place), KINDS[place.kind])
                return dict(zip(transform.target, transform.shape(shapes[located.keys[place][0]]), strict=True))
        wanted = " or ".join(layout.key(Place(kind, stage)) for kind in kinds)
        raise CheckpointError(f"{wanted} is missing or misshapen ({found_in_words(shapes)})")

    by_stage: dict[tuple[str, int], list[Place]] = {}
    units: dict[int, int] = {}
    for place in located.keys:
        by_stage.setdefault((place.kind, place.stage), []).append(place)
        if place.kind.startswith("unit/"):
            units[place.stage] = max(units.get(place.stage, 0), place.layer + 1)
    stages = max(units, default=-1) + 1
    if not units:
        raise CheckpointError(
            f"holds no units of a BiT network under the names of {layout.name} ({found_in_words(shapes)})"
        )
    if stages + sum(units.values()) > len(shapes):
        raise CheckpointError(f"its names count more units than it has arrays ({found_in_words(shapes)})")
    sizes = [lengths("unit/conv3/kernel", "unit/projection/kernel", stage=stage)["o"] for stage in range(stages)]
    stem = {"i": 3, "o": lengths("unit/conv1/kernel")["i"]}
    if Place("stem/kernel") in located.keys:
        stem |= lengths("stem/kernel")
    heads = {Place("head/kernel"), Place("head/bias")}
    try:
        return BitConfig(
            num_channels=stem["i"],
            embedding_size=stem["o"],
            hidden_sizes=tuple(sizes),
            depths=tuple(units[stage] for stage in range(stages)),
            num_labels=lengths("head/kernel", "head/bias")["n"] if heads & located.keys.keys() else 0,
        )
    except ValueError as error:
        raise CheckpointError(f"its shapes are not those of a BiT network: {error}") from None


def bind(
    config: BitConfig, layout: Layout, located: Located, shapes: Mapping[str, tuple[int, ...]]
) -> dict[Place, str]:
    """The name of each parameter's array.

    Raises `CheckpointError`, whose `problems` name every array that is missing, unexpected,
    present twice or of another shape than the configuration gives it.
    """
    expected = parameters(config)
    problems = list(_faults(expected, layout, located, shapes))
    if problems:
        raise CheckpointError(
            f"does not hold a BiT {config.architecture}: {_listed(problems)} "
            f"(found {len(shapes)} arrays, expected {len(expected)})",
            problems,
        )
    return {parameter.place: located.keys[parameter.place][0] for parameter in expected}


def _faults(
    expected: Sequence[Parameter], layout: Layout, located: Located, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    surplus = dict(located.keys)
    for parameter in expected:
        keys = surplus.pop(parameter.place, [])
        name, shape = layout.key(parameter.place), layout.shape(parameter)
        if not keys:
            yield f"missing {name}"
        if len(keys) > 1:
            yield f"duplicate {' and '.join(keys)}, both {name}"
        for key in keys:
            if shapes[key] != shape:
                yield f"misshapen {key}, {list(shapes[key])} instead of {list(shape)}"
    for key in (*located.unexpected, *(key for keys in surplus.values() for key in keys)):
        yield f"unexpected {key}"


def check_name(name: str, config: BitConfig) -> None:
    """Raise `CheckpointError` if `name` states an architecture other than that of `config`."""
    for layers, width in STATED.findall(name):
        stated = f"R{int(layers)}x{int(width)}"
        if stated != config.architecture:
            raise CheckpointError(
                f"the name {name} says {stated}, but its arrays are those of {config.architecture} "
                f"(a stem of {config.embedding_size} channels, {'-'.join(map(str, config.depths))} units); "
                "if the arrays are what you want, rename the file"
            )


def found_in_words(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What a file holds instead of what was looked for, in short."""
    names = list(shapes)
    return f"found {len(names)} arrays: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"


def _listed(problems: list[str], most: int = 12) -> str:
    rest = len(problems) - most
    return "; ".join(problems[:most]) + (f"; and {rest} more (--json lists all)" if rest > 0 else "")
