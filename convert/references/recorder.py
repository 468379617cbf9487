"""Recording what a checkpoint computes, where nothing is recorded yet, to hold conversions to."""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import convert
from convert.checkpoints.checkpoint import Checkpoint
from convert.errors import CheckpointError
from convert.files.atomic import NewFolder, write_json
from convert.files.base import combined_sha256
from convert.network.inputs import INPUTS, batches
from convert.network.runner import Implementation, walk
from convert.network.taps import Key, Summary, summarize, tap_names
from convert.progress import Progress
from convert.references.recordings import CHECKPOINT_NAME, FLOAT32, RECORDER, SHIPPED, TRUTH, Recording, find
from convert.references.registry import REFERENCES
from convert.references.worker import ReferenceProcess
from convert.verification.candidate import Candidate

FRAMEWORKS = ("pytorch", "keras")
"""Those whose float32 is recorded, as Google's own two codes were; each that is installed."""


def record(
    checkpoint: Checkpoint,
    folder: Path,
    progress: Progress,
    frameworks: tuple[str, ...] = FRAMEWORKS,
    sha256: str | None = None,
) -> Path:
    """Record the taps of an unconverted checkpoint under `folder`: the definition's in float64, others' in float32.

    Where none of the `frameworks` is installed the definition itself runs in float32. `sha256` is
    the checkpoint's, if it was just computed. An earlier record is replaced. Returns the new
    folder. Raises `CheckpointError` for weights that give values which are not finite, for a
    converted checkpoint, and where outputs of the original code are recorded.
    """
    if checkpoint.layout.folded or checkpoint.record is not None:
        raise CheckpointError(f"{checkpoint.path} was converted; record what it was made from")
    sha256 = sha256 or combined_sha256(checkpoint.file.digests())
    known = find(sha256, [folder, SHIPPED])
    if known is not None and not known.own:
        raise CheckpointError(f"outputs of the original code are recorded for {checkpoint.path} already")
    target = _place(folder, checkpoint.name, sha256)
    subject, about = Candidate.source(checkpoint), _about(checkpoint, sha256)
    with NewFolder(target, _foreign, force=True) as output:
        write_json(output.path / CHECKPOINT_NAME, {"name": checkpoint.name, "sha256": sha256})
        truth = subject.definition()
        _run(truth, TRUTH, checkpoint, about, progress).write(output.path / f"definition-{TRUTH}.safetensors")
        available = [name for name in frameworks if REFERENCES[name].missing is None]
        for name in available:
            with ReferenceProcess(REFERENCES[name], checkpoint) as process:
                run = _run(process.load("float32"), FLOAT32, checkpoint, about, progress)
            run.write(output.path / f"{name}-{FLOAT32}.safetensors")
        if not available:
            run = _run(subject.definition(np.float32), FLOAT32, checkpoint, about, progress)
            run.write(output.path / f"definition-{FLOAT32}.safetensors")
        output.commit()
    return target


def _place(folder: Path, name: str, sha256: str) -> Path:
    """The folder of the records: called as the checkpoint, unless another checkpoint of that name has it."""
    plain = folder / name
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        stated = json.loads((plain / CHECKPOINT_NAME).read_text("utf-8"))
        return plain if stated["sha256"] == sha256 else folder / f"{name}-{sha256[:8]}"
    return plain


def _foreign(folder: Path) -> list[str]:
    ours = {CHECKPOINT_NAME}
    return sorted(path.name for path in folder.iterdir() if path.name not in ours and path.suffix != ".safetensors")


def _about(checkpoint: Checkpoint, sha256: str) -> dict[str, Any]:
    return {
        "architecture": checkpoint.config.architecture,
        "classes": checkpoint.config.num_labels,
        "ws_eps": checkpoint.config.ws_eps,
        "sha256": sha256,
        "recorder": RECORDER,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _run(
    implementation: Implementation, dtype: str, checkpoint: Checkpoint, about: Mapping[str, Any], progress: Progress
) -> Recording:
    images = batches(INPUTS, checkpoint.config.num_channels)
    taps: dict[Key, Summary] = {}
    total = len(tap_names(checkpoint.config))
    for done, (tap, values) in enumerate(walk(implementation, checkpoint.config, images), 1):
        for name, value in values.items():
            if not np.isfinite(value).all():
                raise CheckpointError(
                    f"{checkpoint.path}: {tap} of the {name} input is not finite; nothing is recorded"
                )
            taps[name, tap] = summarize(tap, value)
        progress(f"recording {implementation.name} {implementation.dtype}", done, total)
    environment = {"environment": dict(implementation.about)}
    framework = implementation.about["version"]
    name = f"{implementation.name} of bit-convert {convert.__version__}"
    return Recording(name, framework, INPUTS, taps, dtype, {**about, **environment})
