"""Compare every tap of a run with the expected value, within a tolerance derived from the effect of rounding there."""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.manifest import Origin
from convert.network.oracle import Oracle
from convert.network.parameters import ALL
from convert.network.runner import Batches, Implementation, run_network, run_part
from convert.network.taps import WHOLE, Array, Key, parts, summarize, tap_names
from convert.progress import Progress, tracked
from convert.references.recordings import Recordings
from convert.references.worker import ProcessError
from convert.verification.metrics import relative_l2, summary_error
from convert.verification.oracle_taps import OracleTaps, run_oracle
from convert.verification.results import END_TO_END, ISOLATED, SOURCE, TOLERANCES, Agreement, Check, Finding

FLOAT32_FACTOR = 4
"""Multiple of the larger error that the recorded float32 runs have at the same tap."""
ROUNDING_FACTOR = 4
"""Multiple of the error that another rounding of the same size causes at the same tap."""
LARGEST_ROUNDING_TOLERANCE = 1.0
"""Without the source, the effect of rounding is measured on the converted file, where a fault may inflate
it: a larger tolerance than this counts as 0. bfloat16 needs 0.5 in the last units of R50x1."""

ORACLE_ON_SOURCE = "the oracle on the source"
"""The name of the reference of isolated checks, and of all checks without a recording."""

BothModes = Iterable[tuple[str, Batches, Batches]]
"""A tap with end-to-end values and isolated values, which are empty if not wanted."""


@dataclass(frozen=True)
class Candidate:
    """A converted checkpoint or the source."""

    side: str
    """`source` or `converted`."""
    checkpoint: Checkpoint
    differing: Mapping[str, Array] = field(default_factory=dict)
    """Parameters, by canonical name, that are known to differ from the source."""

    @property
    def origin(self) -> Origin:
        """The original checkpoint, and what conversions have changed since: the head, and the rounding of weights."""
        manifest = self.checkpoint.manifest
        return Origin(self.checkpoint.name, "") if manifest is None else manifest.origin

    @property
    def has_new_head(self) -> bool:
        """True if a conversion has put a head of zeros in place of the original one."""
        return self.origin.head.startswith("new:")

    def keeps(self, tap: str) -> bool:
        """Return whether a tap must have the values that it has in the original network."""
        return tap != "logits" or self.origin.head == "keep"


def recorded_by(recordings: Recordings) -> str:
    """Return the name of recordings as the reference of end-to-end checks."""
    return f"recorded outputs of {recordings.float64.implementation}"


