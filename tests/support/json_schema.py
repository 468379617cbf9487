"""The part of JSON Schema (draft 2020-12) that the tests use; no validator is among the dependencies."""

from __future__ import annotations

import re
from typing import Any

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
KNOWN = {
    "$schema", "$id", "$ref", "$defs", "title", "description", "type", "const", "pattern", "format", "required",
    "properties", "additionalProperties", "items", "minItems", "minimum", "anyOf",
}  # fmt: skip


def faults(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None, place: str = "$") -> list[str]:
    """Return where a value of JSON is not what the schema asks for. Fails for keywords that are not known here."""
    root = schema if root is None else root
    assert schema.keys() <= KNOWN, schema.keys() - KNOWN
    if "$ref" in schema:
        target: Any = root
        for name in schema["$ref"].removeprefix("#/").split("/"):
            target = target[name]
        return faults(value, target, root, place)
    options = [faults(value, option, root, place) for option in schema.get("anyOf", [])]
    wrong = list(options[0]) if options and all(options) else []
    if "type" in schema:
        right = isinstance(value, TYPES[schema["type"]])
        if not right or (isinstance(value, bool) and schema["type"] != "boolean"):
            return [f"{place} is not of the type {schema['type']}"]
    if "const" in schema and value != schema["const"]:
        wrong.append(f"{place} is not {schema['const']!r}")
    if "pattern" in schema and not re.search(schema["pattern"], value):
        wrong.append(f"{place} does not match {schema['pattern']}")
    if schema.get("format") == "uri" and not re.fullmatch(r"[a-z][a-z0-9+.-]*:[!-~]+", value):
        wrong.append(f"{place} is not a URI")
    if schema.get("format") == "date-time" and not re.fullmatch(r"\d{4}(-\d\d){2}T\d\d(:\d\d){2}(\.\d+)?Z", value):
        wrong.append(f"{place} is not a time in UTC")
    if "minimum" in schema and value < schema["minimum"]:
        wrong.append(f"{place} is less than {schema['minimum']}")
    if "minItems" in schema and len(value) < schema["minItems"]:
        wrong.append(f"{place} has too few items")
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        wrong += [f"{place}.{name} is missing" for name in schema.get("required", []) if name not in value]
        for name, item in value.items():
            below = properties.get(name, others)
            if below is False:
                wrong.append(f"{place}.{name} is not known")
            elif isinstance(below, dict):
                wrong += faults(item, below, root, f"{place}.{name}")
    if isinstance(value, list) and "items" in schema:
        wrong += [
            fault for n, item in enumerate(value) for fault in faults(item, schema["items"], root, f"{place}[{n}]")
        ]
    return wrong
