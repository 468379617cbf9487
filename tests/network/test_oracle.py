from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.networks import TINY

from convert.layouts.google import GOOGLE
from convert.network import oracle
from convert.network.inputs import images
from convert.network.parameters import ALL, parameters
from convert.network.runner import run_network
from convert.network.taps import tap_names
from convert.sources.synthetic import parameter

rng = np.random.default_rng(0)


def test_standardized_filters_have_mean_zero_and_variance_one() -> None:
    kernel = oracle.standardize(rng.normal(3, 2, (3, 3, 8, 5)), 0.0)
    np.testing.assert_allclose(kernel.mean(axis=(0, 1, 2)), 0, atol=1e-14)
    np.testing.assert_allclose(kernel.var(axis=(0, 1, 2)), 1, rtol=1e-14)


def test_epsilon_is_inside_the_root_and_the_variance_is_biased() -> None:
    kernel = np.array([-1.0, 1.0]).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(oracle.standardize(kernel, 3.0).reshape(-1), [-0.5, 0.5])


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 7]), st.sampled_from([1, 2]))
def test_a_convolution_equals_the_sum_over_each_window(height: int, width: int, size: int, stride: int) -> None:
    x, kernel = rng.normal(size=(2, height, width, 3)), rng.normal(size=(size, size, 3, 4))
    margin = size // 2
    padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    expected = np.array(
        [
            [
                np.einsum("nhwi,hwio->no", padded[:, row : row + size, column : column + size], kernel)
                for column in range(0, width, stride)
            ]
            for row in range(0, height, stride)
        ]
    ).transpose(2, 0, 1, 3)
    np.testing.assert_allclose(oracle.convolve(x, kernel, stride), expected, atol=1e-12)


def test_group_norm_centers_each_group_of_each_image() -> None:
    x = rng.normal(5, 3, (2, 4, 4, 8))
    y = oracle.group_norm(x, np.ones(8), np.zeros(8), 2).reshape(2, 16, 2, 4)
    np.testing.assert_allclose(y.mean(axis=(1, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(y.var(axis=(1, 3)), 1, rtol=1e-4)


def test_the_stem_is_pooled_with_a_border_of_zeros() -> None:
    pooled = oracle.max_pool(np.full((1, 6, 6, 1), -1.0))[0, :, :, 0]
    np.testing.assert_array_equal(pooled, [[0, 0, 0], [0, -1, -1], [0, -1, -1]])


def test_every_parameter_is_read_once_and_every_tap_is_yielded_once() -> None:
    listed = {item.name: item for item in parameters(TINY)}
    read: list[str] = []

    def weights(name: str, channels: slice = ALL) -> np.ndarray:  # type: ignore[type-arg]
        read.append(name)
        item = listed[name]
        values = parameter(GOOGLE.key(item.place), GOOGLE.shape(item)).reshape(item.shape).astype(np.float64)
        return values[..., channels]

    taps = [tap for tap, _ in run_network(oracle.Oracle(weights, TINY), TINY, {"small": images(0, 1, 33, 32)})]
    assert taps == tap_names(TINY)
    assert sorted(read) == sorted(listed)


@pytest.mark.parametrize(("count", "height", "width"), [(2, 224, 224), (1, 193, 257)])
def test_inputs_are_images_in_range(count: int, height: int, width: int) -> None:
    made = images(1, count, height, width)
    assert made.shape == (count, height, width, 3)
    assert made.dtype == np.float32
    assert -1 <= made.min() < -0.5
    assert 0.5 < made.max() <= 1
