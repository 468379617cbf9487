"""Values of JSON that a configuration should not have, for property tests."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

DEEP: list[Any] = []
for _ in range(40):
    DEEP = [DEEP]

odd_values = st.sampled_from(
    [
        *(None, True, False, 0, 1, -1, 2.0, 0.0, 1e308, 5e-324, math.inf, math.nan, 2**31, 2**64, 10**400, -(10**400)),
        *("", "A", "0", "1e-8", "A" * 100_000, "\x1b[31m\n", "\u202e", "SAME", "relu"),
        *([], {}, [[]], [True], ["A", "A"], [0] * 4, [1] * 9, [10**400] * 3, [math.nan] * 3, [1] * 100_000, DEEP),
        *({"0": "cat"}, {"0": "a", "00": "b"}, {" 1": "x"}, {"-1": "x"}, {"1e3": "x"}, {"9" * 5000: "x"}, {"a": {}}),
        *({"height": 1, "width": 1}, {"height": 30_000, "width": 1}, {"shortest_edge": 2048}, {"shortest_edge": 1.5}),
    ]
)


def assert_one_line(error: ValueError) -> None:
    """Check that a message is short and has no control characters."""
    assert str(error).isprintable(), str(error)[:1000]
    assert len(str(error)) < 1000
