"""The conversion plan: for each tensor of the new file, the source tensor and the changes to apply."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bit.config import BitConfig
from convert.checkpoints.checkpoint import Checkpoint, common_dtype
from convert.checkpoints.epsilon import GOOGLE
from convert.checkpoints.manifest import TensorRow
from convert.checkpoints.options import UNCHANGED, ConversionOptions, is_standardized
from convert.checkpoints.training import TRAINING_NAME, Training
from convert.errors import CheckpointError
from convert.files.base import StoredTensor, Tensor
from convert.files.containers import writer_of
from convert.files.sharded import INDEX_SUFFIX, split
from convert.layouts.layout import Layout
from convert.network.axes import Transform, Workspace
from convert.network.dtypes import FLOAT16, FLOAT32, DType
from convert.network.oracle import standardize
from convert.network.parameters import KINDS, Parameter, Place, parameters

UNDERFLOW = 2
"""Small numbers were lost when the error of rounding exceeds the roundoff by this factor."""


@dataclass(frozen=True)
class Step:
    """The recipe for one tensor of the new file."""

    place: Place
    source: StoredTensor | None
    """None for a new tensor, which is filled with zeros."""
    transform: Transform
    target: Tensor
    scale: float = 1.0
    fold: float | None = None
    """The epsilon with which the kernel is standardized; None if it is not."""

    @property
    def computes(self) -> bool:
        """True if the values are scaled or standardized."""
        return self.scale != 1.0 or self.fold is not None

    @property
    def exact(self) -> bool:
        """True if the inverse transform gives the source's bytes back."""
        return self.source is not None and self.source.dtype == self.target.dtype and not self.computes

    @property
    def rounds(self) -> bool:
        """True if values may be rounded."""
        if self.source is None or self.exact:
            return False
        return self.computes or self.target.dtype.itemsize <= self.source.dtype.itemsize

    @property
    def row(self) -> TensorRow:
        """The tensor's entry in `conversion.json`."""
        row = TensorRow(
            parameter=self.place.name,
            source=None if self.source is None else self.source.key,
            target=self.target.key,
            transform=f"{self.transform.source} -> {self.transform.target}",
            dtype=self.target.dtype.name,
            shape=list(self.target.shape),
        )
        if self.scale != 1.0:
            row["scale"] = self.scale
        if self.fold is not None:
            row["standardized_with_epsilon"] = self.fold
        return row

    def blocks(
        self, checkpoint: Checkpoint, workspace: Workspace, allow_nonfinite: bool = False
    ) -> Iterator[NDArray[np.generic]]:
        """Yield the new tensor's bits in C order, as flat arrays that are each valid until the next.

        Raises `CheckpointError` for NaN or infinity unless `allow_nonfinite`, and for finite values
        that the new dtype cannot hold.
        """
        source, target = self.source, self.target
        if source is None:
            yield np.zeros(target.size, target.dtype.bits)
            return
        if self.fold is not None:
            kernel = checkpoint.weights(self.place.name)
            if not (allow_nonfinite or np.isfinite(kernel).all()):
                raise _not_finite(checkpoint, source)
            moved = Transform(KINDS[self.place.kind], self.transform.target)(standardize(kernel, self.fold))
            yield target.dtype.from_float64(moved).reshape(-1)
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
            rounded = target.dtype.from_float64(values)
            if finite and (reason := _cannot_hold(target.dtype, values, rounded)):
                raise CheckpointError(f"{checkpoint.file.path}: {source.key} {reason}; choose another --dtype")
            yield rounded


