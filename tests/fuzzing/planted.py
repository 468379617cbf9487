"""A reader with a fault, which a campaign must find."""

from __future__ import annotations

import json

from fuzzing import mutators
from fuzzing.readers import Reader, Workplace

from convert.errors import CheckpointError


def _read(place: Workplace, data: bytes) -> None:
    try:
        width = json.loads(data)["width"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"refused: {error}") from None
    if isinstance(width, int):
        100 // width


READERS = {"planted": Reader(_read, lambda place: {"valid.json": b'{"height": 3, "width": 4}'}, mutators.json)}
