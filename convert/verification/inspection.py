"""What a checkpoint is, and what its weights are like: read, and changed in nothing."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.options import is_standardized
from convert.files.base import File, combined_sha256
from convert.layouts import READABLE
from convert.network.parameters import parameters
from convert.progress import Progress
from convert.references import recordings


@dataclass(frozen=True)
class EpsilonCost:
    """What the epsilon of a layout's library does to the filter that suffers most."""

    layout: str
    epsilon: float
    deviation: float
    """By how much the filter's output is smaller, relative: 1 − √((v + ε of the weights) / (v + ε))."""


@dataclass(frozen=True)
class Inspection:
    path: str
    container: str
    layout: str
    architecture: str
    classes: int
    """0: it has no head."""
    dtype: str
    tensors: int
    parameters: int
    bytes: int
    """Of the weights."""
    files: dict[str, File]
    sha256: str
    recorded_outputs: bool
    """Whether outputs of the original code are at hand for these very bytes."""
    ws_eps: float
    """The epsilon that the weights are meant for."""
    zero_head: bool
    """Whether the head is all zeros, as before fine-tuning."""
    nonfinite: tuple[str, ...]
    """The names of tensors that hold NaN or infinity."""
    worst_filter: str
    """The standardized filter of the least variance, `block1/unit01/conv1/kernel[…, 17]`."""
    least_variance: float | None
    epsilon_costs: tuple[EpsilonCost, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect(checkpoint: Checkpoint, progress: Progress) -> Inspection:
    """Read every byte of an opened checkpoint once for its checksums and once for its values.

    Raises `CheckpointError` for a damaged file.
    """
    config, layout = checkpoint.config, checkpoint.layout
    files = checkpoint.file.digests()
    nonfinite: dict[str, None] = {}
    zero_head = config.num_labels > 0
    worst, least = "", math.inf
    count = done = 0
    for parameter in parameters(config):
        tensor = checkpoint.tensor(parameter.place)
        for channels, values in checkpoint.pieces(parameter.name):
            count += values.size
            if not np.isfinite(values).all():
                nonfinite[tensor.key] = None
            elif is_standardized(parameter.place) and not layout.folded:
                variances = values.reshape(-1, values.shape[-1]).var(axis=0)
                index = int(variances.argmin())
                if variances[index] < least:
                    worst, least = f"{parameter.name}[…, {channels.start + index}]", float(variances[index])
            if parameter.place.kind.startswith("head/"):
                zero_head = zero_head and not values.any()
        done += tensor.nbytes
        progress("reading", done, checkpoint.nbytes)
    costs = (
        EpsilonCost(other.name, other.ws_eps, 1 - math.sqrt((least + config.ws_eps) / (least + other.ws_eps)))
        for other in READABLE.values()
        if other.ws_eps != config.ws_eps and math.isfinite(least)
    )
    sha256 = combined_sha256(files)
    return Inspection(
        path=str(checkpoint.file.path),
        container=checkpoint.file.container,
        layout=layout.name,
        architecture=config.architecture,
        classes=config.num_labels,
        dtype=checkpoint.dtype,
        tensors=len(checkpoint.keys),
        parameters=count,
        bytes=checkpoint.nbytes,
        files=files,
        sha256=sha256,
        recorded_outputs=_has_records(checkpoint.record.origin.sha256 if checkpoint.record else sha256),
        ws_eps=config.ws_eps,
        zero_head=zero_head,
        nonfinite=tuple(nonfinite),
        worst_filter=worst,
        least_variance=least if math.isfinite(least) else None,
        epsilon_costs=tuple(costs),
        notes=(*checkpoint.notes, *([checkpoint.assumption] if checkpoint.assumption else [])),
    )


def _has_records(sha256: str) -> bool:
    """Whether outputs of the original code are recorded."""
    records = recordings.find(sha256)
    return records is not None and not records.own
