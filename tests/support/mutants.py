"""JSON with one to three values replaced by odd ones, removed, repeated, or exchanged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import Any

ODD = (
    *("null", "[]", "{}", "-1", "0", "1", "2", "1.5", "-0.0", "true", "false", "NaN", "Infinity"),
    *("1e400", "1e-400", "1" + "0" * 400, "1" + "0" * 5000, "9007199254740993"),
    *('""', '"x"', '"float16"', '"../../x"', '"<img src=x onerror=alert(1)>"'),
    *('"\\u0000"', '"\\ud800"', '"\\u202e"', '"a\\nb"', '"' + "A" * 100_000 + '"'),
    *("[" * 200 + "]" * 200, "[[]]", "[null]", '{"a": 1}'),
)
"""JSON in which no reader should trust: types, ranges, sizes and depths that do not fit."""
MARK = "\u0001"
"""Part of no name or value in a record."""


def mutated(data: bytes, random: Random) -> bytes:
    """Return JSON with some values changed. Fields at every depth are tried alike."""
    values, replacements = json.loads(data), list[str]()
    places = [place for place in _places(values) if place]
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        depth = random.randint(1, 6)
        near = [place for place in places if len(place) == depth] or places
        *path, last = random.choice(near)
        owner = _at(values, path)
        if _at(owner, [last]) is None:
            continue
        match random.choice(("replace", "replace", "replace", "delete", "repeat", "exchange", "retype")):
            case "replace":
                owner[last] = f"{MARK}{len(replacements)}"
                replacements.append(random.choice(ODD))
            case "delete":
                del owner[last]
            case "repeat" if isinstance(owner, list):
                owner.append(owner[last])
            case "repeat":
                owner[f"{last}{MARK}"] = owner[last]
            case "exchange":
                owner[last] = json.loads(json.dumps(_at(values, random.choice(near))))
            case "retype":
                owner[last] = [owner[last]] if isinstance(owner[last], str) else str(owner[last])
    text, mark = json.dumps(values), json.dumps(MARK)[1:-1]
    for number, replacement in enumerate(replacements):
        text = text.replace(f'"{mark}{number}"', replacement)
    return text.replace(mark, "").encode("utf-8")


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _places(item, (*place, key))


def _at(value: Any, path: Any) -> Any:
    """Return a value inside another, None if an earlier change has removed it."""
    for key in path:
        try:
            value = value[key]
        except (LookupError, TypeError):
            return None
    return value
