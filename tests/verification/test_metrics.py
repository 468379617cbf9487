from __future__ import annotations

import numpy as np
import pytest

from convert.network.taps import summarize
from convert.verification.metrics import relative_l2, summary_error
from convert.verification.results import Check

ONES = np.ones((2, 3))


def test_the_error_is_relative_to_the_expected_values() -> None:
    assert relative_l2(ONES * 1.5, ONES) == pytest.approx(0.5)
    assert relative_l2(ONES, ONES) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_on_either_side_never_agree(bad: float) -> None:
    spoiled = ONES.copy()
    spoiled[0, 0] = bad
    assert relative_l2(spoiled, ONES) == relative_l2(ONES, spoiled) == relative_l2(spoiled, spoiled) == np.inf


def test_empty_arrays_and_other_shapes_never_agree() -> None:
    assert relative_l2(ONES, ONES.T) == np.inf
    assert relative_l2(np.empty(0), np.empty(0)) == np.inf
    assert summary_error({}, {}) == np.inf
    assert summary_error({"stats": ONES}, {"stats": ONES, "sample": ONES}) == np.inf


def test_comparing_in_blocks_gives_the_same_error(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    found, expected = rng.normal(size=(2, 3, 5, 7))
    whole = relative_l2(found, expected)
    monkeypatch.setattr("convert.verification.metrics.AT_ONCE", 8)
    assert relative_l2(found, expected) == pytest.approx(whole, rel=1e-14)
    found[-1, -1, -1] = np.nan
    assert relative_l2(found, expected) == np.inf


def test_float32_values_are_compared_in_float64() -> None:
    assert relative_l2(np.float32([1e30]), np.float32([1e30])) == 0


def test_a_large_tap_is_kept_as_statistics_and_a_sample() -> None:
    summary = summarize("block1/unit01", np.arange(1000.0).reshape(1, 10, 10, 10))
    assert summary["stats"].tolist() == [499.5, pytest.approx(288.675, abs=1e-3), 0, 999]
    assert summary["sample"].shape == (512,)


def test_an_error_that_is_not_a_number_does_not_pass() -> None:
    assert not Check("r", "i", "converted", "float64", "end-to-end", "square", "logits", float("nan"), 1e-9).passed
    assert Check("r", "i", "converted", "float64", "end-to-end", "square", "logits", 1e-9, 1e-9).passed
