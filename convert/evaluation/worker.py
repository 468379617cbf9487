"""A library in a process of its own, which loads a checkpoint once and answers with logits."""

from __future__ import annotations

import contextlib
import re
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.checkpoints.checkpoint import Checkpoint
from convert.evaluation.libraries import RUNNERS, Loaded, Runner
from convert.references.worker import LibraryProcess, reason_of

VARIABLES = {"TF_ENABLE_ONEDNN_OPTS": "1"}
"""TensorFlow as its users run it; for a verification oneDNN is off, where it takes memory."""


@dataclass(frozen=True)
class About:
    """A description of the network that a process has loaded."""

    version: str
    ws_eps: float | None
    own_pipeline: bool
    note: str | None


@dataclass(frozen=True)
class Answer:
    """The logits of some images."""

    logits: NDArray[np.float32]
    seconds: float
    """Time that the network took."""


class RunnerProcess(LibraryProcess):
    """A process in which a library runs one checkpoint; leaving the `with` block ends it.

    If it fails or ends, calls raise `ProcessError`.
    """

    def __init__(self, runner: Runner, checkpoint: Checkpoint) -> None:
        """Start to load the checkpoint, with a thread on every processor."""
        place, epsilon = str(checkpoint.path.absolute()), repr(checkpoint.config.ws_eps)
        given = (__name__, runner.name, place, checkpoint.name, epsilon)
        super().__init__(runner.shown, checkpoint, given, variables=VARIABLES)

    def loaded(self) -> About:
        """Wait until the network is loaded."""
        about: About = self.receive()
        return about

    def logits(self, images: NDArray[np.float32] | Sequence[NDArray[np.uint8]], batch: int) -> Answer:
        """Return the logits of pixels `[N, H, W, 3]`; or of images `[H, W, 3]`, uint8, for the library's own pipeline.

        Fewer images than `batch` are filled up, so that a library that compiles does so once for each size.
        """
        self.send((images, batch))
        answer: Answer = self.receive()
        return answer

    def memory(self) -> int:
        """Return the largest resident memory of the process so far, in bytes."""
        self.send(None)
        used: int = self.receive()
        return used


def serve(handle: str, runner: str, path: str, checkpoint_name: str, ws_eps: str) -> None:
    """Load a checkpoint, say so, and answer the requests of `RunnerProcess` until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent receives it too, and ends this process
    with Connection(int(handle)) as connection, contextlib.suppress(OSError):  # the other end went with the parent
        try:
            module = next(row for row in RUNNERS if row.name == runner).module()
            with Checkpoint(Path(path), checkpoint_name) as checkpoint:
                checkpoint.config = checkpoint.config.replace(ws_eps=float(ws_eps))
                loaded: Loaded = module.load(checkpoint)
            about = About(loaded.version, loaded.ws_eps, loaded.prepare is not None, loaded.note)
            connection.send(("", about))
            network = _Network(loaded)
            while True:
                request = connection.recv()
                connection.send(("", _peak_memory() if request is None else network.answer(*request)))
        except EOFError:
            return
        except Exception as error:
            connection.send((reason_of(error), None))


class _Network:
    """Runs batches of one size, and knows which sizes of images it has run."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._seen: set[tuple[int, ...]] = set()

    def answer(self, images: Any, batch: int) -> Answer:
        """Return the logits of images, in order; those of one size are run together."""
        if isinstance(images, np.ndarray):
            return self._run(images, batch)
        from PIL import Image

        assert self._loaded.prepare is not None
        pixels = [self._loaded.prepare(Image.fromarray(image)) for image in images]
        rows: list[Any] = [None] * len(pixels)
        seconds = 0.0
        for shape in dict.fromkeys(image.shape for image in pixels):
            places = [place for place, image in enumerate(pixels) if image.shape == shape]
            part = self._run(np.stack([pixels[place] for place in places]), batch)
            seconds += part.seconds
            for place, row in zip(places, part.logits, strict=True):
                rows[place] = row
        return Answer(np.stack(rows), seconds)

    def _run(self, pixels: NDArray[np.float32], batch: int) -> Answer:
        count = len(pixels)
        if count < batch:
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], batch - count, 0)])
        if pixels.shape not in self._seen:  # compiles, and takes memory for the first time
            self._loaded.compute(pixels)
            self._seen.add(pixels.shape)
        start = time.perf_counter()
        logits = np.asarray(self._loaded.compute(pixels), np.float32)
        seconds = time.perf_counter() - start
        if not np.isfinite(logits).all():
            raise ValueError("the outputs are not finite numbers")
        return Answer(logits[:count], seconds * count / len(pixels))


def _peak_memory() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts `ru_maxrss` from the memory of the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024
