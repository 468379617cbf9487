"""Stream every tensor of a checkpoint into a new folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.manifest import MANIFEST_NAME, Manifest, Origin, Source
from convert.conversion.folded import graph
from convert.conversion.plan import Plan, Step
from convert.errors import CheckpointError
from convert.files.atomic import NewFolder, write_json
from convert.files.base import File, Metadata, combined_sha256, file_sha256
from convert.files.containers import writer_of
from convert.files.hashing import Follower
from convert.network.axes import Workspace
from convert.progress import Progress, silent
from convert.sources.provenance import address

Blocks = Callable[[Step], Iterator[NDArray[np.generic]]]


def write(plan: Plan, output: NewFolder, progress: Progress = silent, allow_nonfinite: bool = False) -> Manifest:
    """Carry out the plan in the new folder, and return the manifest that was written there.

    Every byte of the source is read, hashed and compared with the file's checksums. Every byte of the
    result is read back, hashed and on the disk when this returns. Raises `CheckpointError` for a
    damaged source, for NaN or infinity unless `allow_nonfinite`, and for too little disk space.
    """
    checkpoint = plan.checkpoint
    needed, available = sum(step.target.nbytes for step in plan.steps), shutil.disk_usage(output.path).free
    if available < needed:
        raise CheckpointError(
            f"{output.target} needs {needed / 1e9:.2f} GB of disk space, {available / 1e9:.2f} GB are available"
        )
    for name, content in plan.companions.items():
        write_json(output.path / name, content)
    workspace, done = Workspace(), 0

    def blocks(step: Step) -> Iterator[NDArray[np.generic]]:
        nonlocal done
        for block in step.blocks(checkpoint, workspace, allow_nonfinite):
            yield block
            done += block.nbytes
            progress("converting", done, needed)

    with _source_hashed(checkpoint) as source_files:
        hashes = {part: _write_weights(plan, output.path / part, blocks) for part in plan.parts}
    files = source_files.result()
    origin, place = origin_of(plan, files), address(checkpoint.path, files)
    manifest = Manifest(
        name=checkpoint.name,
        architecture=plan.config.architecture,
        classes=plan.config.num_labels,
        ws_eps=plan.config.ws_eps,
        layout=plan.layout.name,
        options=plan.options,
        origin=origin if checkpoint.manifest is not None else replace(origin, address=place),
        source=Source(
            path=os.path.relpath(checkpoint.path.resolve(), output.target.resolve()),
            layout=checkpoint.layout.name,
            container=checkpoint.file.container,
            files=files,
            address=place,
        ),
        files={
            file.name: File(file.stat().st_size, hashes.get(file.name) or file_sha256(file))
            for file in sorted(output.path.iterdir())
        },
        tensors=[step.row for step in plan.steps],
        max_shard_size=plan.max_shard_size,
        reproducible=True,
    )
    manifest.write(output.path)
    return manifest


def origin_of(plan: Plan, files: Mapping[str, File]) -> Origin:
    """Return the origin of the planned conversion, given the source's files; `write` adds the address.

    Raises `CheckpointError` if a file of the source has changed since an earlier conversion wrote it.
    """
    checkpoint = plan.checkpoint
    origin = Origin(checkpoint.name, combined_sha256(files))
    if checkpoint.manifest is not None:
        origin = checkpoint.manifest.origin
        for name, file in files.items():
            listed = checkpoint.manifest.files.get(name)
            if listed is None or listed.sha256 != file.sha256:
                raise CheckpointError(
                    f"{checkpoint.file.path.with_name(name)} is not the file that {MANIFEST_NAME} lists: "
                    f"the SHA-256 is {file.sha256}, expected {listed.sha256 if listed else 'no such file'}; "
                    "convert the origin again"
                )
    head = origin.head if plan.options.head == "keep" else plan.options.head
    rounded = {step.target.dtype for step in plan.steps if step.rounds}
    coarsest = [max(rounded, key=lambda dtype: dtype.roundoff).name] if rounded else []
    return replace(origin, head=head, roundings=(*origin.roundings, *coarsest))


def _write_weights(plan: Plan, path: Path, blocks: Blocks) -> str:
    """Write every tensor of one file, and return the SHA-256 when all of it is on the disk."""
    tensors, export = [step.target for step in plan.parts[path.name]], plan.layout.export

    network = partial(graph, export.container, plan.config, plan.checkpoint.name, plan.options.profile or "")
    metadata = Metadata(export.attributes([tensor.key for tensor in tensors]), network)
    writer, follower = writer_of(export.container)(path, tensors, metadata), Follower(path)

    def followed(step: Step) -> Iterator[NDArray[np.generic]]:
        for block in blocks(step):
            yield block
            follower.advance(writer.written)

    try:
        follower.start()
        for step in plan.parts[path.name]:
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


@contextlib.contextmanager
def _source_hashed(checkpoint: Checkpoint) -> Iterator[Future[dict[str, File]]]:
    """Hash and check the source in a second thread; if it is damaged, that is the error that is raised."""
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
