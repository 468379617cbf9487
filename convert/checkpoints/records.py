"""Parse the JSON files of a conversion, `conversion.json` and `verification.json`, before a schema is applied."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from bit.files import parse_json

MAX_BYTES = 32 << 20
"""Largest file in bytes: several times what the deepest network and every reference implementation need."""

_PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]*\Z"

Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
"""A number of things; every JSON parser reads it exactly (RFC 8259, section 6)."""
Name = Annotated[str, msgspec.Meta(max_length=255, pattern=_PRINTABLE)]
"""A name as long as that of a file may be, without characters that control a terminal or the direction of text."""
Sentence = Annotated[str, msgspec.Meta(max_length=10_000)]
"""Text for people, which may list several things."""


def parse_record(data: bytes) -> dict[str, Any]:
    """Return the object in a file of strict JSON in which no object holds the same name twice.

    Raises `ValueError` with the reason in one line for anything else, NaN and numbers beyond float64 included.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has {len(data)} bytes, at most {MAX_BYTES} are read")
    try:
        values: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
        parse_json(data)  # only this parser sees names that are there twice
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return values
