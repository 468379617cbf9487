from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from convert.network.dtypes import BFLOAT16, DTYPES, DType

VALUES = [0.0, -1.5, 3e-5, 60000.0]


def bits(values: list[float], dtype: DType) -> NDArray[np.generic]:
    if dtype is BFLOAT16:
        return np.array(values, ml_dtypes.bfloat16).view(np.uint16)
    return np.array(values, dtype.bits)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_float64_holds_every_value_exactly(dtype: DType) -> None:
    stored = np.array(VALUES, ml_dtypes.bfloat16 if dtype is BFLOAT16 else dtype.bits)
    np.testing.assert_array_equal(dtype.to_float64(bits(VALUES, dtype)), stored.astype(np.float64))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_noticed(dtype: DType, bad: float) -> None:
    assert dtype.all_finite(bits(VALUES * 100, dtype))
    assert not dtype.all_finite(bits([*VALUES * 100, bad], dtype))


def test_large_values_whose_sum_overflows_are_finite() -> None:
    assert DTYPES[0].all_finite(np.full(100, 3e38, np.float32))
    assert not DTYPES[0].all_finite(np.array([np.inf, -np.inf], np.float32))


@given(st.lists(st.floats(allow_nan=False, width=64), min_size=1, max_size=50))
def test_rounding_to_bfloat16_takes_the_nearest_number_and_ties_to_even(values: list[float]) -> None:
    """Expected values are searched among all positive bfloat16 numbers, which are ordered like their bits."""
    bits = np.arange(0x7F80, dtype=np.uint16)
    numbers = BFLOAT16.to_float64(bits)
    found = BFLOAT16.from_float64(np.array(values))
    for value, rounded in zip(values, found.tolist(), strict=True):
        above = int(np.searchsorted(numbers, abs(value)))
        candidates = [index for index in (above - 1, above) if 0 <= index < len(bits)]
        # Infinity begins halfway between the largest number and the next one in sequence.
        if abs(value) >= numbers[-1] + (numbers[-1] - numbers[-2]) / 2:
            expected = 0x7F80
        else:
            expected = min(
                candidates, key=lambda index: (abs(Fraction(numbers[index]) - Fraction(abs(value))), index % 2)
            )
        assert rounded & 0x7FFF == expected
        assert rounded >> 15 == (math.copysign(1, value) < 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_a_nan_that_signals_is_converted_without_a_warning(dtype: DType) -> None:
    signalling = {2: 0x7F81 if dtype is BFLOAT16 else 0x7D00, 4: 0x7FA00000, 8: 0x7FF4 << 48}[dtype.itemsize]
    stored = np.array([signalling], f"u{dtype.itemsize}").view(dtype.bits)
    assert np.isnan(dtype.to_float64(stored)).all()
    for target in DTYPES:
        assert not target.all_finite(target.from_float64(np.array([0x7FF4 << 48], np.uint64).view(np.float64)))


def test_nan_stays_nan_in_bfloat16() -> None:
    assert np.isnan(BFLOAT16.to_float64(BFLOAT16.from_float64(np.array([np.nan, -np.nan])))).all()
