"""Permute the axes of an array that is read and written piece by piece.

A transform is two strings of axis letters, `hwio` → `oihw` for example; a `1` is an axis of length
one. The inverse transform exchanges the two strings.
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
target, and a strip of them stays in the first-level cache while the columns are walked."""

Element = TypeVar("Element", bound=np.generic)

ReadInto = Callable[[int, NDArray[np.generic]], None]
"""`read(start, out)` fills the flat array `out` with the elements from index `start` onwards."""


class Workspace:
    """Memory in which tensors are transposed, reused for each; pages are touched only as far as needed."""

    def __init__(self, slab_bytes: int = 160 << 20, block_bytes: int = 1 << 20) -> None:
        # 160 MiB hold the largest 3×3 kernel that was published, 144 MiB in R152x4; a transposed
        # block is checked and written from the second-level cache.
        self.slab_bytes, self.block_bytes = slab_bytes, block_bytes
        self._buffers = {"slab": np.empty(slab_bytes, np.uint8), "block": np.empty(block_bytes, np.uint8)}

    def array(self, name: str, size: int, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
        """Return a flat, uninitialized array: a `slab` of elements that are read, or a `block` that is yielded."""
        nbytes = size * dtype.itemsize
        if self._buffers[name].size < nbytes:
            self._buffers[name] = np.empty(nbytes, np.uint8)
        return self._buffers[name][:nbytes].view(dtype)


@dataclass(frozen=True)
class Transform:
    """A permutation of an array with the axes `source` into one with the axes `target`."""

    source: str
    target: str

    def __post_init__(self) -> None:
        if sorted(self.source.replace("1", "")) != sorted(self.target.replace("1", "")):
            raise ValueError(f"{self.source} and {self.target} do not have the same axes")

    @property
    def inverse(self) -> Transform:
        return Transform(self.target, self.source)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the target's shape for a source of `shape`. Raises `ValueError` if that does not fit the axes."""
        lengths = self._lengths(shape)
        return tuple(lengths.get(axis, 1) for axis in self.target)

    def __call__(self, array: NDArray[Element]) -> NDArray[Element]:
        """Return the whole array permuted, as a view where NumPy can. Raises `ValueError` like `shape`."""
        lengths = self._lengths(array.shape)
        order = [list(lengths).index(axis) for axis in self.target.replace("1", "")]
        return array.reshape(*lengths.values()).transpose(order).reshape(self.shape(array.shape))

    def blocks(
        self, shape: tuple[int, ...], dtype: np.dtype[np.generic], read: ReadInto, workspace: Workspace
    ) -> Iterator[NDArray[np.generic]]:
        """Yield the target's elements in C order, as flat contiguous arrays, each valid until the next.

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
            slab = workspace.array("slab", before * count * after, dtype)
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
                block = workspace.array("block", piece.size, dtype)
                shaped = block.reshape(piece.shape)
                for column in range(0, piece.shape[1], STRIP):
                    shaped[:, column : column + STRIP] = piece[:, column : column + STRIP]
                yield block

    def _lengths(self, shape: tuple[int, ...]) -> dict[str, int]:
        if len(shape) != len(self.source) or any(n != 1 for a, n in zip(self.source, shape, strict=True) if a == "1"):
            raise ValueError(f"shape {list(shape)} does not fit the axes {self.source}")
        return {axis: length for axis, length in zip(self.source, shape, strict=True) if axis != "1"}

    def _merged(self, shape: tuple[int, ...]) -> tuple[dict[str, int], list[str]]:
        """Merge axes that stay neighbours; return the source's with their lengths, and the target's order."""
        lengths = {axis: length for axis, length in self._lengths(shape).items() if length != 1}
        target = "".join(axis for axis in self.target if axis in lengths)
        merged: dict[str, int] = {}
        for axis, length in lengths.items():
            last = next(reversed(merged), "")
            if last and last + axis in target:
                merged[last + axis] = merged.pop(last) * length
            else:
                merged[axis] = length
        merged = merged or {"": 1}
        return merged, sorted(merged, key=target.index)


def runs(
    shape: tuple[int, ...], size: int, axis: int = 0, part: slice = slice(None)
) -> Iterator[tuple[int, tuple[int | slice, ...]]]:
    """Yield contiguous pieces of the `part` of an array in C order along `axis`.

    Each is the offset of the first element in the array, and the index in the part. A piece has at
    most `size` elements, or one index of the first axis.
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
