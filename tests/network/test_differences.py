from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from convert.network.differences import describe, explain
from convert.network.dtypes import BFLOAT16, FLOAT16

Array = NDArray[np.float64]
KERNEL = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32).astype(np.float64)
VECTOR = KERNEL[0, 0].reshape(-1)


def with_value(value: float) -> Array:
    changed = KERNEL.copy()
    changed[0, 1, 2, 3] = value
    return changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda k: k, None),
        (lambda k: with_value(0.25), None),
        (lambda k: k + 1e-9, None),
        (lambda k: k + 1e-4, "every value is off by 0.0001"),
        (
            lambda k: with_value(np.nextafter(np.float32(k[0, 1, 2, 3]), np.float32(9))),
            "1 of 576 values differ by a unit",
        ),
        (lambda k: with_value(np.float32(k[0, 1, 2, 3]).byteswap()), "1 of 576 values have their bytes in reverse"),
        (lambda k: with_value(np.inf), "1 of 576 values are not finite"),
        (lambda k: with_value(0), "1 of 576 values are zero"),
        (np.zeros_like, "every value is zero"),
        (np.negative, "every value is negated"),
        (lambda k: BFLOAT16.to_float64(BFLOAT16.from_float64(k)), "every value is rounded to bfloat16"),
        (lambda k: FLOAT16.to_float64(FLOAT16.from_float64(k)), "every value is rounded to float16"),
        (lambda k: k.transpose(1, 0, 3, 2), "rows and columns and input channels and output channels are exchanged"),
        (lambda k: k[:, ::-1, ::-1], "the order of the columns and the input channels is reversed"),
        (lambda k: k[..., [1, 0, *range(2, 8)]], "2 of 8 output channels are in another order"),
        (lambda k: k[:, :, [1, 0, *range(2, 8)]], "2 of 8 input channels are in another order"),
        (lambda k: k * [1, 1, 1, 1, 1, 1, 2, 1], "output channels 6 of 8 are 2 times the expected ones"),
        (lambda k: k * [1, 0, 0, 1, 1, 1, 1, 1], "output channels 1, 2 of 8 are zero"),
        (lambda k: k[..., [0, 0, *range(2, 8)]], "output channels 1 of 8 hold the values of others"),
        (lambda k: k * 0.999, "every value is 0.999 times the expected one"),
        (lambda k: np.random.default_rng(1).standard_normal(k.shape), "the values are unrelated"),
    ],
)
def test_what_was_done_to_a_kernel_is_said(change: Callable[[Array], Array], words: str | None) -> None:
    found = explain(change(KERNEL), KERNEL)
    assert (found is None) if words is None else (found or "").startswith(words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v[::-1], "the order of the values is reversed"),
        (lambda v: np.roll(v, 1), "64 of 64 values are in another order"),
        (lambda v: np.where(np.arange(64) < 60, v, 0), "the last 4 of 64 values are zero"),
    ],
)
def test_what_was_done_to_a_norm_is_said(change: Callable[[Array], Array], words: str) -> None:
    assert (explain(change(VECTOR), VECTOR) or "").startswith(words)


def test_an_array_of_another_shape_is_not_explained() -> None:
    assert explain(VECTOR, VECTOR[1:]) is None


def test_a_difference_without_an_explanation_is_measured() -> None:
    assert describe(with_value(KERNEL[0, 1, 2, 3] * 1.01), KERNEL) == "1 of 576 values differ, by up to 1.00%"
    assert describe(with_value(100), KERNEL).startswith("1 of 576 values differ, ")
    assert describe(with_value(100), KERNEL).endswith(" in relative L2")
    assert describe(-KERNEL, KERNEL) == "every value is negated"
