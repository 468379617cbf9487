"""The taps that the oracle computes on the source, kept whole on the disk."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.checkpoints.checkpoint import Checkpoint
from convert.network.oracle import Oracle
from convert.network.runner import Batches, Taps, run_network
from convert.network.taps import Key, Part, parts, tap_names
from convert.progress import Progress, tracked
from convert.verification.metrics import relative_l2


def run_oracle(oracle: Oracle, images: Batches, task: str, progress: Progress) -> Taps:
    """Yield every tap of an oracle's network, and report each as one step of a task."""
    return tracked(run_network(oracle, oracle.config, images), task, len(tap_names(oracle.config)), progress)


@dataclass(frozen=True)
class OracleTaps:
    """The taps of the oracle in float64, computed when first asked for and read back one at a time.

    They take 60 MB of the folder for R50x1 and 1.4 GB for R152x4.
    """

    source: Checkpoint
    images: Batches
    folder: Path
    """An empty temporary folder."""
    progress: Progress
    _lock: threading.RLock = field(default_factory=threading.RLock)
    """Held while taps are computed; another thread that asks for them waits."""

    @cached_property
    def names(self) -> list[str]:
        return tap_names(self.source.config)

    def __getitem__(self, tap: str) -> dict[str, NDArray[np.float64]]:
        """Return a tap of every input, `[N, H, W, C]` or `[N, C]`."""
        return {name: np.load(self._paths[name, tap], mmap_mode="r") for name in self.images}

    def taps(self) -> Taps:
        """Yield every tap in the order of the forward pass."""
        return ((tap, self[tap]) for tap in self.names)

    def inputs(self, part: Part) -> Batches:
        """Return the input of a part: the last tap of the part before, or the images.

        A head that the source does not have is given the pooled features.
        """
        before = list(takewhile(lambda item: item != part, parts(self.source.config)))
        return self[before[-1].name] if before else self.images

    @property
    def float32_errors(self) -> dict[Key, float]:
        """The relative L2 error of each tap when the oracle computes in float32."""
        with self._lock:
            return self._float32_errors

    @property
    def _paths(self) -> dict[Key, Path]:
        with self._lock:
            return self._computed

    @cached_property
    def _float32_errors(self) -> dict[Key, float]:
        oracle = self.source.oracle(np.float32)
        taps = run_oracle(oracle, self.images, "measuring the rounding of float32", self.progress)
        return {(name, tap): relative_l2(x, self[tap][name]) for tap, values in taps for name, x in values.items()}

    @cached_property
    def _computed(self) -> dict[Key, Path]:
        paths = dict[Key, Path]()
        oracle = self.source.oracle()
        for tap, values in run_oracle(oracle, self.images, "running the oracle on the source", self.progress):
            for name, value in values.items():
                paths[name, tap] = self.folder / f"{len(paths)}.npy"
                np.save(paths[name, tap], value)
        return paths
