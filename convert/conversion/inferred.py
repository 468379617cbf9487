"""Infer the plan of a conversion that another program carried out, from the source and the weights that it wrote."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.manifest import InferredManifest, Source
from convert.checkpoints.options import UNCHANGED, ConversionOptions
from convert.conversion.plan import Plan, Step, plan
from convert.conversion.write import origin_of
from convert.files.base import File
from convert.sources.provenance import address

STEM = "stem/kernel"
SCALED = 0.01
"""Largest relative error of a kernel that was scaled and rounded to bfloat16; the factor itself is 10."""


def inferred_plan(source: Checkpoint, found: Checkpoint) -> Plan:
    """Return the plan that leads from `source` to the layout of `found`, with the changes that are seen there.

    These are a head that is missing or replaced, the dtype of each tensor, and kernels scaled for the epsilon of
    the library. Raises `CheckpointError` for a source that cannot be converted.
    """
    changes = replace(
        UNCHANGED,
        head="keep" if source.config.num_labels == found.config.num_labels else "drop",
        ws_eps="compensate" if _is_compensated(source, found) else "keep",
    )
    planned = plan(source, found.layout, changes)
    steps = {step.target.key: _as_stored(step, found) for step in planned.steps}
    dtypes = {step.target.dtype.name for step in steps.values() if step.rounds}
    options = replace(planned.options, dtype=dtypes.pop() if len(dtypes) == 1 else None)
    parts = {name: tuple(steps[step.target.key] for step in part) for name, part in planned.parts.items()}
    return replace(planned, options=options, steps=tuple(steps.values()), parts=parts)


def inferred_manifest(
    planned: Plan, found: Checkpoint, files: Mapping[str, File], source_files: Mapping[str, File]
) -> InferredManifest:
    """Return the manifest of the inferred plan, given the files of both sides.

    Raises `CheckpointError` if a file of the source has changed since an earlier conversion wrote it.
    """
    source, config = planned.checkpoint, planned.config
    place = address(source.path, source_files)
    origin = origin_of(planned, source_files)
    return InferredManifest(
        name=source.name,
        architecture=config.architecture,
        classes=config.num_labels,
        ws_eps=config.ws_eps,
        layout=planned.layout.name,
        options=planned.options,
        origin=origin if source.manifest is not None else replace(origin, address=place),
        source=Source(
            path=os.path.relpath(source.path.resolve(), found.file.path.parent.resolve()),
            layout=source.layout.name,
            container=source.file.container,
            files=dict(source_files),
            address=place,
        ),
        files=dict(files),
        tensors=[step.row for step in planned.steps],
        converter="another program",
    )


def _as_stored(step: Step, found: Checkpoint) -> Step:
    """Return a step with the dtype in which the tensor is stored; a tensor that is missing keeps that of the plan."""
    if step.place not in found.keys:
        return step
    return replace(step, target=replace(step.target, dtype=found.tensor(step.place).dtype))


def _is_compensated(source: Checkpoint, found: Checkpoint) -> bool:
    """Return whether the stem's kernel is scaled as `ws_eps="compensate"` scales it."""
    place = source.place(STEM)
    factor = ConversionOptions(ws_eps="compensate").scale(place, source.config, found.layout)
    if factor == 1.0 or place not in found.keys:
        return False
    right, values = factor * source.weights(STEM), found.weights(STEM)
    if right.shape != values.shape:
        return False
    return bool(((values - right) ** 2).sum() <= (SCALED**2) * (right**2).sum())
