"""Infer the architecture from the shapes of the tensors, and check that the checkpoint's name agrees."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping

from bit.checks import listed, mismatches
from bit.config import BitConfig
from convert.errors import CheckpointError
from convert.layouts.layout import Layout
from convert.network.axes import Transform
from convert.network.parameters import KINDS, Place, parameters

STATED = re.compile(r"(?<![a-z0-9])(?:r|resnet|resnetv2_)(\d{2,3})x(\d{1,2})(?![a-z0-9])", re.IGNORECASE)
"""An architecture in a name, such as R50x1 in `BiT-M-R50x1` or `resnetv2_50x1_bit`."""

Shapes = Mapping[str, tuple[int, ...]]
Located = Mapping[Place, list[str]]
"""The names in a file by the parameter that they name."""


def infer(layout: Layout, located: Located, shapes: Shapes) -> BitConfig:
    """Return the configuration that the tensors' shapes imply, with `num_labels` 0 if there is no head.

    `shapes` are those of the stored arrays, in the axes of `layout`. Raises `CheckpointError` when the
    tensors from which sizes are read are missing or cannot belong to a BiT network.
    """
    places = sorted(located, key=lambda place: place.layer)
    units = {place.stage: place.layer + 1 for place in places if place.kind.startswith("unit/")}  # the last one counts
    if not units:
        raise CheckpointError(f"has no units of a BiT network in the layout {layout.name} ({found_in_words(shapes)})")
    depths = tuple(units.get(stage, 0) for stage in range(max(units) + 1))
    if len(depths) + sum(depths) > len(shapes):
        raise CheckpointError(f"the names count more units than there are tensors ({found_in_words(shapes)})")
    by_stage: dict[tuple[str, int], list[Place]] = {}
    for place in places:
        by_stage.setdefault((place.kind, place.stage), []).append(place)

    def lengths(*kinds: str, stage: int = 0) -> Mapping[str, int]:
        """Return the axis lengths of the first tensor of these kinds that has the expected axes."""
        for place in (place for kind in kinds for place in by_stage.get((kind, stage), [])):
            with contextlib.suppress(ValueError):
                transform = Transform(layout.axes(place), KINDS[place.kind])
                return dict(zip(transform.target, transform.shape(shapes[located[place][0]]), strict=True))
        names = " or ".join(layout.key(Place(kind, stage)) for kind in kinds)
        raise CheckpointError(f"{names} is missing or misshapen ({found_in_words(shapes)})")

    sizes = [lengths("unit/conv3/kernel", "unit/projection/kernel", stage=stage)["o"] for stage in range(len(depths))]
    stem = {"i": 3, "o": lengths("unit/conv1/kernel")["i"]}
    if Place("stem/kernel") in located:
        stem |= lengths("stem/kernel")
    has_head = located.keys() & {Place("head/kernel"), Place("head/bias")}
    try:
        return BitConfig(
            num_channels=stem["i"],
            embedding_size=stem["o"],
            hidden_sizes=tuple(sizes),
            depths=depths,
            num_labels=lengths("head/kernel", "head/bias")["n"] if has_head else 0,
        )
    except ValueError as error:
        raise CheckpointError(f"the shapes are not those of a BiT network: {error}") from None


def bind(config: BitConfig, layout: Layout, located: Located, shapes: Shapes) -> dict[Place, str]:
    """Return the stored name of each parameter.

    Raises `CheckpointError`; `problems` names every tensor that is missing, unexpected, stored twice
    or of another shape than the configuration gives it.
    """
    stored, problems = match(config, layout, located, shapes)
    if problems:
        counts = f"found {len(shapes)} tensors, expected {len(parameters(config))}"
        found = listed(problems, " (--json lists all)")
        raise CheckpointError(f"does not hold a BiT {config.architecture}: {found} ({counts})", problems)
    return stored


def match(
    config: BitConfig, layout: Layout, located: Located, shapes: Shapes
) -> tuple[dict[Place, str], tuple[str, ...]]:
    """Return the stored name of each parameter that is there in the right shape, and every problem in words."""
    expected = parameters(config)
    stored = {place: keys[0] for place, keys in located.items()}
    problems = [
        f"duplicate {' and '.join(keys)}, both {layout.key(place)}" for place, keys in located.items() if len(keys) > 1
    ]
    aliases = {key for keys in located.values() for key in keys[1:]}
    problems += mismatches(
        {stored.get(item.place, layout.key(item.place)): layout.shape(item) for item in expected},
        {key: shape for key, shape in shapes.items() if key not in aliases},
    )
    fitting = {
        item.place: stored[item.place]
        for item in expected
        if item.place in stored and tuple(shapes[stored[item.place]]) == layout.shape(item)
    }
    return fitting, tuple(problems)


def check_name(name: str, config: BitConfig) -> None:
    """Raise `CheckpointError` if `name` states another architecture than that of `config`."""
    for layers, width in STATED.findall(name):
        stated = f"R{int(layers)}x{int(width)}"
        if stated != config.architecture:
            raise CheckpointError(
                f"the name {name} states {stated}, but the tensors are those of {config.architecture} "
                f"(a stem of {config.embedding_size} channels, {'-'.join(map(str, config.depths))} units); "
                "if the tensors are the ones you want, rename the file"
            )


def found_in_words(shapes: Shapes) -> str:
    """Say briefly what a file holds."""
    names = list(shapes)
    return f"found {len(names)} tensors: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
