"""A reference in a separate process: frameworks conflict within one process, and keep memory until the end."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from convert.checkpoints.checkpoint import Checkpoint
from convert.errors import CheckpointError
from convert.network.runner import Batches, Implementation
from convert.network.taps import Part
from convert.references.registry import REFERENCES, Reference

ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "KERAS_BACKEND": "tensorflow",
    # oneDNN keeps a copy of every kernel in another format: 6 GB with R152x4.
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "CUDA_VISIBLE_DEVICES": "",
    # By default glibc keeps freed arrays of up to 32 MB, and memory between others of any size.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 18),
}
"""Environment variables of the processes."""


class ReferenceProcess:
    """A process in which a reference runs one checkpoint; leaving the `with` block ends it.

    If the process fails or ends, calls raise `CheckpointError` with the reason.
    """

    def __init__(self, reference: Reference, checkpoint: Checkpoint) -> None:
        self._reference = reference
        # The temporary files of the process are here too, so that they go even if it is killed.
        self._folder = tempfile.TemporaryDirectory(prefix="bit-reference-")
        self._log = Path(self._folder.name) / "log"
        self._log.touch()
        context = multiprocessing.get_context("spawn")
        self._connection, connection = context.Pipe()
        arguments = (connection, self._log, reference.name, checkpoint.path.absolute(), checkpoint.name)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        with _environment({**ENVIRONMENT, "TMPDIR": self._folder.name}):
            self._process.start()
        connection.close()

    @property
    def identifier(self) -> int:
        """The operating system's number of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def load(self, dtype: str) -> Implementation:
        """Return the network in `float32` or `float64`; it replaces the one that was loaded before."""
        self.send(dtype)
        return _Remote(self, *self.receive())

    def send(self, request: Any) -> None:
        """Send a dtype to load, or the arguments with which the loaded network is run."""
        with contextlib.suppress(OSError):  # `receive` reports why the process has ended
            self._connection.send(request)

    def receive(self) -> Any:
        """Return the next answer of the process. Raises `CheckpointError` if it has failed or ended."""
        try:
            failure, answer = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            last = self._log.read_text("utf-8", "replace").strip().splitlines()[-1:]
            failure, answer = "".join(last) or f"it ended with status {self._process.exitcode}", None
        if failure:
            raise CheckpointError(f"{self._reference.name} could not be run: {failure}")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()
        self._folder.cleanup()


@dataclass(frozen=True)
class _Remote:
    """An `Implementation` that runs in a process."""

    process: ReferenceProcess
    name: str
    dtype: str
    about: Mapping[str, str]

    def run(self, part: Part, x: Batches) -> list[Batches]:
        """Run a part in the process; results arrive one at a time."""
        self.process.send((part, dict(x)))
        return list(iter(self.process.receive, None))


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """A context in which processes start with these variables, besides those of this process."""
    before = {name: os.environ[name] for name in variables if name in os.environ}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
        os.environ.update(before)


def _serve(connection: Connection, log: Path, reference: str, path: Path, checkpoint_name: str) -> None:
    """Answer requests until the connection ends. The output of the framework goes to the file `log`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent receives it too, and ends this process
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        module = REFERENCES[reference].module()
        with Checkpoint(path, checkpoint_name) as checkpoint:
            while True:
                request = connection.recv()
                if isinstance(request, str):
                    network = module.load(checkpoint, request)
                    connection.send(("", (network.name, network.dtype, network.about)))
                else:
                    for values in (*network.run(*request), None):
                        connection.send(("", values))
                del request  # frees the activations before the next ones arrive
    except Exception as error:
        with contextlib.suppress(OSError):  # the connection has ended with the parent
            connection.send((f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", None))
