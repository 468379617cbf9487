"""The taps that the oracle computes on the source, kept whole on the disk."""

from __future__ import annotations

import tempfile
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from convert.network.runner import Batches, Taps, run_network
from convert.network.taps import Key, Part, parts, tap_names
from convert.progress import Progress, tracked
from convert.verification.candidate import Candidate


class OracleTaps:
    """The taps of the oracle in float64, computed when first asked for and read back one at a time.

    They take 60 MB of the temporary folder for R50x1 and 1.4 GB for R152x4, until the `with` block ends.
    """

    def __init__(self, source: Candidate, images: Batches, progress: Progress) -> None:
        self.source, self.images, self._progress = source, images, progress
        self.names = tap_names(source.checkpoint.config)
        self._folder = tempfile.TemporaryDirectory(prefix="bit-taps-")

    def __getitem__(self, tap: str) -> dict[str, NDArray[np.float64]]:
        """Return a tap of every input, `[N, H, W, C]` or `[N, C]`."""
        return {name: np.load(self._paths[name, tap], mmap_mode="r") for name in self.images}

    def __contains__(self, tap: str) -> bool:
        return tap in self.names

    def taps(self) -> Taps:
        """Yield every tap in the order of the forward pass."""
        return ((tap, self[tap]) for tap in self.names)

    def inputs(self, part: Part) -> Batches:
        """Return the input of a part: the last tap of the part before, or the images.

        A head that the source does not have is given the pooled features.
        """
        names = [item.name for item in parts(self.source.checkpoint.config)]
        before = list(takewhile(lambda name: name != part.name, names))
        return self[before[-1]] if before else self.images

    @cached_property
    def _paths(self) -> dict[Key, Path]:
        checkpoint, paths = self.source.checkpoint, dict[Key, Path]()
        taps = run_network(checkpoint.oracle(), checkpoint.config, self.images)
        for tap, values in tracked(taps, "running the oracle on the source", len(self.names), self._progress):
            for name, value in values.items():
                paths[name, tap] = Path(self._folder.name) / f"{len(paths)}.npy"
                np.save(paths[name, tap], value)
        return paths

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()
