"""The plan of a conversion: for each tensor of the new file, where it comes from and what is done to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.options import ConversionOptions, is_standardized
from convert.errors import CheckpointError
from convert.files.base import StoredTensor, Tensor
from convert.layouts.layout import Layout
from convert.network.axes import Transform, Workspace
from convert.network.dtypes import FLOAT16, FLOAT32, DType
from convert.network.oracle import standardize
from convert.network.parameters import KINDS, Place, parameters

UNDERFLOW = 2
"""Rounding that is off by more than so many times the roundoff has lost small numbers."""


@dataclass(frozen=True)
class Step:
    """One tensor's way from source to sink."""

    place: Place
    source: StoredTensor | None
    """None for what is new: zeros."""
    transform: Transform
    target: Tensor
    scale: float = 1.0
    fold: float | None = None
    """The epsilon with which the kernel is standardized, if it is."""

    @property
    def exact(self) -> bool:
        """Whether the inverse transform gives the source's bytes back."""
        return (
            self.source is not None
            and self.source.dtype == self.target.dtype
            and self.scale == 1.0
            and self.fold is None
        )

    @property
    def rounds(self) -> bool:
        """Whether elements may be other numbers afterwards than were meant."""
        if self.exact or self.source is None:
            return False
        widened = self.target.dtype.itemsize > self.source.dtype.itemsize
        return not widened or self.scale != 1.0 or self.fold is not None

    @property
    def row(self) -> dict[str, Any]:
        """What `conversion.json` says of it."""
        changes = {} if self.scale == 1.0 else {"scale": self.scale}
        changes |= {} if self.fold is None else {"standardized_with_epsilon": self.fold}
        return {
            "parameter": self.place.name,
            "source": None if self.source is None else self.source.key,
            "target": self.target.key,
            "transform": f"{self.transform.source} -> {self.transform.target}",
            "dtype": self.target.dtype.name,
            "shape": list(self.target.shape),
            **changes,
        }

    def blocks(
        self, checkpoint: Checkpoint, workspace: Workspace, allow_nonfinite: bool = False
    ) -> Iterator[NDArray[np.generic]]:
        """The new tensor's bits in C order, in flat arrays, each valid until the next.

        Raises `CheckpointError` for NaN or infinity unless `allow_nonfinite`, and for finite values
        that the new dtype cannot hold.
        """
        source, target = self.source, self.target
        if source is None:
            yield np.zeros(target.size, target.dtype.bits)
            return
        if self.fold is not None:
            yield self._folded(checkpoint, self.fold, allow_nonfinite)
            return

        def read(start: int, out: NDArray[np.generic]) -> None:
            checkpoint.file.read(source, start, out)

        for block in self.transform.blocks(source.stored_shape, source.dtype.bits, read, workspace):
            finite = source.dtype.all_finite(block)
            if not (finite or allow_nonfinite):
                raise _not_finite(checkpoint, source)
            if self.exact:
                yield block
                continue
            values = source.dtype.to_float64(block)
            values = values * self.scale if self.scale != 1.0 else values
            altered = target.dtype.from_float64(values)
            if finite and (fault := _cannot_hold(target.dtype, values, altered)):
                raise CheckpointError(f"{checkpoint.file.path}: {source.key} {fault}; choose another --dtype")
            yield altered

    def _folded(self, checkpoint: Checkpoint, epsilon: float, allow_nonfinite: bool) -> NDArray[np.generic]:
        """The kernel, standardized in float64 as a whole."""
        kernel = checkpoint.weights(self.place.name)
        if not (allow_nonfinite or np.isfinite(kernel).all()):
            raise _not_finite(checkpoint, checkpoint.tensor(self.place))
        moved = Transform(KINDS[self.place.kind], self.transform.target)(standardize(kernel, epsilon))
        return self.target.dtype.from_float64(moved).reshape(-1)


def _cannot_hold(dtype: DType, values: NDArray[np.float64], rounded: NDArray[np.generic]) -> str | None:
    """Why finite values are beyond the range of a dtype, in words; None if they are not."""
    if not dtype.all_finite(rounded):
        return f"holds values up to {np.abs(values).max():.3g}, which {dtype.name} cannot hold"
    if dtype is FLOAT16:  # the one whose smallest numbers lie among those of weights
        lost = float(np.linalg.norm(dtype.to_float64(rounded) - values) / (np.linalg.norm(values) or 1))
        if lost > UNDERFLOW * dtype.roundoff:
            return f"holds values so small that {dtype.name} is {lost:.1%} off"
    return None


def _not_finite(checkpoint: Checkpoint, tensor: StoredTensor) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.file.path}: {tensor.key} holds NaN or infinity (--allow-nonfinite converts it)"
    )


def plan(checkpoint: Checkpoint, layout: Layout, changes: ConversionOptions) -> list[Step]:
    """Every step, in the order of the new file: members of an npz by name, else the forward pass's.

    In safetensors larger elements come first, so that each is aligned.
    """
    changes.check(layout)
    if checkpoint.layout.folded:
        raise CheckpointError(
            f"{checkpoint.file.path}: its kernels are standardized already, the weights are gone; "
            "convert what it was made from"
        )
    steps = []
    for parameter in parameters(changes.config(checkpoint.config, layout)):
        place = parameter.place
        key, shape = layout.key(place), layout.shape(parameter)
        if place.kind.startswith("head/") and changes.new_head:
            dtype = changes.dtype_of(FLOAT32, layout)
            steps.append(Step(place, None, Transform(KINDS[place.kind], layout.axes(place)), Tensor(key, shape, dtype)))
            continue
        source = checkpoint.tensor(place)
        transform = Transform(checkpoint.stored_axes(place), layout.axes(place))
        target = Tensor(key, shape, changes.dtype_of(source.dtype, layout))
        scale = changes.scale(place, checkpoint.config, layout)
        fold = checkpoint.config.ws_eps if layout.folded and is_standardized(place) else None
        steps.append(Step(place, source, transform, target, scale, fold))
    if layout.container == "npz":
        return sorted(steps, key=lambda step: step.target.key)
    if layout.container == "safetensors":
        return sorted(steps, key=lambda step: -step.target.dtype.itemsize)
    return steps
