"""Choosing among the published checkpoints."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from convert.errors import CheckpointError, did_you_mean
from convert.published.catalogue import Published, published


def select(
    name: str | None = None,
    architecture: str | None = None,
    data: str | None = None,
    task: str | None = None,
    classes: int | None = None,
) -> list[Published]:
    """The checkpoints that are all of this, whatever the case of letters and, but for names, the punctuation.

    `name` is a part of it, or has `*`, `?` or `[…]` and stands for all of it. Raises
    `CheckpointError`, with the nearest that there is, if nothing like that was published.
    """
    chosen = list(published().values())
    wanted = {"name": name, "architecture": architecture, "data": data, "task": task, "classes": classes}
    for field, value in wanted.items():
        if value is None:
            continue
        found = [item for item in chosen if any(_matches(field, str(value), said) for said in _said(item, field))]
        if not found:
            there = {said for item in chosen for said in _said(item, field)}
            among = f"{len(chosen)} published checkpoints" + (" left" if len(chosen) < len(published()) else "")
            raise CheckpointError(f"none of the {among} has the {field} {value}{did_you_mean(str(value), there)}")
        chosen = found
    return chosen


def _said(item: Published, field: str) -> tuple[str, ...]:
    """What a checkpoint has in a field, in words."""
    value = getattr(item, field)
    return value if isinstance(value, tuple) else (str(value),)


def _matches(field: str, wanted: str, said: str) -> bool:
    wanted, said = wanted.lower(), said.lower()
    if field != "name":
        return re.sub(r"\W", "", wanted) == re.sub(r"\W", "", said)
    return fnmatchcase(said, wanted) if set(wanted) & set("*?[") else wanted in said
