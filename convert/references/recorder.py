"""Record the outputs of a checkpoint, so that conversions can be compared with them without it."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.epsilon import GOOGLE
from convert.checkpoints.fingerprints import fingerprints
from convert.errors import CheckpointError, UsageError
from convert.files.atomic import NewFolder, write_json
from convert.files.base import combined_sha256
from convert.network.inputs import INPUTS, batches
from convert.network.runner import Implementation, run_network
from convert.network.taps import Key, Summary, summarize, tap_names
from convert.progress import Progress, tracked
from convert.references.recordings import CHECKPOINT, RECORDER, SHIPPED, RecordedCheckpoint, Recording, find_recordings
from convert.references.registry import REFERENCES
from convert.references.worker import ReferenceProcess

FRAMEWORKS = ("pytorch", "keras")
"""References that are recorded in float32, if installed: in the frameworks of Google's own two codes."""


def record(
    checkpoint: Checkpoint,
    folder: Path,
    progress: Progress,
    frameworks: tuple[str, ...] = FRAMEWORKS,
    sha256: str | None = None,
    inputs: Mapping[str, tuple[int, int, int, int]] = INPUTS,
) -> Path:
    """Record the taps of an unconverted checkpoint in a new folder inside `folder`, and return that.

    The oracle runs in float64, the `frameworks` in float32; if none of them is installed, so does
    the oracle. `sha256` is that of the checkpoint, if it was just computed; `inputs` are the seed, count,
    height and width of the images. Earlier recordings of the checkpoint are replaced. Raises
    `UsageError` for the folder of the project's recordings, and `CheckpointError` for a converted
    checkpoint, for one whose outputs are shipped with the project, and for outputs that are not finite.
    """
    if folder.resolve().is_relative_to(SHIPPED.resolve()):
        raise UsageError(f"{folder} is the folder of the project's own recordings; choose another")
    if checkpoint.layout.folded or checkpoint.manifest is not None:
        raise CheckpointError(f"{checkpoint.path} was converted; record the checkpoint that it was made from")
    sha256 = sha256 or combined_sha256(checkpoint.file.digests())
    known = find_recordings(sha256, [folder, SHIPPED], checkpoint.config.ws_eps)
    if known is not None and not known.own:
        raise CheckpointError(f"outputs of the original code are recorded for {checkpoint.path} already")
    about = {
        "architecture": checkpoint.config.architecture,
        "classes": checkpoint.config.num_labels,
        "ws_eps": checkpoint.config.ws_eps,
        "sha256": sha256,
        "recorder": RECORDER,
        **fingerprints(checkpoint),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    target = _target(folder, checkpoint, sha256)
    with NewFolder(target, _foreign, force=True) as output, contextlib.closing(_runs(checkpoint, frameworks)) as runs:
        write_json(output.path / CHECKPOINT, msgspec.to_builtins(RecordedCheckpoint(checkpoint.name, sha256)))
        for name, implementation in runs:
            recording = _recording(implementation, checkpoint, about, inputs, progress)
            recording.write(output.path / f"{name}-{recording.dtype}.safetensors")
        output.commit()
    return target


def ensure_recorded(
    checkpoint: Checkpoint, sha256: str, folders: Sequence[Path], progress: Progress
) -> tuple[str, ...]:
    """Record an unconverted checkpoint in the last folder unless a recording exists; return the reason if that fails.

    `sha256` is that of the checkpoint.
    """
    try:
        if checkpoint.manifest is None and find_recordings(sha256, folders, checkpoint.config.ws_eps) is None:
            record(checkpoint, folders[-1], progress, frameworks=(), sha256=sha256)
    except (CheckpointError, OSError, MemoryError) as error:
        return (f"nothing was recorded: {str(error) or 'out of memory'}",)
    return ()


def _target(folder: Path, checkpoint: Checkpoint, sha256: str) -> Path:
    """Return the folder of a checkpoint's recordings; another checkpoint of the same name may have the plain one.

    The same weights may be recorded with another epsilon, too.
    """
    ws_eps = checkpoint.config.ws_eps
    name = checkpoint.name if ws_eps == GOOGLE else f"{checkpoint.name}-ws-eps-{ws_eps:g}"
    with contextlib.suppress(OSError, ValueError):
        if RecordedCheckpoint.read(folder / name).sha256 != sha256:
            return folder / f"{name}-{sha256[:8]}"
    return folder / name


def _foreign(folder: Path) -> list[str]:
    names = (path.name for path in folder.iterdir() if path.suffix != ".safetensors")
    return sorted(name for name in names if name != CHECKPOINT)


def _runs(checkpoint: Checkpoint, frameworks: tuple[str, ...]) -> Generator[tuple[str, Implementation]]:
    """Yield the implementations to record, by the names of their files."""
    yield "oracle", checkpoint.oracle()
    installed = [REFERENCES[name] for name in frameworks if REFERENCES[name].missing is None]
    for reference in installed:
        with ReferenceProcess(reference, checkpoint) as process:
            yield reference.name, process.load("float32")
    if not installed:
        yield "oracle", checkpoint.oracle(np.float32)


def _recording(
    implementation: Implementation,
    checkpoint: Checkpoint,
    about: Mapping[str, Any],
    inputs: Mapping[str, tuple[int, int, int, int]],
    progress: Progress,
) -> Recording:
    run = run_network(implementation, checkpoint.config, batches(inputs, checkpoint.config.num_channels))
    task = f"recording {implementation.name} {implementation.dtype}"
    taps: dict[Key, Summary] = {}
    for tap, values in tracked(run, task, len(tap_names(checkpoint.config)), progress):
        for name, value in values.items():
            if not np.isfinite(value).all():
                raise CheckpointError(
                    f"{checkpoint.path}: {tap} of the {name} input is not finite; nothing is recorded"
                )
            taps[name, tap] = summarize(tap, value)
    name, environment = f"{implementation.name} of {RECORDER}", dict(implementation.about)
    dtype = implementation.dtype.replace("float", "f")
    return Recording(name, environment["version"], inputs, taps, dtype, {**about, "environment": environment})
