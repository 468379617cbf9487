"""A reference in a separate process: frameworks conflict within one process, and keep memory until the end."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from convert.checkpoints.checkpoint import Checkpoint
from convert.errors import CheckpointError
from convert.network.gradients import Differentiable, PartGradients
from convert.network.runner import Batches
from convert.network.taps import Array, Part
from convert.references.registry import REFERENCES, Reference
from convert.references.training import TrainingRecording, repeat_steps
from convert.sources.resolve import cache_folder

ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # Everything that JAX compiles is kept, however small.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "JAX_COMPILATION_CACHE_MAX_SIZE": "500000000",
    "KERAS_BACKEND": "tensorflow",
    # oneDNN keeps a copy of every kernel in another format: 6 GB with R152x4.
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "CUDA_VISIBLE_DEVICES": "",
}
"""Environment variables of the processes, see also `environment`."""
KEPT_PARAMETERS = 100_000_000
"""Parameters of a network up to which freed memory is kept for the next arrays. To ask the system for each array anew
takes a fourth of the time; what is kept would be gigabytes for R152x4."""
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 25),  # arrays of 32 MB, the most that glibc allows
    "MALLOC_TRIM_THRESHOLD_": str(1 << 28),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 18)}
"""Settings of glibc, in bytes; other systems ignore them."""
MEMORY = 2_000_000_000
"""Bytes of memory for each process: 1.5 GB for R152x4, and the taps that are compared meanwhile."""
CONTROL_GROUP = Path("/sys/fs/cgroup")
SERVE = (
    "import sys; from importlib import import_module; module, end = sys.argv[1], 3 + int(sys.argv[2]); "
    "given, sys.path[:] = sys.argv[3:end], sys.argv[end:]; import_module(module).serve(*given)"
)
"""Program of a process, which imports from where this process does. It does not import the caller's script, as
`multiprocessing` would: without `if __name__ == "__main__"` the script would start again in each process."""
LONGEST = 300
"""Most characters of the reason for a failure: the message of a framework can fill pages."""


class ProcessError(CheckpointError):
    """A process that has failed or ended; the only one of the `problems` is the reason."""


class LibraryProcess:
    """A process in which a library runs one checkpoint; leaving the `with` block ends it.

    If the process fails or ends, calls raise `ProcessError`.
    """

    def __init__(
        self,
        library: str,
        checkpoint: Checkpoint,
        given: Sequence[str],
        threads: int | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Start the process, which computes with `threads`; by default with one on every processor.

        It calls `serve` of the module `given[0]` with the descriptor of its connection and the rest of `given`.
        `variables` are set in its environment.
        """
        self._library = library
        threads = threads or processors()
        count = sum(math.prod(tensor.shape) for tensor in checkpoint.file.tensors.values())
        # The temporary files of the process are here too, so that they go even if it is killed.
        self._folder = tempfile.TemporaryDirectory(prefix="bit-reference-")
        self._log = Path(self._folder.name) / "log"
        self._connection, connection = Pipe()
        with connection, self._log.open("wb") as log:
            module, *others = given
            arguments = (module, str(len(given)), str(connection.fileno()), *others)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", SERVE, *arguments, *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[connection.fileno()],
                env={**os.environ, **environment(threads, count), **(variables or {}), "TMPDIR": self._folder.name},
            )

    @property
    def identifier(self) -> int:
        """The operating system's number of the process."""
        return self._process.pid

    def kill(self) -> None:
        """End the process now, from any thread; whoever waits for an answer gets a `ProcessError`."""
        self._process.kill()

    def send(self, request: Any) -> None:
        """Send a request, which `serve` in the process answers."""
        with contextlib.suppress(OSError):  # `receive` reports why the process has ended
            self._connection.send(request)

    def receive(self) -> Any:
        """Return the next answer of the process. Raises `ProcessError` if it has failed or ended."""
        try:
            failure, answer = self._connection.recv()
        except (EOFError, OSError):  # in the middle of an answer it is the latter
            failure, answer = self._end(), None
        if failure:
            raise ProcessError(f"{self._library} could not be run: {failure}", [failure])
        return answer

    def _end(self) -> str:
        """Wait for the end of the process; return how it ended, with the last line of the log."""
        status = self._process.wait()
        ended = f"it ended with status {status}"
        if status < 0:
            memory = ", as the system does when memory runs out" if status == -signal.SIGKILL else ""
            ended = f"it was killed by {signal.Signals(-status).name}{memory}"
        last = self._log.read_text("utf-8", "replace").strip().splitlines()[-1:]
        return f"{ended} ({_line(last[0])})" if last else ended

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()
        self._process.wait()
        self._connection.close()
        self._folder.cleanup()


