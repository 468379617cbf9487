"""What the definition computes on a source file: every tap, whole, on the disk."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from convert.network.runner import Batches, Taps, walk
from convert.network.taps import parts, tap_names
from convert.progress import Progress
from convert.verification.candidate import Candidate


class OracleTaps:
    """The taps of the definition in float64, computed once and read back one at a time.

    Itself an `Implementation`, whose results are those that it keeps. Needs room in the temporary
    folder, 60 MB for R50x1 and 1.4 GB for R152x4; leaving the `with` gives it back.
    """

    def __init__(self, subject: Candidate, images: Batches, progress: Progress) -> None:
        definition, config = subject.definition(), subject.checkpoint.config
        self.name, self.dtype, self.about = definition.name, definition.dtype, definition.about
        self.subject, self.images, self._parts = subject, images, parts(config)
        self._folder = tempfile.TemporaryDirectory(prefix="bit-taps-")
        self._names: dict[tuple[str, str], Path] = {}
        total = len(tap_names(config))
        for done, (tap, values) in enumerate(walk(definition, config, images), 1):
            for name, value in values.items():
                path = Path(self._folder.name) / f"{len(self._names)}.npy"
                np.save(path, value)
                self._names[name, tap] = path
            progress("running the definition on the source", done, total)

    def __getitem__(self, tap: str) -> dict[str, NDArray[np.float64]]:
        """A tap of every input, `[N, H, W, C]` or `[N, C]`."""
        return {name: np.load(self._names[name, tap], mmap_mode="r") for name in self.images}

    def __contains__(self, tap: str) -> bool:
        return all((name, tap) in self._names for name in self.images)

    def inputs(self, part: str) -> Batches:
        """What the part is given: the last tap of the one before, or the images."""
        names = list(self._parts)
        index = names.index(part) if part in names else len(names)  # of a head that was added since
        return self[names[index - 1]] if index else self.images

    def run(self, part: str, inputs: Batches) -> Taps:
        for tap in self._parts[part]:
            yield tap, self[tap]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()
