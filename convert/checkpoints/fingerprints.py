"""Fingerprints of what a conversion must keep, so that it can be compared without the source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bit.config import BitConfig
from convert.checkpoints.checkpoint import Checkpoint
from convert.network.axes import Transform, Workspace
from convert.network.dtypes import BY_NAME, DType
from convert.network.parameters import KINDS, Place, parameters


def fingerprints(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the fingerprints of a checkpoint: of every parameter by canonical name, and of the classes.

    Those of the parameters do not depend on the layout: they are hashed in the canonical axes, in the stored dtype.
    """
    workspace, found = Workspace(), {}
    for item in parameters(checkpoint.config):
        dtype = checkpoint.tensor(item.place).dtype
        found[item.name] = f"{dtype.name} {_sha256(checkpoint, item.place, dtype, workspace)}"
    return {"parameters": found, "labels": of_classes(checkpoint.config)}


def changed_parameters(expected: Mapping[str, str], checkpoint: Checkpoint, skipped: str | None = None) -> list[str]:
    """Return the parameters, by canonical name, whose values are not those with the `expected` fingerprints.

    A wider dtype with the same values is no change. Names that begin with `skipped` are not compared.
    """
    workspace, changed = Workspace(), []
    for item in parameters(checkpoint.config):
        if skipped is not None and item.name.startswith(skipped):
            continue
        name, _, sha256 = expected.get(item.name, "").partition(" ")
        if name not in BY_NAME or _sha256(checkpoint, item.place, BY_NAME[name], workspace) != sha256:
            changed.append(item.name)
    return changed


def of_classes(config: BitConfig) -> str:
    """Return the fingerprint of the names of the classes, in order, and of the kind of problem."""
    stated = [sorted((config.id2label or {}).items()), config.problem_type]
    return hashlib.sha256(json.dumps(stated).encode()).hexdigest()


def _sha256(checkpoint: Checkpoint, place: Place, dtype: DType, workspace: Workspace) -> str | None:
    """Hash a parameter in the canonical axes, as `dtype`; return None if that cannot hold the values."""
    tensor, digest = checkpoint.tensor(place), hashlib.sha256()

    def read(start: int, out: NDArray[np.generic]) -> None:
        checkpoint.file.read(tensor, start, out)

    transform = Transform(checkpoint.stored_axes(place), KINDS[place.kind])
    for block in transform.blocks(tensor.stored_shape, tensor.dtype.bits, read, workspace):
        bits = block
        if tensor.dtype is not dtype:
            values = tensor.dtype.to_float64(block)
            bits = dtype.from_float64(values)
            if not np.array_equal(dtype.to_float64(bits), values, equal_nan=True):
                return None
        digest.update(np.ascontiguousarray(bits).view(np.uint8).data)
    return digest.hexdigest()
