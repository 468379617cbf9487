from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from convert.network.axes import Transform, Workspace, runs


@st.composite
def cases(draw: st.DrawFn) -> tuple[Transform, NDArray[np.float32]]:
    """A permutation of up to four axes with axes of length one in between, and an array for it."""
    letters = draw(st.sampled_from(["n", "cn", "hwi", "hwio"]))
    source = "".join(draw(st.permutations([*letters, *"1" * draw(st.integers(0, 2))])))
    target = "".join(draw(st.permutations([*letters, *"1" * draw(st.integers(0, 2))])))
    shape = [1 if axis == "1" else draw(st.integers(1, 40 if len(letters) < 3 else 9)) for axis in source]
    size = int(np.prod(shape))
    return Transform(source, target), np.arange(size, dtype=np.float32).reshape(shape)


@given(cases())
def test_the_inverse_restores_the_array(case: tuple[Transform, NDArray[np.float32]]) -> None:
    transform, array = case
    there = transform(array)
    assert there.shape == transform.shape(array.shape)
    np.testing.assert_array_equal(transform.inverse(there), array)


@given(cases(), st.integers(1, 3000), st.integers(1, 500))
def test_joined_blocks_equal_the_whole_transform_for_any_workspace(
    case: tuple[Transform, NDArray[np.float32]], slab_bytes: int, block_bytes: int
) -> None:
    transform, array = case
    flat = array.reshape(-1)

    def read(start: int, out: NDArray[np.generic]) -> None:
        out[:] = flat[start : start + out.size]

    blocks = transform.blocks(array.shape, array.dtype, read, Workspace(slab_bytes, block_bytes))
    joined = np.concatenate([block.copy() for block in blocks])
    np.testing.assert_array_equal(joined, transform(array).reshape(-1))


def test_a_tensor_larger_than_the_workspace_is_never_held_whole() -> None:
    array = np.zeros((64, 1000), np.float32)
    largest = 0

    def read(start: int, out: NDArray[np.generic]) -> None:
        nonlocal largest
        largest = max(largest, out.nbytes)
        out[:] = 0

    workspace = Workspace(slab_bytes=8192, block_bytes=2048)
    sizes = [block.nbytes for block in Transform("cn", "nc").blocks(array.shape, array.dtype, read, workspace)]
    assert sum(sizes) == array.nbytes
    assert largest <= 8192
    assert max(sizes) <= 2048


def test_different_axes_are_refused() -> None:
    with pytest.raises(ValueError, match="same axes"):
        Transform("hwio", "oih")


def test_a_unit_axis_must_have_length_one() -> None:
    with pytest.raises(ValueError, match=r"\[2, 1, 3, 4\]"):
        Transform("11cn", "cn").shape((2, 1, 3, 4))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 300), st.data())
def test_joined_runs_equal_the_part_of_the_array(shape: list[int], size: int, data: st.DataObject) -> None:
    array = np.arange(np.prod(shape)).reshape(shape)
    axis = data.draw(st.integers(0, len(shape) - 1))
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, shape[axis] - 1)] * 2)))
    part = slice(first, last + 1)
    expected = np.moveaxis(np.moveaxis(array, axis, 0)[part], 0, axis)
    taken = np.full(expected.shape, -1)
    for start, index in runs(tuple(shape), size, axis, part):
        target = taken[index]
        assert target.size <= size or target.shape[0] == 1
        target[...] = array.reshape(-1)[start : start + target.size].reshape(target.shape)
    np.testing.assert_array_equal(taken, expected)
