"""Read the names of classes from a file: one a line, or JSON."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bit.config import MAX_LABEL, RANGES
from bit.files import MAX_BYTES, check_regular, parse_json, short
from convert.errors import UsageError

KEYS = ("id2label", "label_names")
"""Entries of the `config.json` of transformers and of timm that hold the names."""
MOST = RANGES["num_labels"][1]


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the names of classes in a file, in order.

    The file holds one name a line, or, if it begins with `[` or `{`, JSON: a list of names, an object such as
    `{"0": "cat", "1": "dog"}`, or a `config.json` with such an entry. Raises `OSError`, and `UsageError`, in one
    line that names the file and the place in it, for anything else, for an empty name, for one of more than
    `MAX_LABEL` characters or with characters that cannot be printed, and for a name that is there twice.
    """
    text = _text(path)
    named = _in_json(path, text) if text.lstrip().startswith(("[", "{")) else _in_lines(text)
    places, names = [place for place, _ in named], [name for _, name in named]
    if not names:
        raise UsageError(f"{path} holds no names; write one a line, or a JSON list")
    if (found := fault_of(names)) is not None:
        index, fault = found
        raise UsageError(f"{path}, {places[index]}: {fault}")
    return tuple(names)


def fault_of(names: Sequence[Any]) -> tuple[int, str] | None:
    """Return the index of the first name that cannot be that of a class, and the reason; None if there is none."""
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        fault = f"there are more than {MOST} names" if index >= MOST else _fault(name)
        if fault is None and name in seen:
            fault = f"the name {short(name)} is that of class {seen[name]}, too"
        if fault is not None:
            return index, fault
        seen[name] = index
    if all(name == f"LABEL_{index}" for index, name in enumerate(names)):
        return 0, "these are the names that transformers makes up for classes without names"
    return None


def _text(path: Path) -> str:
    try:
        with open(check_regular(path), "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} is larger than {MAX_BYTES >> 20} MiB, which is not a list of names")
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}, line {line}: it is not UTF-8; save the file as UTF-8") from None


def _in_lines(text: str) -> list[tuple[str, Any]]:
    """Return each line's name with its place; empty lines at the end do not count."""
    lines = text.rstrip().split("\n") if text.strip() else []
    return [(f"line {number}", line.strip()) for number, line in enumerate(lines, 1)]


def _in_json(path: Path, text: str) -> list[tuple[str, Any]]:
    try:
        value = parse_json(text.encode())
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {error.lineno}: it is not valid JSON ({error.msg})") from None
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON ({error})") from None
    if isinstance(value, Mapping):
        value = next((value[key] for key in KEYS if isinstance(value.get(key), Mapping | list)), value)
    if isinstance(value, list):
        return [(f"entry {number}", name) for number, name in enumerate(value, 1)]
    numbers = {str(number) for number in range(len(value))}
    if wrong := sorted(value.keys() - numbers):
        raise UsageError(
            f"{path}: {short(wrong[0])} is not the number of a class; expected the numbers 0 to {len(value) - 1}, "
            "each with a name"
        )
    return [(f"entry {number}", value[str(number)]) for number in range(len(value))]


def _fault(name: Any) -> str | None:
    """Return what is wrong with a name; None if nothing is."""
    if not isinstance(name, str):
        return f"{short(name)} is not a name"
    if not name.strip():
        return "the name is empty"
    if len(name) > MAX_LABEL:
        return f"the name has {len(name)} characters; at most {MAX_LABEL} are accepted"
    return None if name.isprintable() else f"the name {short(name)} has characters that cannot be printed"
