"""The way of the tensors: from one checkpoint to a new file in another layout."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.checkpoint import Checkpoint
from convert.errors import CheckpointError
from convert.files.atomic import NewFolder
from convert.files.following import Follower
from convert.files.npz import NpzWriter
from convert.files.safetensors import SafetensorsWriter
from convert.files.tensors import StoredTensor, Tensor, file_sha256
from convert.layouts.layout import Layout
from convert.parameters import Place, parameters
from convert.record import CONVERSION_NAME, ConversionRecord, File, Origin, Source, write_json
from convert.transforms import Transform, Workspace

Progress = Callable[[str, int, int], None]
"""`progress(what, done, total)`, in any unit."""

Writer = NpzWriter | SafetensorsWriter
WRITERS: dict[str, type[Writer]] = {"npz": NpzWriter, "safetensors": SafetensorsWriter}


@dataclass(frozen=True)
class Step:
    """One tensor's way from source to sink."""

    place: Place
    source: StoredTensor
    stored_shape: tuple[int, ...]
    transform: Transform
    target: Tensor

    @property
    def row(self) -> dict[str, Any]:
        """What `conversion.json` says of it."""
        return {
            "parameter": self.place.name,
            "source": self.source.key,
            "target": self.target.key,
            "transform": f"{self.transform.source} -> {self.transform.target}",
            "dtype": self.target.dtype.name,
            "shape": list(self.target.shape),
        }


def plan(checkpoint: Checkpoint, layout: Layout) -> list[Step]:
    """Every step, in the order of the new file: members of an npz by name, else the forward pass's.

    In safetensors larger elements come first, so that each is aligned.
    """
    steps = []
    for parameter in parameters(checkpoint.config):
        place, source = parameter.place, checkpoint.tensor(parameter.place)
        transform = Transform(checkpoint.stored_axes(place), layout.axes(place))
        target = Tensor(layout.key(place), layout.shape(parameter), source.dtype)
        steps.append(Step(place, source, checkpoint.stored_shape(place), transform, target))
    if layout.container == "npz":
        return sorted(steps, key=lambda step: step.target.key)
    return sorted(steps, key=lambda step: -step.target.dtype.itemsize)


def write(
    checkpoint: Checkpoint, layout: Layout, output: NewFolder, progress: Progress, allow_nonfinite: bool = False
) -> ConversionRecord:
    """Write the checkpoint in `layout` to the new folder, `conversion.json` included.

    Every byte of the source is read, hashed and held against its checksums, every byte of the
    result is read back, hashed and on the disk when this returns. Raises `CheckpointError` for a
    damaged source, for NaN or infinity unless `allow_nonfinite`, and for too little space.
    """
    steps, folder = plan(checkpoint, layout), output.path
    free = shutil.disk_usage(folder).free
    if free < checkpoint.nbytes:
        raise CheckpointError(
            f"{output.target} needs {checkpoint.nbytes / 1e9:.2f} GB of space, its disk has {free / 1e9:.2f} GB free"
        )
    weights = folder / (f"{checkpoint.name}.npz" if layout.container == "npz" else "model.safetensors")
    for name, content in layout.companions(checkpoint.config, checkpoint.dtype).items():
        write_json(folder / name, content)
    with _whole_file_read(checkpoint) as source_sha256:
        weights_sha256 = _stream(checkpoint, steps, weights, WRITERS[layout.container], progress, allow_nonfinite)
    origin = Origin(checkpoint.name, source_sha256.result())
    if checkpoint.record is not None:
        recorded = checkpoint.record.files.get(checkpoint.file.path.name)
        if recorded is None or recorded.sha256 != origin.sha256:
            raise CheckpointError(
                f"{checkpoint.file.path} is not the file that {CONVERSION_NAME} beside it describes: "
                f"its SHA-256 is {origin.sha256}, another is recorded"
            )
        origin = checkpoint.record.origin
    record = ConversionRecord(
        name=checkpoint.name,
        architecture=checkpoint.config.architecture,
        classes=checkpoint.config.num_labels,
        layout=layout.name,
        origin=origin,
        source=Source(
            path=os.path.relpath(checkpoint.path.resolve(), output.target.resolve()),
            layout=checkpoint.layout.name,
            container=checkpoint.file.container,
            bytes=checkpoint.file.nbytes,
            sha256=source_sha256.result(),
        ),
        files={
            file.name: File(file.stat().st_size, weights_sha256 if file == weights else file_sha256(file))
            for file in sorted(folder.iterdir())
        },
        tensors=[step.row for step in steps],
    )
    record.write(folder)
    return record


@contextlib.contextmanager
def _whole_file_read(checkpoint: Checkpoint) -> Iterator[Future[str]]:
    """Hash and check the source beside the work; a damaged source is the error, whatever else it causes."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        sha256 = pool.submit(checkpoint.file.sha256, stop)
        try:
            yield sha256
        except CheckpointError:
            sha256.result()
            raise
        except BaseException:
            stop.set()
            raise
        sha256.result()


def _stream(
    checkpoint: Checkpoint,
    steps: list[Step],
    path: Path,
    writer_class: type[Writer],
    progress: Progress,
    allow_nonfinite: bool,
) -> str:
    """Write every tensor; the new file's SHA-256, when all of it is on the disk."""
    total = sum(step.target.nbytes for step in steps)
    workspace, done = Workspace(), 0
    writer = writer_class(path, [step.target for step in steps])
    follower = Follower(path)

    def checked(step: Step) -> Iterator[NDArray[np.generic]]:
        nonlocal done

        def read(start: int, out: NDArray[np.generic]) -> None:
            checkpoint.file.read(step.source, start, out)

        for block in step.transform.blocks(step.stored_shape, step.source.dtype.bits, read, workspace):
            if not allow_nonfinite and not step.source.dtype.all_finite(block):
                raise CheckpointError(
                    f"{checkpoint.file.path}: {step.source.key} holds NaN or infinity (--allow-nonfinite converts it)"
                )
            yield block
            done += block.nbytes
            follower.advance(writer.written)
            progress("converting", done, total)

    try:
        for step in steps:
            writer.write(step.target, checked(step))
        writer.finish()
        follower.advance(writer.written)
        return follower.finish()
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        follower.stop()
        writer.close()