class ReferenceProcess(LibraryProcess):
    """A process in which a reference runs one checkpoint."""

    def __init__(self, reference: Reference, checkpoint: Checkpoint, threads: int | None = None) -> None:
        """Start the process, which computes with `threads`; by default with one on every processor."""
        place, epsilon = str(checkpoint.path.absolute()), repr(checkpoint.config.ws_eps)
        super().__init__(
            reference.name, checkpoint, (__name__, reference.name, place, checkpoint.name, epsilon), threads
        )

    def load(self, dtype: str) -> Differentiable:
        """Return the network in `float32` or `float64`; it replaces the one that was loaded before.

        Only those of `pytorch` and `flax` can be differentiated.
        """
        self.send(dtype)
        return _Remote(self, *self.receive())

    def repeat_steps(self, recording: Path) -> dict[str, tuple[Array, Array]]:
        """Repeat recorded training steps in the process, see `training.repeat_steps`."""
        self.send(recording)
        repeated: dict[str, tuple[Array, Array]] = self.receive()
        return repeated


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def at_once(count: int) -> int:
    """Return how many of `count` processes to run side by side: one a processor, as far as memory allows."""
    return max(1, min(count, processors(), _available() // MEMORY))


def _available() -> int:
    """Return the bytes of memory that are free for this process."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # another system than Linux
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    with contextlib.suppress(OSError, ValueError):  # a container may have less; without a limit it says "max"
        limit, used = (int((CONTROL_GROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        available = min(available, limit - used)
    return available


def compiled_folder(parent: Path) -> Path:
    """Return the folder in `parent` where JAX keeps what it compiles: 1.5 MB for R50x1, half of the time of JAX there.

    JAX tells versions and programs apart, but not processors.
    """
    about = platform.processor()
    with contextlib.suppress(OSError):  # another system than Linux
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        about = "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features")))
    return parent / "jax" / f"{platform.machine()}-{zlib.crc32(about.encode()):08x}"


def environment(threads: int, count: int) -> dict[str, str]:
    """Return the environment variables of a process that computes with `threads`, for a network of `count` parameters.

    Each library is told the number in a way of its own.
    """
    compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(compiled_folder(cache_folder()))
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_multi_thread_eigen=false" if threads == 1 else ""]
    return {
        **ENVIRONMENT,
        "JAX_COMPILATION_CACHE_DIR": compiled,
        "OMP_NUM_THREADS": str(threads),
        "NPROC": str(threads),
        "XLA_FLAGS": " ".join(filter(None, flags)),
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "TF_NUM_INTEROP_THREADS": "1",
        **(KEEP_MEMORY if count <= KEPT_PARAMETERS else RETURN_MEMORY),
    }


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

    def differentiate(self, part: Part, x: Batches, cotangents: Batches) -> PartGradients:
        """Differentiate a part in the process."""
        self.process.send((part, dict(x), dict(cotangents)))
        gradients: PartGradients = self.process.receive()
        return gradients


def serve(handle: str, reference: str, path: str, checkpoint_name: str, ws_eps: str) -> None:
    """Answer requests over the inherited file descriptor `handle` until the other end is closed.

    A request is a dtype to load, a recording, or the arguments with which the network is run or differentiated.
    `ws_eps` is the epsilon to run the weights with, which the files need not state.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent receives it too, and ends this process
    with Connection(int(handle)) as connection, contextlib.suppress(OSError):  # the other end went with the parent
        try:
            module = REFERENCES[reference].module()
            with Checkpoint(Path(path), checkpoint_name) as checkpoint:
                checkpoint.config = checkpoint.config.replace(ws_eps=float(ws_eps))
                while True:
                    request = connection.recv()
                    if isinstance(request, str):
                        network = module.load(checkpoint, request)
                        connection.send(("", (network.name, network.dtype, network.about)))
                    elif isinstance(request, Path):
                        steps = repeat_steps(TrainingRecording.read(request), module.load)
                        connection.send(("", steps))
                    elif len(request) == 3:
                        connection.send(("", network.differentiate(*request)))
                    else:
                        for values in (*network.run(*request), None):
                            connection.send(("", values))
                    del request  # frees the activations before the next ones arrive
        except Exception as error:
            connection.send((reason_of(error), None))


def reason_of(error: Exception) -> str:
    """Return the type and the message of an error in one line."""
    return f"{type(error).__name__}: {_line(str(error)) or ('out of memory' if isinstance(error, MemoryError) else '')}"


def _line(text: str) -> str:
    return " ".join(text.split())[:LONGEST]
