"""Describe a checkpoint and the values of the weights without changing anything (`bit inspect`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.options import is_standardized
from convert.files.base import File, combined_sha256
from convert.layouts import READABLE
from convert.network.parameters import parameters
from convert.progress import Progress
from convert.references.recordings import find_recordings
from convert.verification.results import to_builtins


@dataclass(frozen=True)
class EpsilonCost:
    """The effect of a library's epsilon on the filter that suffers most from it.

    `deviation` is the relative decrease of the filter's output, negative for an increase: with variance v,
    1 − √((v + ε of the weights) / (v + ε of the library)).
    """

    layout: str
    epsilon: float
    deviation: float


@dataclass(frozen=True)
class Inspection:
    """The result of `bit inspect`."""

    path: str
    container: str
    layout: str
    architecture: str
    classes: int
    """0 if the network has no head."""
    dtype: str
    tensors: int
    parameters: int
    bytes: int
    """Size of the weights."""
    files: Mapping[str, File]
    sha256: str
    recorded_outputs: bool
    """True if a recording of the original code exists for these bytes."""
    ws_eps: float
    """The epsilon that the weights are meant for."""
    zero_head: bool
    """True if the head is all zeros, as before fine-tuning."""
    nonfinite: tuple[str, ...]
    """Tensors that hold NaN or infinity."""
    worst_filter: str
    """The standardized filter with the smallest variance, such as `block1/unit01/conv1/kernel[…, 17]`."""
    least_variance: float | None
    epsilon_costs: tuple[EpsilonCost, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the output of `bit inspect --json`."""
        return to_builtins(self)


@np.errstate(over="ignore", invalid="ignore")  # of weights beyond 1e150, and of a NaN that signals
def inspect(checkpoint: Checkpoint, progress: Progress) -> Inspection:
    """Read every byte of an opened checkpoint once for the checksums and once for the values.

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
        if other.computes_with(config.ws_eps) != config.ws_eps and math.isfinite(least)
    )
    sha256 = combined_sha256(files)
    recordings = find_recordings(checkpoint.manifest.origin.sha256 if checkpoint.manifest else sha256)
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
        recorded_outputs=recordings is not None and not recordings.own,
        ws_eps=config.ws_eps,
        zero_head=zero_head,
        nonfinite=tuple(nonfinite),
        worst_filter=worst,
        least_variance=least if math.isfinite(least) else None,
        epsilon_costs=tuple(costs),
        notes=(*checkpoint.notes, *([checkpoint.assumption] if checkpoint.assumption else [])),
    )
