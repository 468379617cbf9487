"""A reference in a process of its own: frameworks do not get along in one, and their memory goes back with it."""

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
from types import TracebackType
from typing import Any, Self

from convert.checkpoints.checkpoint import Checkpoint
from convert.errors import CheckpointError
from convert.network.runner import Batches, Implementation, Taps
from convert.references.registry import REFERENCES, Reference

ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "KERAS_BACKEND": "tensorflow",
    # oneDNN keeps what it made of every kernel: 6 GB with R152x4.
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "CUDA_VISIBLE_DEVICES": "",
    # glibc otherwise keeps freed arrays of up to 32 MB for itself, and those between others of any size.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 18),
}
"""What the process of a framework starts with."""


class ReferenceProcess:
    """A process in which a reference runs one checkpoint; leaving the `with` ends it.

    Raises `CheckpointError` with its last words for one that fails.
    """

    def __init__(self, reference: Reference, checkpoint: Checkpoint) -> None:
        self._reference = reference
        self._folder = tempfile.TemporaryDirectory(prefix="bit-reference-")
        self._words = Path(self._folder.name) / "words"
        self._words.touch()
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        what = (reference.name, checkpoint.path.absolute(), checkpoint.name)
        self._process = context.Process(target=_serve, args=(theirs, self._words, *what), daemon=True)
        # What it leaves behind when it is killed goes with the folder.
        with _started_with({**ENVIRONMENT, "TMPDIR": self._folder.name}):
            self._process.start()
        theirs.close()

    @property
    def identifier(self) -> int:
        """The system's number of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def load(self, dtype: str) -> Implementation:
        """The network in `float32` or `float64`, in the place of one that was loaded before."""
        return _Remote(self, **self.ask(("load", dtype)))

    def ask(self, request: tuple[Any, ...]) -> Any:
        """Send a request, and give back the first answer."""
        with contextlib.suppress(OSError):  # what it said last is read
            self._connection.send(request)
        return self.answer()

    def answer(self) -> Any:
        try:
            kind, said = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            last = self._words.read_text("utf-8", "replace").strip().splitlines()[-1:]
            reason = "".join(last) or f"it ended with status {self._process.exitcode}"
            raise CheckpointError(f"{self._reference.name} could not be run: {reason}") from None
        if kind == "failed":
            raise CheckpointError(f"{self._reference.name} could not be run: {said}")
        return said

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()
        self._folder.cleanup()


@dataclass(frozen=True)
class _Remote:
    """An `Implementation` that runs elsewhere."""

    process: ReferenceProcess
    name: str
    dtype: str
    about: Mapping[str, str]

    def run(self, part: str, inputs: Batches) -> Taps:
        """The taps of a part, see `Implementation.run`."""
        said = self.process.ask(("run", part, dict(inputs)))
        while said is not None:
            yield said
            said = self.process.answer()


@contextlib.contextmanager
def _started_with(variables: Mapping[str, str]) -> Iterator[None]:
    """Within it a process that is started gets these variables, beside those of this one."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection: Connection, words: Path, name: str, path: Path, checkpoint_name: str) -> None:
    """Do what is asked for until nobody asks any more. What the framework prints goes to the file `words`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and ends this process
    log = os.open(words, os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        REFERENCES[name].module()
        with Checkpoint(path, checkpoint_name) as checkpoint:
            while True:
                try:
                    request = connection.recv()
                except EOFError:
                    return
                if request[0] == "load":
                    implementation = REFERENCES[name].load(checkpoint, request[1])
                    about = dict(implementation.about)
                    said = {"name": implementation.name, "dtype": implementation.dtype, "about": about}
                    connection.send(("loaded", said))
                    continue
                for tap in implementation.run(*request[1:]):
                    connection.send(("tap", tap))
                connection.send(("end", None))
    except Exception as error:
        connection.send(("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))
