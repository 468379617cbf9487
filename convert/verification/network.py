"""The function of a conversion: every implementation that can run it, compared and, where it fails, diagnosed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.errors import CheckpointError
from convert.network.runner import Implementation, walk
from convert.network.taps import parts, tap_names
from convert.progress import Progress
from convert.references.recordings import Recordings
from convert.references.registry import REFERENCES, SOURCE, Reference
from convert.references.worker import ReferenceProcess
from convert.verification import published_outputs
from convert.verification.candidate import Candidate
from convert.verification.diagnosis import Fault, Finding, diagnose
from convert.verification.metrics import relative_l2
from convert.verification.oracle_taps import OracleTaps
from convert.verification.results import ISOLATED, Agreement, Check
from convert.verification.tap_errors import TapComparison


@dataclass(frozen=True)
class Epsilon:
    """How far the results of a layout's own library are from the original's, by its epsilon alone."""

    library: str
    epsilon: float
    original: float
    input: str
    tap: str
    relative_l2: float | None


@dataclass
class NetworkResult:
    """What was compared, and what could not be."""

    checks: list[Check] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)
    ran: dict[str, dict[str, str]] = field(default_factory=dict)
    """For each run its versions, device, threads and whether TF32 was off."""
    not_run: dict[str, str] = field(default_factory=dict)
    """For each reference that was not run, why."""
    findings: list[Finding] = field(default_factory=list)
    epsilon: Epsilon | None = None
    reference: str = ""
    """What end-to-end results were held to."""


def compare_network(
    written: Candidate,
    source: Candidate | None,
    records: Recordings | None,
    references: Sequence[str],
    progress: Progress,
    differing: Mapping[str, NDArray[np.float64]] | None = None,
    others: Sequence[Implementation] = (),
    image: Path | None = None,
) -> NetworkResult:
    """Run the definition on the written file, and each of the `references` on what it can read.

    At least one of `source` and `records` is there. With references, and with a source, every
    part is judged on its own as well (isolated). `differing` are parameters of the written
    file, by canonical name, that are known not to be the source's; `others` further implementations
    that run the written file; `image` that of `published_outputs`. Raises `CheckpointError` if what
    a layout must be run with is not installed.
    """
    with contextlib.ExitStack() as stack:
        comparison = TapComparison(records, None, written.checkpoint.config.num_channels, progress)
        trials = NetworkResult(comparison.checks, comparison.agreements, reference=comparison.reference)
        bench = _Bench(comparison, trials, source, stack, progress, dict(differing or {}))
        if source is not None and (references or records is None or written.origin.roundings):
            bench.need_truth()
            if records is not None:
                bench.run(bench.need_truth(), source, forced=False)
        forced = bool(references) and source is not None
        bench.run(written.definition(), written, forced)
        layout = written.checkpoint.layout
        if layout.ws_eps != written.checkpoint.config.ws_eps and not layout.folded:
            trials.epsilon = bench.measure_epsilon(written)
        if layout.folded:
            references = list(dict.fromkeys((*references, "onnxruntime")))
        for implementation in others:
            bench.run(implementation, written, forced)
        bench.run_references([REFERENCES[name] for name in references], written)
        if references:
            bench.run_published(written, image)
    return trials


@dataclass
class _Bench:
    comparison: TapComparison
    trials: NetworkResult
    source: Candidate | None
    stack: contextlib.ExitStack
    progress: Progress
    differing: dict[str, NDArray[np.float64]]

    def need_truth(self) -> OracleTaps:
        """The definition's taps on the source, computed when first needed."""
        if self.comparison.truth is None:
            assert self.source is not None
            truth = OracleTaps(self.source, self.comparison.images, self.progress)
            self.comparison.truth = self.stack.enter_context(truth)
        return self.comparison.truth

    def run_references(self, references: Sequence[Reference], written: Candidate) -> None:
        """Each on all that it can read, in every dtype that it has."""
        runs = [(item, subject) for item in references for subject in self._subjects(item, written)]
        with contextlib.ExitStack() as ahead:
            waiting: ReferenceProcess | None = None
            for number, (reference, subject) in enumerate(runs):
                with waiting or ReferenceProcess(reference, subject.checkpoint) as process:
                    if number + 1 < len(runs):  # it imports its framework meanwhile
                        following, its = runs[number + 1]
                        waiting = ahead.enter_context(ReferenceProcess(following, its.checkpoint))
                    for dtype in reference.dtypes:
                        forced = dtype == "float64" and self.comparison.truth is not None
                        self.run(process.load(dtype), subject, forced)

    def _subjects(self, reference: Reference, written: Candidate) -> list[Candidate]:
        """What the reference can run; if nothing, it is noted why."""
        sides = {subject.side: subject for subject in (written, self.source) if subject is not None}
        readable = [
            sides[side] for side in reference.sides if side in sides and reference.reads(sides[side].checkpoint)
        ]
        if not readable:
            self.trials.not_run[reference.name] = "it reads neither the written layout nor the source's"
            return []
        if reference.missing is not None:
            reason = f"{reference.missing} is not installed: pip install -e '.[{reference.extra}]'"
            if readable[0].checkpoint.layout.folded:
                raise CheckpointError(f"{reason}; without it the graph cannot be run")
            self.trials.not_run[reference.name] = reason
            return []
        return readable if reference.each else readable[:1]

    def run_published(self, written: Candidate, image: Path | None) -> None:
        preprocessing = None if self.source is None else self.source.checkpoint.file.path.parent
        said = published_outputs.compare(written, image, preprocessing)
        if isinstance(said, Check):
            self.trials.checks.append(said)
        else:
            self.trials.not_run[published_outputs.REFERENCE] = said

    def run(self, implementation: Implementation, subject: Candidate, forced: bool) -> None:
        before, agreements = len(self.trials.checks), len(self.trials.agreements)
        checks = self.comparison.run(implementation, subject, forced)
        failed = not all(check.passed for check in checks)
        if failed and self.source is not None and implementation is not self.comparison.truth:
            if not forced:
                self.need_truth()
                del self.trials.checks[before:], self.trials.agreements[agreements:]
                checks = self.comparison.run(implementation, subject, forced=True)
            self._diagnose(implementation, subject, checks)
        for check in checks[:1]:
            self.trials.ran[check.run] = dict(implementation.about)

    def _diagnose(self, implementation: Implementation, subject: Candidate, checks: Sequence[Check]) -> None:
        faults = {}
        for part, taps in parts(subject.checkpoint.config).items():
            failed = [check for check in checks if check.mode == ISOLATED and check.tap in taps and not check.passed]
            if failed and subject.keeps(part) and part in self.need_truth():
                faults[part] = Fault(max(check.error for check in failed), max(check.tolerance for check in failed))
        differing = {} if subject.side == SOURCE else self.differing
        known = {(finding.part, finding.explanation) for finding in self.trials.findings}
        for finding in diagnose(implementation, self.need_truth(), faults, differing):
            if (finding.part, finding.explanation) not in known:
                self.trials.findings.append(finding)

    @np.errstate(invalid="ignore", over="ignore")
    def measure_epsilon(self, written: Candidate) -> Epsilon:
        """How far the results of the layout's own library will be, whose epsilon is fixed.

        On the smallest input, at the logits unless the head was changed. The definition must have
        been run on the written file just before.
        """
        checkpoint, images = written.checkpoint, self.comparison.images
        name, image = min(images.items(), key=lambda item: item[1].size)
        tap = "logits" if written.origin.head == "keep" and checkpoint.config.num_labels else "pooled"
        theirs, difference = checkpoint.layout.ws_eps, math.inf
        definition = written.definition()
        definition.config = checkpoint.config.replace(ws_eps=theirs)
        total = len(tap_names(checkpoint.config))
        taps = walk(definition, checkpoint.config, {name: image})
        for done, (found, values) in enumerate(taps, 1):
            self.progress(f"measuring epsilon {theirs:g}", done, total)
            if found == tap and (name, tap) in self.comparison.whole:
                difference = relative_l2(values[name], self.comparison.whole[name, tap])
        finite = difference if math.isfinite(difference) else None
        return Epsilon(checkpoint.layout.name, theirs, checkpoint.config.ws_eps, name, tap, finite)
