"""Permuting the axes of an array that is read and written piece by piece.

A transform is two strings of axis letters, `hwio` → `oihw` say; a `1` is an axis of length one.
Its inverse is the same two strings exchanged, so nothing can be forgotten in one direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

STRIP = 16
"""Rows moved together when transposing: 16 float32 values fill one 64-byte cache line of the
target, and a strip of them stays in the first-level cache while its columns are walked."""

Element = TypeVar("Element", bound=np.generic)

ReadInto = Callable[[int, NDArray[np.generic]], None]
"""`read(start, out)` fills the flat array `out` with the elements from index `start` on."""


class Workspace:
    """The memory in which tensors are transposed, used again for each; touched only as far as needed."""

    def __init__(self, slab_bytes: int = 160 << 20, block_bytes: int = 1 << 20) -> None:
        # 160 MiB hold the largest 3×3 kernel that was published, 144 MiB in R152x4; a block that was
        # transposed is checked and written from the second-level cache.
        self.slab_bytes = slab_bytes
        self.block_bytes = block_bytes
        self._slab = np.empty(slab_bytes, np.uint8)
        self._block = np.empty(block_bytes, np.uint8)

    def slab(self, size: int, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
        """A flat array for what is read, uninitialized."""
        self._slab, array = _view(self._slab, size, dtype)
        return array

    def block(self, size: int, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
        """A flat array for what is yielded, uninitialized."""
        self._block, array = _view(self._block, size, dtype)
        return array


def _view(
    buffer: NDArray[np.uint8], size: int, dtype: np.dtype[np.generic]
) -> tuple[NDArray[np.uint8], NDArray[np.generic]]:
    if buffer.size < size * dtype.itemsize:
        buffer = np.empty(size * dtype.itemsize, np.uint8)
    return buffer, buffer[: size * dtype.itemsize].view(dtype)


@dataclass(frozen=True)
class Transform:
    """From an array whose axes are `source` to one whose axes are `target`."""

    source: str
    target: str

    def __post_init__(self) -> None:
        if sorted(self.source.replace("1", "")) != sorted(self.target.replace("1", "")):
            raise ValueError(f"{self.source} and {self.target} do not name the same axes")

    @property
    def inverse(self) -> Transform:
        return Transform(self.target, self.source)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The target's shape for a source of `shape`. Raises `ValueError` if `shape` cannot be `source`."""
        lengths = self._lengths(shape)
        return tuple(lengths.get(axis, 1) for axis in self.target)

    def __call__(self, array: NDArray[Element]) -> NDArray[Element]:
        """The whole array at once, as a view where NumPy can."""
        lengths = self._lengths(array.shape)
        letters = self.source.replace("1", "")
        squeezed = array.reshape([lengths[axis] for axis in letters])
        moved = squeezed.transpose([letters.index(axis) for axis in self.target.replace("1", "")])
        return moved.reshape(self.shape(array.shape))

    def blocks(
        self, shape: tuple[int, ...], dtype: np.dtype[np.generic], read: ReadInto, workspace: Workspace
    ) -> Iterator[NDArray[np.generic]]:
        """The target's elements in C order, as flat contiguous arrays, each valid until the next.

        A tensor larger than the workspace is read in slabs along the target's first axis.
        """
        source, order = self._merged(shape)
        axes, lengths = list(source), list(source.values())
        permutation = [axes.index(axis) for axis in order]
        plain = permutation == sorted(permutation)
        first = permutation[0]
        rows, before, after = lengths[first], math.prod(lengths[:first]), math.prod(lengths[first + 1 :])
        row_bytes = before * after * dtype.itemsize
        step = max(1, min(rows, workspace.block_bytes // row_bytes))
        window = step if first == 0 else max(step, min(rows, workspace.slab_bytes // row_bytes))
        for start in range(0, rows, window):
            count = min(window, rows - start)
            slab = workspace.slab(before * count * after, dtype)
            if first == 0 or count == rows:
                read(start * after, slab)
            else:  # one run of elements for each index of the axes before
                for index, run in enumerate(slab.reshape(before, count * after)):
                    read((index * rows + start) * after, run)
            if plain:
                yield slab
                continue
            moved = slab.reshape(*lengths[:first], count, *lengths[first + 1 :]).transpose(permutation)
            for offset in range(0, count, step):
                piece = moved[offset : offset + step]
                block = workspace.block(piece.size, dtype)
                _copy_in_strips(piece, block.reshape(piece.shape))
                yield block

    def _lengths(self, shape: tuple[int, ...]) -> dict[str, int]:
        if len(shape) != len(self.source) or any(n != 1 for a, n in zip(self.source, shape, strict=True) if a == "1"):
            raise ValueError(f"an array of shape {list(shape)} does not have the axes {self.source}")
        return {axis: length for axis, length in zip(self.source, shape, strict=True) if axis != "1"}

    def _merged(self, shape: tuple[int, ...]) -> tuple[dict[str, int], list[str]]:
        """Axes that stay neighbours become one; the source's with their lengths, and the target's order."""
        lengths = self._lengths(shape)
        target = "".join(axis for axis in self.target if lengths.get(axis, 1) != 1)
        letters = [axis for axis in self.source if lengths.get(axis, 1) != 1]
        merged: dict[str, int] = {}
        for axis in letters:
            last = next(reversed(merged), "")
            if last and last + axis in target:
                merged[last + axis] = merged.pop(last) * lengths[axis]
            else:
                merged[axis] = lengths[axis]
        if not merged:
            return {"": 1}, [""]
        return merged, sorted(merged, key=target.index)


def _copy_in_strips(source: NDArray[np.generic], target: NDArray[np.generic]) -> None:
    """`target[...] = source` where `source` is a transposed view `[rows, columns, …]`."""
    for start in range(0, source.shape[1], STRIP):
        target[:, start : start + STRIP] = source[:, start : start + STRIP]


def runs(
    shape: tuple[int, ...], size: int, axis: int = 0, part: slice = slice(None)
) -> Iterator[tuple[int, tuple[int | slice, ...]]]:
    """The pieces that lie whole in an array in C order: where each begins, and its index in what is taken.

    Taken is the `part` of the indices along `axis`; a piece has at most `size` elements, or one index
    of its first axis.
    """
    strides = [math.prod(shape[number + 1 :]) for number in range(len(shape))]
    chosen = range(shape[axis])[part]
    taken = (*shape[:axis], len(chosen), *shape[axis + 1 :])
    first = chosen.start * strides[axis]
    depth, inner = len(shape), 1
    while depth and taken[depth - 1] == shape[depth - 1] and inner * shape[depth - 1] <= size:
        depth -= 1
        inner *= shape[depth]
    if not depth:
        yield 0, ()
        return
    step = max(1, size // inner)
    for leading in np.ndindex(*taken[: depth - 1]):
        begin = first + sum(index * stride for index, stride in zip(leading, strides, strict=False))
        for start in range(0, taken[depth - 1], step):
            yield begin + start * inner, (*leading, slice(start, start + step))
