from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from convert.dtypes import BFLOAT16, DTYPES, DType

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
def test_one_value_that_is_not_finite_is_seen(dtype: DType, bad: float) -> None:
    assert dtype.all_finite(bits(VALUES * 100, dtype))
    assert not dtype.all_finite(bits([*VALUES * 100, bad], dtype))


def test_large_values_whose_sum_overflows_are_finite() -> None:
    assert DTYPES[0].all_finite(np.full(100, 3e38, np.float32))
    assert not DTYPES[0].all_finite(np.array([np.inf, -np.inf], np.float32))