@dataclass(frozen=True)
class Expected:
    """The values that the runs of one candidate are compared with, and the tolerances.

    End-to-end, a tap is compared with a recording if there is one, otherwise with the oracle. Effects of
    rounding are measured when first needed: on the source if there is an oracle for it, so that no fault
    of the converted file enlarges a tolerance.
    """

    candidate: Candidate
    recordings: Recordings | None
    oracle: OracleTaps | None
    """None without the source; then there are recordings, and isolated values cannot be compared."""
    images: Batches
    progress: Progress
    _rounding: dict[str, dict[Key, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while an effect of rounding is measured; another thread that asks for it waits."""

    def reference(self, mode: str = END_TO_END) -> str:
        """Return the name of the reference in reports."""
        if mode == ISOLATED or self.recordings is None:
            return ORACLE_ON_SOURCE
        return recorded_by(self.recordings)

    def keys(self) -> set[Key]:
        """Return the inputs and taps that have expected values."""
        if self.recordings is not None:
            known = set(self.recordings.float64.taps)
        else:
            assert self.oracle is not None, "there is a recording or a source"
            known = {(name, tap) for name in self.images for tap in self.oracle.names}
        new = {(name, "logits") for name in self.images} if self.candidate.has_new_head else set()
        return {key for key in known if self.candidate.keeps(key[1])} | new

    def error(self, mode: str, key: Key, value: NDArray[np.generic]) -> float:
        """Return the relative L2 error of a tap; infinite if no value is expected."""
        name, tap = key
        if not self.candidate.keeps(tap):
            zeros = np.zeros((len(value), self.candidate.checkpoint.config.num_labels))
            return relative_l2(value, zeros) if self.candidate.has_new_head else math.inf
        if mode == END_TO_END and self.recordings is not None:
            return summary_error(summarize(tap, value), self.recordings.float64.taps.get(key, {}))
        return relative_l2(value, self.oracle[tap][name]) if self.oracle and tap in self.oracle.names else math.inf

    def logits(self, name: str) -> Array | None:
        """Return the expected logits `[N, num_labels]` of an input; None if the head is another one."""
        if not self.candidate.keeps("logits"):
            return None
        if self.recordings is not None:
            return self.recordings.float64.taps.get((name, "logits"), {}).get("")
        return self.oracle["logits"][name] if self.oracle and "logits" in self.oracle.names else None

    def tolerance(self, dtype: str, mode: str, key: Key) -> float:
        """Return the largest relative L2 error that passes."""
        tolerance = TOLERANCES[mode] if dtype == "float64" else FLOAT32_FACTOR * self._float32_error(key)
        return tolerance + self._for_rounded_weights(mode, key)

    def _float32_error(self, key: Key) -> float:
        """Return the error of recorded float32 runs or, without a recording, of the oracle in float32."""
        if not self.candidate.keeps(key[1]):
            return 0.0
        if self.recordings is None:
            assert self.oracle is not None, "there is a recording or a source"
            return self.oracle.float32_errors[key]
        expected = self.recordings.float64.taps.get(key, {})
        return max(summary_error(run.taps.get(key, {}), expected) for run in self.recordings.float32)

    def _for_rounded_weights(self, mode: str, key: Key) -> float:
        """Return the part of a tolerance that is due to weights rounded after the reference was computed."""
        origin = self.candidate.origin
        if self.oracle is not None and (mode == ISOLATED or self.recordings is None):
            before = len(Candidate(SOURCE, self.oracle.source).origin.roundings)
            origin = replace(origin, roundings=origin.roundings[before:])
        if not origin.roundoff:
            return 0.0
        with self._lock:
            if mode not in self._rounding:
                self._rounding[mode] = dict(self._measure_rounding(mode, origin.roundoff))
        tolerance = ROUNDING_FACTOR * self._rounding[mode].get(key, 0.0)
        return tolerance if self.oracle is not None or tolerance <= LARGEST_ROUNDING_TOLERANCE else 0.0

    def _measure_rounding(self, mode: str, roundoff: float) -> Iterator[tuple[Key, float]]:
        """Measure each tap's error when every weight gets another error within `roundoff`, seeded by the name."""
        oracle, task = self.oracle, f"measuring the effect of rounded weights, {mode}"
        right = (self.candidate.checkpoint if oracle is None else oracle.source).oracle()

        def rounded(name: str, channels: slice = ALL) -> NDArray[np.float64]:
            values = right.weights(name, channels)
            seed = zlib.crc32(name.encode()), channels.start or 0
            values *= np.random.default_rng(seed).uniform(1 - roundoff, 1 + roundoff, values.shape)
            return values

        perturbed = Oracle(rounded, right.config, right.folded)
        expected = run_network(right, right.config, self.images) if oracle is None else oracle.taps()
        if oracle is None or mode == END_TO_END:
            found = run_oracle(perturbed, self.images, task, self.progress)
        else:
            taps = (tap for part in parts(right.config) for tap in run_part(perturbed, part, oracle.inputs(part)))
            found = tracked(taps, task, len(oracle.names), self.progress)
        for (tap, values), (_, wanted) in zip(found, expected, strict=True):
            for name, value in values.items():
                yield (name, tap), summary_error(summarize(tap, value), summarize(tap, wanted[name]))


@dataclass(frozen=True)
class RunResult:
    """The result of one run: one implementation, one dtype, one side."""

    checks: tuple[Check, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    """Versions, device and threads."""
    outputs: Mapping[Key, Array] = field(default_factory=dict)
    """Pooled features and logits, end-to-end."""
    findings: tuple[Finding, ...] = ()
    failure: str = ""
    """The reason why the process of the run ended early; the checks are those that were made before."""


@np.errstate(invalid="ignore", over="ignore")
def compare_taps(implementation: Implementation, expected: Expected, taps: BothModes) -> RunResult:
    """Check every tap of a run. A tap that is missing on either side fails, unless the process of the run failed."""
    errors: dict[str, dict[Key, float]] = {END_TO_END: {}}
    outputs: dict[Key, Array] = {}
    failure = ""
    try:
        for tap, together, isolated in taps:
            for mode, values in ((END_TO_END, together), (ISOLATED, isolated)):
                for name, value in values.items():
                    errors.setdefault(mode, {})[name, tap] = expected.error(mode, (name, tap), value)
            if tap in WHOLE:
                outputs |= {(name, tap): value.astype(np.float64) for name, value in together.items()}
    except ProcessError as ended:
        failure = ended.problems[0]
    candidate, wanted = expected.candidate, expected.keys()
    order = [(name, tap) for tap in tap_names(candidate.checkpoint.config) for name in expected.images]
    run = (implementation.name, candidate.side, implementation.dtype)
    checks = []
    for mode, found in errors.items():
        for key in found if failure else dict.fromkeys((*order, *sorted(wanted), *found)):
            comparable = key in order and key in wanted
            tolerance = expected.tolerance(implementation.dtype, mode, key) if comparable else 0.0
            error = found.get(key, math.inf) if key in order else math.inf
            checks.append(Check(expected.reference(mode), *run, mode, *key, error, tolerance))
    agreements = []
    for (name, tap), logits in outputs.items():
        right = expected.logits(name) if tap == "logits" else None
        if right is not None and right.shape == logits.shape and np.isfinite(logits).all():
            agreements.append(_agreement((*run, name), logits, right))
    return RunResult(tuple(checks), tuple(agreements), implementation.about, outputs, failure=failure)


def _agreement(about: tuple[str, str, str, str], found: Array, expected: Array) -> Agreement:
    """Compare the classes of logits `[N, classes]`."""
    ranks, wanted = (np.argsort(-logits, axis=1, kind="stable")[:, :5] for logits in (found, expected))
    top5 = [set(x) == set(y) for x, y in zip(ranks.tolist(), wanted.tolist(), strict=True)]
    top1 = int((ranks[:, 0] == wanted[:, 0]).sum())
    ordered = np.sort(expected, axis=1)
    margin = float((ordered[:, -1] - ordered[:, -2]).min()) if expected.shape[1] > 1 else 0.0
    return Agreement(*about, len(found), top1, sum(top5), margin, float(np.abs(found - expected).max()))


@np.errstate(invalid="ignore", over="ignore")
def run_both_modes(
    implementation: Implementation, expected: Expected, isolated: bool
) -> Iterator[tuple[str, Batches, Batches]]:
    """Yield each tap end-to-end and, with `isolated`, given the input that the oracle has computed.

    Both modes run in one pass, so that the weights of a part are read once. Where both have the same input, such as
    the images, the part is computed once.
    """
    state = expected.images
    for part in parts(expected.candidate.checkpoint.config):
        given = expected.oracle.inputs(part) if isolated and expected.oracle is not None else {}
        given = {name: x.astype(state[name].dtype, copy=False) for name, x in given.items()}
        other = {name: x for name, x in given.items() if not np.array_equal(x, state[name])}
        both = {f"{END_TO_END} {name}": value for name, value in state.items()}
        both |= {f"{ISOLATED} {name}": x for name, x in other.items()}
        for tap, values in run_part(implementation, part, both):
            state = {name: values[f"{END_TO_END} {name}"] for name in expected.images}
            yield tap, state, {name: values[f"{ISOLATED} {name}"] if name in other else state[name] for name in given}
