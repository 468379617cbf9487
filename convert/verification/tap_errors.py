"""Compare every tap of a run with the expected values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convert.network.runner import Batches, Implementation, run_part
from convert.network.taps import WHOLE, Array, Key, parts, summarize, tap_names
from convert.references.recordings import Recordings
from convert.verification.candidate import Candidate
from convert.verification.metrics import relative_l2, summary_error
from convert.verification.oracle_taps import OracleTaps
from convert.verification.results import END_TO_END, ISOLATED, Agreement, Check, Finding
from convert.verification.tolerances import Tolerances

ORACLE = "the oracle on the source"
"""The reference of isolated checks and, without a recording, of end-to-end checks."""

BothModes = Iterable[tuple[str, Batches, Batches]]
"""A tap with end-to-end values and isolated values, which are empty if not wanted."""


@dataclass(frozen=True)
class RunResult:
    """The result of one run: one implementation, one dtype, one side."""

    checks: tuple[Check, ...]
    agreements: tuple[Agreement, ...]
    environment: Mapping[str, str]
    """Versions, device and threads."""
    outputs: Mapping[Key, Array]
    """Pooled features and logits, end-to-end."""
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Expected:
    """The values that runs are compared with: end-to-end a recording if there is one, otherwise the oracle."""

    recordings: Recordings | None
    oracle: OracleTaps | None
    """None without the source; then there are recordings, and isolated values cannot be compared."""
    images: Batches
    tolerances: Mapping[str, Tolerances]
    """By side."""

    def reference(self, mode: str = END_TO_END) -> str:
        """Return the name of the reference in reports."""
        if mode == ISOLATED or self.recordings is None:
            return ORACLE
        return f"recorded outputs of {self.recordings.float64.implementation}"

    def keys(self, candidate: Candidate) -> set[Key]:
        """Return the inputs and taps for which a candidate has expected values."""
        assert self.recordings is not None or self.oracle is not None, "there is a recording or a source"
        taps = self.oracle.names if self.recordings is None and self.oracle is not None else []
        known = self.recordings.float64.taps if self.recordings else {(x, tap) for x in self.images for tap in taps}
        new = {(name, "logits") for name in self.images} if candidate.has_new_head else set()
        return {key for key in known if candidate.keeps(key[1])} | new

    def error(self, mode: str, candidate: Candidate, key: Key, value: NDArray[np.generic]) -> float:
        """Return the relative L2 error of a tap; infinite if no value is expected."""
        name, tap = key
        if not candidate.keeps(tap):
            zeros = np.zeros((len(value), candidate.checkpoint.config.num_labels))
            return relative_l2(value, zeros) if candidate.has_new_head else math.inf
        if mode == END_TO_END and self.recordings is not None:
            return summary_error(summarize(tap, value), self.recordings.float64.taps.get(key, {}))
        return relative_l2(value, self.oracle[tap][name]) if self.oracle and tap in self.oracle else math.inf

    def logits(self, candidate: Candidate, name: str) -> Array | None:
        """Return the expected logits `[N, num_labels]` of an input; None if the head is another one."""
        if not candidate.keeps("logits"):
            return None
        if self.recordings is not None:
            return self.recordings.float64.taps.get((name, "logits"), {}).get("")
        return self.oracle["logits"][name] if self.oracle and "logits" in self.oracle else None


@np.errstate(invalid="ignore", over="ignore")
def compare_taps(
    implementation: Implementation, candidate: Candidate, taps: BothModes, expected: Expected
) -> RunResult:
    """Check every tap of a run. A tap that is missing on either side fails."""
    errors: dict[str, dict[Key, float]] = {END_TO_END: {}}
    outputs: dict[Key, Array] = {}
    for tap, together, isolated in taps:
        for mode, values in ((END_TO_END, together), (ISOLATED, isolated)):
            for name, value in values.items():
                error = expected.error(mode, candidate, (name, tap), value)
                errors.setdefault(mode, {})[name, tap] = error
        if tap in WHOLE:
            outputs |= {(name, tap): value.astype(np.float64) for name, value in together.items()}
    wanted, tolerances = expected.keys(candidate), expected.tolerances[candidate.side]
    order = [(name, tap) for tap in tap_names(candidate.checkpoint.config) for name in expected.images]
    run = (implementation.name, candidate.side, implementation.dtype)
    checks = []
    for mode, found in errors.items():
        for key in dict.fromkeys((*order, *sorted(wanted), *found)):
            comparable = key in order and key in wanted
            tolerance = tolerances.of(implementation.dtype, mode, key) if comparable else 0.0
            error = found.get(key, math.inf) if key in order else math.inf
            checks.append(Check(expected.reference(mode), *run, mode, *key, error, tolerance))
    agreements = []
    for (name, tap), logits in outputs.items():
        right = expected.logits(candidate, name) if tap == "logits" else None
        if right is not None and right.shape == logits.shape and np.isfinite(logits).all():
            agreements.append(_agreement((*run, name), logits, right))
    return RunResult(tuple(checks), tuple(agreements), implementation.about, outputs)


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
    implementation: Implementation, candidate: Candidate, images: Batches, oracle: OracleTaps | None
) -> Iterator[tuple[str, Batches, Batches]]:
    """Yield each tap end-to-end and, if there is an `oracle`, isolated.

    Both modes run in one pass, so that the weights of a part are read once.
    """
    state = images
    for part in parts(candidate.checkpoint.config):
        given = {} if oracle is None else oracle.inputs(part)
        both = {f"{END_TO_END} {name}": value for name, value in state.items()}
        both |= {f"{ISOLATED} {name}": x.astype(state[name].dtype, copy=False) for name, x in given.items()}
        for tap, values in run_part(implementation, part, both):
            state = {name: values[f"{END_TO_END} {name}"] for name in images}
            yield tap, state, {name: values[f"{ISOLATED} {name}"] for name in given}
