from __future__ import annotations

import pytest

from bit.config import BitConfig
from bit.mismatch import MAX_PROBLEMS, check_size, listed, mismatches


def test_nothing_is_reported_if_all_tensors_fit() -> None:
    assert mismatches({"a": (1, 2), "b": ()}, {"b": (), "a": (1, 2)}) == []


def test_missing_unexpected_and_misshapen_tensors_are_reported_in_this_order() -> None:
    expected = {"a": (1,), "b": (2, 3), "c": ()}
    assert mismatches(expected, {"z": (1,), "b": (3, 2), "c": ()}) == [
        "missing a",
        "unexpected z",
        "misshapen b, [3, 2] instead of [2, 3]",
    ]


def test_names_that_do_not_fit_a_line_are_escaped_and_shortened() -> None:
    escape, long = mismatches({}, {"\x1b[2J\n": (1,), "x" * 5000: (1,)})
    assert escape == r"unexpected '\x1b[2J\n'"
    assert len(long) < 200


def test_a_message_lists_the_first_problems_and_counts_the_others() -> None:
    problems = [f"missing {number}" for number in range(MAX_PROBLEMS + 3)]
    assert listed(problems[:2]) == "missing 0; missing 1"
    assert listed(problems, " (see there)").endswith(f"missing {MAX_PROBLEMS - 1}; and 3 more (see there)")


def test_a_network_with_more_units_than_tensors_is_refused() -> None:
    check_size(BitConfig(), [str(number) for number in range(16)])
    with pytest.raises(ValueError, match="describes 16 units, but there are only 15 tensors"):
        check_size(BitConfig(), [str(number) for number in range(15)])
