"""How large the error of a tap may be: derived from what rounding does there, not chosen."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from convert.network.oracle import Oracle
from convert.network.parameters import ALL
from convert.network.runner import Batches, Implementation, Taps, run, walk
from convert.network.taps import Key, parts, summarize, tap_names
from convert.progress import Progress
from convert.references.recordings import Recordings
from convert.verification.candidate import Candidate
from convert.verification.metrics import relative_l2, summary_error
from convert.verification.oracle_taps import OracleTaps
from convert.verification.results import END_TO_END

T = TypeVar("T")

FLOAT64_TOLERANCE = 1e-9
"""Implementations of one function agree to about 1e-13 in float64; the least of the semantic
differences known, an epsilon of 1e-8 for 1e-10, shows as 4e-4."""
FLOAT32_FACTOR = 4
"""Times the larger error of the original code's own float32 runs at the same tap."""
ROUNDING_FACTOR = 4
"""Times what other errors of the size of the rounding do at the same tap."""
MOST_FOR_ROUNDING = 1.0
"""Without the source the room is measured on the file under test, where a fault may make it large: more
than this is none. bfloat16 needs 0.5 in the last units of R50x1."""


class Tolerances:
    """The tolerances of one checkpoint's taps; what must be measured for them is, once, when first asked for."""

    def __init__(
        self,
        subject: Candidate,
        records: Recordings | None,
        truth: OracleTaps | None,
        images: Batches,
        progress: Progress,
    ) -> None:
        self.subject, self.records, self.truth, self.images = subject, records, truth, images
        self.progress = progress
        self._float32: dict[Key, float] = {}
        self._rounding: dict[tuple[str, Key], float] = {}

    def of(self, dtype: str, mode: str, key: Key) -> float:
        """The largest relative L2 error that passes. In float32 only end-to-end errors have one."""
        if dtype == "float64":
            return FLOAT64_TOLERANCE + self._for_rounding(mode, key)
        return FLOAT32_FACTOR * self._float32_error(key) + self._for_rounding(mode, key)

    def _float32_error(self, key: Key) -> float:
        """From the float32 runs that were recorded or, without any, from one of the definition."""
        if not self.subject.keeps(key[1]):
            return 0.0
        if self.records is not None:
            return self.records.float32_error(key)
        self._float32 = self._float32 or dict(self._measure_float32())
        return self._float32[key]

    def _for_rounding(self, mode: str, key: Key) -> float:
        """What rounding the weights may do to a tap: nothing where none was rounded."""
        if not self._roundoff(mode):
            return 0.0
        if not any(measured == mode for measured, _ in self._rounding):
            self._rounding |= dict(self._measure_rounding(mode))
        tolerance = ROUNDING_FACTOR * self._rounding.get((mode, key), 0.0)
        return tolerance if self.truth is not None or tolerance <= MOST_FOR_ROUNDING else 0.0

    def _roundoff(self, mode: str) -> float:
        """The largest relative error of a weight by rounding since what the results are held to was computed."""
        origin = self.subject.origin
        if self.truth is None or (mode == END_TO_END and self.records is not None):
            return origin.roundoff
        return replace(origin, roundings=origin.roundings[len(self.truth.subject.origin.roundings) :]).roundoff

    @property
    def _unaltered(self) -> Candidate:
        """The source if it is at hand, so that no fault of the written file makes room for itself."""
        return self.subject if self.truth is None else self.truth.subject

    def _measure_float32(self) -> Iterator[tuple[Key, float]]:
        """On the source, so that no fault of the written file makes room for itself."""
        assert self.truth is not None, "there are records, or a source"
        source = self.truth.subject
        taps = walk(source.definition(np.float32), source.checkpoint.config, self.images)
        for tap, values in self._watched("measuring what float32 does", taps):
            for name, value in values.items():
                yield (name, tap), relative_l2(value, self.truth[tap][name])

    def _measure_rounding(self, mode: str) -> Iterator[tuple[tuple[str, Key], float]]:
        """What it does to each tap when every weight gets another error within the roundoff, drawn by its name."""
        right, roundoff = self._unaltered.definition(), self._roundoff(mode)

        def rounded_otherwise(name: str, channels: slice = ALL) -> NDArray[np.float64]:
            values = right.weights(name, channels)
            seed = zlib.crc32(name.encode()), channels.start or 0
            values *= np.random.default_rng(seed).uniform(1 - roundoff, 1 + roundoff, values.shape)
            return values

        off = Oracle(rounded_otherwise, right.config, right.folded)
        runs = zip(self._run(right, mode), self._run(off, mode), strict=True)
        for (tap, expected), (_, found) in self._watched(f"measuring what rounding does, {mode}", runs):
            for name, value in found.items():
                yield (mode, (name, tap)), summary_error(summarize(tap, value), summarize(tap, expected[name]))

    def _run(self, implementation: Implementation, mode: str) -> Taps:
        config = self._unaltered.checkpoint.config
        if mode == END_TO_END or self.truth is None:
            yield from walk(implementation, config, self.images)
            return
        for part in parts(config):
            yield from run(implementation, part, self.truth.inputs(part))

    def _watched(self, what: str, items: Iterator[T]) -> Iterator[T]:
        """The taps, each announced as progress."""
        total = len(tap_names(self.subject.checkpoint.config))
        for done, item in enumerate(items, 1):
            self.progress(what, done, total)
            yield item
