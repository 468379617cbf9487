"""Compare the tensors that a network needs with those that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping


def mismatches(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> list[str]:
    """List every tensor that is missing, unexpected or misshapen, in this order; empty if all fit.

    Both arguments map tensor names to shapes.
    """
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in expected]
    return problems + [
        f"misshapen {name}, {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