@dataclass(frozen=True)
class Plan:
    """A conversion that was decided on and not yet carried out."""

    checkpoint: Checkpoint
    layout: Layout
    options: ConversionOptions
    """With the profile that is written; None if the layout does not state one."""
    config: BitConfig
    """The configuration of the converted network."""
    steps: tuple[Step, ...]
    """One for each tensor, in the order in which the container stores them."""
    parts: Mapping[str, tuple[Step, ...]]
    """The steps by the weights file that they write, in the order of that file."""
    companions: Mapping[str, dict[str, Any]]
    """The content of the JSON files beside the weights, by name."""
    max_shard_size: str | None = None
    """The size by which the weights are split; None if one file holds all."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """Remarks for the user on the source and the options."""
        remarks = [*self.checkpoint.notes, self.checkpoint.assumption]
        if any(step.scale != 1 for step in self.steps):
            remarks.append(
                f"kernels were scaled for the epsilon of {self.layout.name}: use them for inference, because the "
                "other norm of the kernels changes the learning rate of fine-tuning"
            )
        trained, computed = self.config.ws_eps, self.layout.computes_with(self.config.ws_eps)
        if computed != trained != GOOGLE:
            remarks.append(
                f"{self.layout.export.library} computes with epsilon {computed:g} of weight standardization, these "
                f"weights were trained with {trained:g}: --ws-eps compensate scales kernels so that it computes their "
                "function"
            )
        return tuple(remark for remark in remarks if remark)


def plan(
    checkpoint: Checkpoint,
    layout: Layout,
    options: ConversionOptions = UNCHANGED,
    max_shard_size: str | None = None,
) -> Plan:
    """Decide how each tensor of `checkpoint` is written in `layout`.

    `max_shard_size`, such as `5GB`, splits the weights as transformers does. Raises `UsageError` for
    options that the layout does not support, and `CheckpointError` for weights that cannot be converted.
    """
    options = options.for_layout(layout, max_shard_size, checkpoint.own_profile)
    if checkpoint.layout.folded:
        raise CheckpointError(
            f"{checkpoint.file.path}: the kernels are standardized, so the weights cannot be recovered; "
            "convert the checkpoint that this file was made from"
        )
    config = options.config(checkpoint.config, layout)
    planned = [_step(checkpoint, layout, options, parameter) for parameter in parameters(config)]
    steps = {step.target.key: step for step in planned}
    name = layout.export.weights_name.format(name=checkpoint.name)
    tensors = writer_of(layout.export.container).ordered(step.target for step in steps.values())
    dtype = common_dtype(tensor.dtype.name for tensor in tensors)
    companions = layout.export.companions(config, dtype, checkpoint.name, options.profile or "")
    if (training := Training.beside(checkpoint.path)) is not None:
        companions |= {TRAINING_NAME: training.to_dict()}
    names = {name: [tensor.key for tensor in tensors]}
    if max_shard_size is not None:
        names, index = split(tensors, name, max_shard_size)
        companions |= {} if index is None else {name + INDEX_SUFFIX: index}
    return Plan(
        checkpoint,
        layout,
        options,
        config,
        steps=tuple(steps[tensor.key] for tensor in tensors),
        parts={part: tuple(steps[key] for key in keys) for part, keys in names.items()},
        companions=companions,
        max_shard_size=max_shard_size if len(names) > 1 else None,
    )


def _step(checkpoint: Checkpoint, layout: Layout, options: ConversionOptions, parameter: Parameter) -> Step:
    place = parameter.place
    key, shape = layout.key(place), layout.shape(parameter)
    if place.kind.startswith("head/") and options.new_head:
        dtype = options.dtype_of(FLOAT32, layout)
        return Step(place, None, Transform(KINDS[place.kind], layout.axes(place)), Tensor(key, shape, dtype))
    source = checkpoint.tensor(place)
    return Step(
        place,
        source,
        Transform(checkpoint.stored_axes(place), layout.axes(place)),
        Tensor(key, shape, options.dtype_of(source.dtype, layout)),
        options.scale(place, checkpoint.config, layout),
        checkpoint.config.ws_eps if layout.folded and is_standardized(place) else None,
    )


def _cannot_hold(dtype: DType, values: NDArray[np.float64], rounded: NDArray[np.generic]) -> str | None:
    """Say why finite values are beyond the range of a dtype; None if they are not."""
    if not dtype.all_finite(rounded):
        return f"holds values up to {np.abs(values).max():.3g}, which {dtype.name} cannot hold"
    if dtype is FLOAT16:  # the only dtype with a smallest number near the size of weights
        lost = float(np.linalg.norm(dtype.to_float64(rounded) - values) / (np.linalg.norm(values) or 1))
        if lost > UNDERFLOW * dtype.roundoff:
            return f"holds values so small that {dtype.name} is {lost:.1%} off"
    return None


def _not_finite(checkpoint: Checkpoint, tensor: StoredTensor) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.file.path}: {tensor.key} holds NaN or infinity (--allow-nonfinite converts it)"
    )
