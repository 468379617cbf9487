"""Run every implementation that can run a conversion, and diagnose those that differ."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from convert.errors import CheckpointError
from convert.network.inputs import INPUTS, batches
from convert.network.oracle import Oracle
from convert.network.runner import Batches, Implementation, run_network
from convert.network.taps import Array, Key, parts, tap_names
from convert.progress import Progress, tracked
from convert.references.recordings import Recordings
from convert.references.registry import REFERENCES, Reference
from convert.references.worker import ReferenceProcess
from convert.verification.candidate import Candidate
from convert.verification.diagnosis import diagnose
from convert.verification.metrics import relative_l2
from convert.verification.oracle_taps import OracleTaps
from convert.verification.results import ISOLATED, SOURCE, EpsilonEffect, Finding, NetworkResult
from convert.verification.tap_errors import BothModes, Expected, RunResult, compare_taps, run_both_modes
from convert.verification.tolerances import Tolerances


@dataclass(frozen=True)
class Task:
    """A conversion whose network is compared. It has a source, recordings, or both."""

    converted: Candidate
    source: Candidate | None
    recordings: Recordings | None
    differing: Mapping[str, Array] = field(default_factory=dict)
    """Parameters of the converted file, by canonical name, that are known to differ from the source."""


def compare_network(
    task: Task, references: Sequence[str], progress: Progress, others: Sequence[Implementation] = ()
) -> NetworkResult:
    """Run the oracle on the converted file, and each of the `references` on the files that it reads.

    With references and a source, every part is also compared in isolation. `others` are further
    implementations that run the converted file. A graph is always run by ONNX Runtime.
    """
    converted, source, recordings = task.converted, task.source, task.recordings
    checkpoint, layout = converted.checkpoint, converted.checkpoint.layout
    images = batches(recordings.float64.inputs if recordings else INPUTS, checkpoint.config.num_channels)
    with contextlib.ExitStack() as stack:
        oracle = None if source is None else stack.enter_context(OracleTaps(source, images, progress))
        tolerances = {
            candidate.side: Tolerances(candidate, recordings, oracle, images, progress)
            for candidate in (converted, source)
            if candidate is not None
        }
        comparison = _Comparison(task, Expected(recordings, oracle, images, tolerances), progress)
        isolated = bool(references) and oracle is not None
        runs = []
        if oracle is not None and recordings is not None and (references or converted.origin.roundings):
            taps: BothModes = ((tap, values, {}) for tap, values in oracle.taps())
            runs.append(compare_taps(oracle.source.checkpoint.oracle(), oracle.source, taps, comparison.expected))
        of_oracle = comparison.run(checkpoint.oracle(), converted, isolated)
        runs += [of_oracle, *(comparison.run(implementation, converted, isolated) for implementation in others)]
        names = dict.fromkeys((*references, *(["onnxruntime"] if layout.folded else [])))
        by_references, not_run, crashed = comparison.run_references([REFERENCES[name] for name in names])
        runs += by_references
        findings: dict[tuple[str, str | None], Finding] = {}
        for finding in (item for run in runs for item in run.findings):
            findings.setdefault((finding.part, finding.explanation), finding)
        has_other_epsilon = layout.ws_eps != checkpoint.config.ws_eps and not layout.folded
        return NetworkResult(
            checks=tuple(check for run in runs for check in run.checks),
            agreements=tuple(item for run in runs for item in run.agreements),
            environments={run.checks[0].run: dict(run.environment) for run in runs},
            not_run=not_run,
            crashed=crashed,
            findings=tuple(findings.values()),
            epsilon=measure_epsilon(converted, images, of_oracle.outputs, progress) if has_other_epsilon else None,
            reference=comparison.expected.reference(),
        )


@dataclass(frozen=True)
class _Comparison:
    task: Task
    expected: Expected
    progress: Progress

    def run(self, implementation: Implementation, candidate: Candidate, isolated: bool) -> RunResult:
        """Compare one implementation; if it fails and there is a source, in isolation too, and diagnose it."""
        config, oracle = candidate.checkpoint.config, self.expected.oracle
        taps = tracked(
            run_both_modes(implementation, candidate, self.expected.images, oracle if isolated else None),
            f"comparing {implementation.name} {implementation.dtype}",
            len(tap_names(config)),
            self.progress,
        )
        result = compare_taps(implementation, candidate, taps, self.expected)
        if oracle is None or all(check.passed for check in result.checks):
            return result
        if not isolated:
            return self.run(implementation, candidate, isolated=True)
        failed = {
            part: [c for c in result.checks if c.mode == ISOLATED and c.tap in part.taps and not c.passed]
            for part in parts(config)
            if candidate.keeps(part.name) and part.name in oracle
        }
        faulty = {part: checks for part, checks in failed.items() if checks}
        differing = {} if candidate.side == SOURCE else self.task.differing
        return replace(result, findings=tuple(diagnose(implementation, oracle, faulty, differing)))

    def run_references(
        self, references: Sequence[Reference]
    ) -> tuple[list[RunResult], dict[str, str], tuple[str, ...]]:
        """Run each reference, in every dtype it has, on the files that it reads.

        Returns the results, the reason for each reference that did not run, and the names of those that crashed.
        """
        readable = {reference: self._readable(reference) for reference in references}
        not_run = {reference.name: found for reference, found in readable.items() if isinstance(found, str)}
        planned = [
            (reference, item) for reference, found in readable.items() if isinstance(found, list) for item in found
        ]
        results, crashed = [], dict[str, str]()
        for reference, candidate, process in _started(planned):
            try:
                for dtype in reference.dtypes:
                    isolated = dtype == "float64" and self.expected.oracle is not None
                    results.append(self.run(process.load(dtype), candidate, isolated))
            except CheckpointError as error:
                crashed[reference.name] = str(error)
        return results, not_run | crashed, tuple(crashed)

    def _readable(self, reference: Reference) -> list[Candidate] | str:
        """Return the candidates that a reference can run or, if there are none, the reason."""
        sides = {item.side: item for item in (self.task.converted, self.task.source) if item is not None}
        found = [sides[side] for side in reference.sides if side in sides and reference.reads(sides[side].checkpoint)]
        if not found:
            return "it reads neither the converted layout nor the layout of the source"
        if reference.missing is not None:
            return f"{reference.missing} is not installed: pip install -e '.[{reference.extra}]'"
        return found if reference.layouts else found[:1]


def _started(
    planned: Sequence[tuple[Reference, Candidate]],
) -> Iterator[tuple[Reference, Candidate, ReferenceProcess]]:
    """Yield a process for each run; the next process imports the framework meanwhile."""
    with contextlib.ExitStack() as ahead:
        waiting: ReferenceProcess | None = None
        for number, (reference, candidate) in enumerate(planned, 1):
            with waiting or ReferenceProcess(reference, candidate.checkpoint) as process:
                for following, other in planned[number : number + 1]:
                    waiting = ahead.enter_context(ReferenceProcess(following, other.checkpoint))
                yield reference, candidate, process


@np.errstate(invalid="ignore", over="ignore")
def measure_epsilon(
    converted: Candidate, images: Batches, outputs: Mapping[Key, Array], progress: Progress
) -> EpsilonEffect:
    """Measure the difference that the fixed epsilon of the layout's own library makes on the smallest input.

    It is measured at the logits, or at the pooled features if the head was changed. `outputs` are
    those of the oracle with the epsilon that the weights are meant for.
    """
    checkpoint = converted.checkpoint
    name = min(images, key=lambda name: images[name].size)
    config = checkpoint.config.replace(ws_eps=checkpoint.layout.ws_eps)
    if not converted.keeps("logits"):
        config = config.replace(num_labels=0, id2label=None, problem_type=None)
    taps = run_network(Oracle(checkpoint.weights, config), config, {name: images[name]})
    watched = tracked(taps, f"measuring epsilon {config.ws_eps:g}", len(tap_names(config)), progress)
    tap, values = deque(watched, maxlen=1).pop()
    difference = relative_l2(values[name], outputs[name, tap])
    finite = difference if math.isfinite(difference) else None
    return EpsilonEffect(checkpoint.layout.name, config.ws_eps, checkpoint.config.ws_eps, name, tap, finite)
