"""Compare the tensors that a network needs with those that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from bit.config import BitConfig
from bit.files import short

MAX_PROBLEMS = 12
"""Problems that a message lists; the rest are counted."""
MAX_NAME = 200
"""Most characters of a tensor's name that are shown."""


def mismatches(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> list[str]:
    """List every tensor that is missing, unexpected or misshapen, in this order; empty if all fit.

    Both arguments map tensor names to shapes.
    """
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {_shown(name)}" for name in found if name not in expected]
    return problems + [
        f"misshapen {name}, {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]


def check_size(config: BitConfig, found: Collection[str]) -> None:
    """Raise `ValueError` if a network has more units than there are tensors, before it is built."""
    if (units := sum(config.depths)) > len(found):
        raise ValueError(f"config.json describes {units} units, but there are only {len(found)} tensors")


def listed(problems: Sequence[str], advice: str = "") -> str:
    """Return the first `MAX_PROBLEMS` in one line, and the number of the others, with advice where to see them."""
    rest = len(problems) - MAX_PROBLEMS
    return "; ".join(problems[:MAX_PROBLEMS]) + (f"; and {rest} more{advice}" if rest > 0 else "")


def _shown(name: str) -> str:
    """Return the name of a tensor as it is, or escaped and shortened if it does not fit a line."""
    return name if name.isprintable() and len(name) <= MAX_NAME else short(name)
