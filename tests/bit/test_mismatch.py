from __future__ import annotations

from bit.mismatch import mismatches


def test_nothing_is_reported_if_all_tensors_fit() -> None:
    assert mismatches({"a": (1, 2), "b": ()}, {"b": (), "a": (1, 2)}) == []


def test_missing_unexpected_and_misshapen_tensors_are_reported_in_this_order() -> None:
    expected = {"a": (1,), "b": (2, 3), "c": ()}
    assert mismatches(expected, {"z": (1,), "b": (3, 2), "c": ()}) == [
        "missing a",
        "unexpected z",
        "misshapen b, [3, 2] instead of [2, 3]",
    ]
