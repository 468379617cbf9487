"""The largest error that each tap may have, derived from the effect of rounding there."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from convert.network.oracle import Oracle
from convert.network.parameters import ALL
from convert.network.runner import Batches, Taps, run_network, run_part
from convert.network.taps import Key, parts, summarize, tap_names
from convert.progress import Progress, tracked
from convert.references.recordings import Recordings
from convert.verification.candidate import Candidate
from convert.verification.metrics import relative_l2, summary_error
from convert.verification.oracle_taps import OracleTaps
from convert.verification.results import END_TO_END, FLOAT64_TOLERANCE

FLOAT32_FACTOR = 4
"""Multiple of the larger error that the recorded float32 runs have at the same tap."""
ROUNDING_FACTOR = 4
"""Multiple of the error that another rounding of the same size causes at the same tap."""
LARGEST_ROUNDING_TOLERANCE = 1.0
"""Without the source, the effect of rounding is measured on the converted file, where a fault may inflate
it: a larger tolerance than this counts as 0. bfloat16 needs 0.5 in the last units of R50x1."""


@dataclass(frozen=True)
class Tolerances:
    """The tolerances of one candidate's taps. Effects of rounding are measured when first needed.

    They are measured on the source if there is an oracle for it, so that no fault of the converted
    file enlarges a tolerance.
    """

    candidate: Candidate
    recordings: Recordings | None
    oracle: OracleTaps | None
    images: Batches
    progress: Progress
    _rounding: dict[str, dict[Key, float]] = field(default_factory=dict)

    def of(self, dtype: str, mode: str, key: Key) -> float:
        """Return the largest relative L2 error that passes."""
        if dtype == "float64":
            return FLOAT64_TOLERANCE + self._for_rounded_weights(mode, key)
        return FLOAT32_FACTOR * self._float32_error(key) + self._for_rounded_weights(mode, key)

    def _float32_error(self, key: Key) -> float:
        """Return the error of recorded float32 runs or, without a recording, of the oracle in float32."""
        if not self.candidate.keeps(key[1]):
            return 0.0
        if self.recordings is None:
            return self._oracle_in_float32[key]
        expected = self.recordings.float64.taps.get(key, {})
        return max(summary_error(run.taps.get(key, {}), expected) for run in self.recordings.float32)

    @cached_property
    def _oracle_in_float32(self) -> dict[Key, float]:
        assert self.oracle is not None, "there is a recording or a source"
        source, oracle = self.oracle.source.checkpoint, self.oracle
        taps = run_network(source.oracle(np.float32), source.config, self.images)
        return {
            (name, tap): relative_l2(value, oracle[tap][name])
            for tap, values in self._tracked(taps, "measuring the rounding of float32")
            for name, value in values.items()
        }

    def _for_rounded_weights(self, mode: str, key: Key) -> float:
        """Return the part of a tolerance that is due to rounded weights: 0 if none were rounded."""
        roundoff = self._roundoff(mode)
        if not roundoff:
            return 0.0
        if mode not in self._rounding:
            self._rounding[mode] = dict(self._measure_rounding(mode, roundoff))
        tolerance = ROUNDING_FACTOR * self._rounding[mode].get(key, 0.0)
        return tolerance if self.oracle is not None or tolerance <= LARGEST_ROUNDING_TOLERANCE else 0.0

    def _roundoff(self, mode: str) -> float:
        """Return the largest relative error of a weight due to roundings after the reference was computed."""
        origin = self.candidate.origin
        if self.oracle is None or (mode == END_TO_END and self.recordings is not None):
            return origin.roundoff
        return replace(origin, roundings=origin.roundings[len(self.oracle.source.origin.roundings) :]).roundoff

    def _measure_rounding(self, mode: str, roundoff: float) -> Iterator[tuple[Key, float]]:
        """Measure each tap's error when every weight gets another error within `roundoff`, seeded by the name."""
        checkpoint = (self.candidate if self.oracle is None else self.oracle.source).checkpoint
        right = checkpoint.oracle()

        def rounded(name: str, channels: slice = ALL) -> NDArray[np.float64]:
            values = right.weights(name, channels)
            seed = zlib.crc32(name.encode()), channels.start or 0
            values *= np.random.default_rng(seed).uniform(1 - roundoff, 1 + roundoff, values.shape)
            return values

        perturbed = Oracle(rounded, right.config, right.folded)
        expected = run_network(right, right.config, self.images) if self.oracle is None else self.oracle.taps()
        if self.oracle is None or mode == END_TO_END:
            found = run_network(perturbed, right.config, self.images)
        else:
            oracle = self.oracle
            found = (tap for part in parts(right.config) for tap in run_part(perturbed, part, oracle.inputs(part)))
        found = self._tracked(found, f"measuring the effect of rounded weights, {mode}")
        for (tap, values), (_, wanted) in zip(found, expected, strict=True):
            for name, value in values.items():
                yield (name, tap), summary_error(summarize(tap, value), summarize(tap, wanted[name]))

    def _tracked(self, taps: Taps, task: str) -> Taps:
        return tracked(taps, task, len(tap_names(self.candidate.checkpoint.config)), self.progress)
