"""The way of the tensors: from one checkpoint to a new folder in another layout."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bit.config import BitConfig
from convert.checkpoints.checkpoint import Checkpoint, common_dtype
from convert.checkpoints.manifest import MANIFEST_NAME, Manifest, Origin, Source
from convert.checkpoints.options import UNCHANGED, ConversionOptions
from convert.conversion.plan import Step, plan
from convert.errors import CheckpointError
from convert.files.atomic import NewFolder, write_json
from convert.files.base import File, combined_sha256, file_sha256
from convert.files.hashing import Follower
from convert.files.npz import NpzWriter
from convert.files.safetensors import SafetensorsWriter
from convert.files.sharded import INDEX_SUFFIX, split
from convert.layouts.layout import Layout
from convert.network.axes import Workspace
from convert.progress import Progress

if TYPE_CHECKING:
    from convert.files.h5 import H5Writer
    from convert.files.onnx import OnnxWriter

Writer: TypeAlias = "NpzWriter | SafetensorsWriter | H5Writer | OnnxWriter"


def write(
    checkpoint: Checkpoint,
    layout: Layout,
    output: NewFolder,
    progress: Progress,
    changes: ConversionOptions = UNCHANGED,
    max_shard_size: str | None = None,
    allow_nonfinite: bool = False,
) -> Manifest:
    """Write the checkpoint in `layout` to the new folder, `conversion.json` included.

    Every byte of the source is read, hashed and held against its checksums, every byte of the
    result is read back, hashed and on the disk when this returns. With `max_shard_size`, `5GB` say,
    the weights are split as transformers splits them. Raises `CheckpointError` for a damaged
    source, for changes that cannot be made, for NaN or infinity unless `allow_nonfinite`, and for
    too little space.
    """
    steps, folder = plan(checkpoint, layout, changes), output.path
    config, profile = changes.config(checkpoint.config, layout), changes.profile_of(layout)
    total, done = sum(step.target.nbytes for step in steps), 0
    _check_space(output, total)
    name = layout.weights_name.format(name=checkpoint.name)
    parts, index = _split(layout, steps, name, max_shard_size)
    dtype = common_dtype(step.target.dtype.name for step in steps)
    for companion, content in layout.companions(config, dtype, checkpoint.name, profile).items():
        write_json(folder / companion, content)
    if index is not None:
        write_json(folder / f"{name}{INDEX_SUFFIX}", index)
    hashes = {}
    with _whole_file_read(checkpoint) as source_files:
        for part, part_steps in parts.items():
            before = done

            def advance(count: int, before: int = before) -> None:
                progress("converting", before + count, total)

            writer = _writer(layout, folder / part, part_steps, config, checkpoint.name, profile)
            hashes[part] = _stream(checkpoint, part_steps, folder / part, writer, advance, allow_nonfinite)
            done += sum(step.target.nbytes for step in part_steps)
    files = source_files.result()
    record = Manifest(
        name=checkpoint.name,
        architecture=config.architecture,
        classes=config.num_labels,
        ws_eps=config.ws_eps,
        layout=layout.name,
        changes=replace(changes, profile=profile or None),
        origin=origin_of(checkpoint, files, changes, steps),
        source=Source(
            path=os.path.relpath(checkpoint.path.resolve(), output.target.resolve()),
            layout=checkpoint.layout.name,
            container=checkpoint.file.container,
            files=files,
        ),
        files={
            file.name: File(file.stat().st_size, hashes.get(file.name) or file_sha256(file))
            for file in sorted(folder.iterdir())
        },
        tensors=[step.row for step in steps],
    )
    record.write(folder)
    return record


def _check_space(output: NewFolder, needed: int) -> None:
    free = shutil.disk_usage(output.path).free
    if free < needed:
        raise CheckpointError(
            f"{output.target} needs {needed / 1e9:.2f} GB of space, its disk has {free / 1e9:.2f} GB free"
        )


def check_sharding(layout: Layout, max_shard_size: str | None) -> None:
    """Raise `CheckpointError` if the layout's weights cannot be split."""
    if max_shard_size is not None and not layout.shards:
        raise CheckpointError(f"{layout.name} is read from one file; leave --max-shard-size out")


def _split(
    layout: Layout, steps: list[Step], name: str, max_shard_size: str | None
) -> tuple[dict[str, list[Step]], dict[str, Any] | None]:
    """The steps by the file that they write, and the index of those."""
    check_sharding(layout, max_shard_size)
    if max_shard_size is None:
        return {name: steps}, None
    names, index = split([step.target for step in steps], name, max_shard_size)
    by_key = {step.target.key: step for step in steps}
    return {part: [by_key[key] for key in keys] for part, keys in names.items()}, index


def origin_of(checkpoint: Checkpoint, files: dict[str, File], changes: ConversionOptions, steps: list[Step]) -> Origin:
    """What the weights were before any conversion. Raises `CheckpointError` for a file that was changed since."""
    origin = Origin(checkpoint.name, combined_sha256(files))
    if checkpoint.record is not None:
        origin = checkpoint.record.origin
        for name, file in files.items():
            recorded = checkpoint.record.files.get(name)
            if recorded is None or recorded.sha256 != file.sha256:
                raise CheckpointError(
                    f"{checkpoint.file.path.with_name(name)} is not the file that {MANIFEST_NAME} beside it "
                    f"describes: its SHA-256 is {file.sha256}, another is recorded"
                )
    head = origin.head if changes.head == "keep" else changes.head
    rounded = {step.target.dtype for step in steps if step.rounds}
    coarsest = [max(rounded, key=lambda dtype: dtype.roundoff).name] if rounded else []
    return replace(origin, head=head, roundings=(*origin.roundings, *coarsest))


def _writer(layout: Layout, path: Path, steps: list[Step], config: BitConfig, name: str, profile: str) -> Writer:
    tensors = [step.target for step in steps]
    match layout.container:
        case "npz":
            return NpzWriter(path, tensors)
        case "h5":
            from convert.files.h5 import H5Writer

            return H5Writer(path, tensors, layout.attributes([tensor.key for tensor in tensors]))
        case "onnx":
            from convert.conversion.onnx_graph import network
            from convert.files.onnx import OnnxWriter

            return OnnxWriter(path, tensors, network(config, name, profile))
    return SafetensorsWriter(path, tensors)


@contextlib.contextmanager
def _whole_file_read(checkpoint: Checkpoint) -> Iterator[Future[dict[str, File]]]:
    """Hash and check the source beside the work; a damaged source is the error, whatever else it causes."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        files = pool.submit(checkpoint.file.digests, stop)
        try:
            yield files
        except CheckpointError:
            files.result()
            raise
        except BaseException:
            stop.set()
            raise
        files.result()


def _stream(
    checkpoint: Checkpoint,
    steps: list[Step],
    path: Path,
    writer: Writer,
    advance: Callable[[int], None],
    allow_nonfinite: bool,
) -> str:
    """Write every tensor of a file; its SHA-256, when all of it is on the disk."""
    workspace, done = Workspace(), 0
    follower = Follower(path)

    def followed(step: Step) -> Iterator[NDArray[np.generic]]:
        nonlocal done
        for block in step.blocks(checkpoint, workspace, allow_nonfinite):
            yield block
            done += block.nbytes
            follower.advance(writer.written)
            advance(done)

    try:
        for step in steps:
            writer.write(step.target, followed(step))
        writer.finish()
        follower.advance(writer.written)
        return follower.finish()
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        follower.stop()
        writer.close()
