"""Run every implementation that can run a conversion, and diagnose those that differ."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from convert.checkpoints.checkpoint import Checkpoint
from convert.conversion.folded import is_written_here
from convert.errors import CheckpointError
from convert.network.inputs import INPUTS, batches, input_sha256
from convert.network.oracle import Oracle
from convert.network.runner import Batches, Implementation
from convert.network.taps import Array, Key, Part, parts, tap_names
from convert.progress import Progress, SharedProgress, tracked
from convert.references.recordings import Recordings
from convert.references.registry import FOREIGN_GRAPH, REFERENCES, Reference, own_reference
from convert.references.worker import ProcessError, ReferenceProcess, at_once, processors
from convert.verification.diagnosis import diagnose
from convert.verification.metrics import finite, relative_l2
from convert.verification.oracle_taps import OracleTaps
from convert.verification.results import CONVERTED, ISOLATED, SOURCE, EpsilonEffect, Finding, NetworkResult
from convert.verification.tap_errors import BothModes, Candidate, Expected, RunResult, compare_taps, run_both_modes


def compare_network(
    converted: Candidate,
    source: Candidate | None,
    recordings: Recordings | None,
    references: Sequence[str],
    progress: Progress,
    others: Sequence[Implementation] = (),
) -> NetworkResult:
    """Run the oracle on the converted file, and each of the `references` on the files that it reads.

    There is a source, a recording, or both. With references and a source, every part is also compared in
    isolation. `others` are further implementations that run the converted file. A graph is always run by
    ONNX Runtime or Keras, unless it is not the one that `bit convert` writes.
    """
    checkpoint, layout = converted.checkpoint, converted.checkpoint.layout
    shared = SharedProgress(progress)
    images = batches(recordings.float64.inputs if recordings else INPUTS, checkpoint.config.num_channels)
    with tempfile.TemporaryDirectory(prefix="bit-taps-") as folder:
        oracle = None if source is None else OracleTaps(source.checkpoint, images, Path(folder), shared)
        sides = {
            candidate.side: Expected(candidate, recordings, oracle, images, shared)
            for candidate in (converted, source)
            if candidate is not None
        }
        expected, isolated = sides[CONVERTED], bool(references) and oracle is not None
        own = own_reference(layout)
        names = dict.fromkeys((*references, *([own] if own else [])))
        planned, not_run = _planned([REFERENCES[name] for name in names], sides)
        count = at_once(len(planned))
        # Beside references the oracle has as many threads as each of them: more would wait for each other.
        threads = processors() // count if planned else None
        with _started(planned, shared, count) as running, threadpool_limits(threads, "blas"):
            runs = []
            if oracle is not None and recordings is not None and (references or converted.origin.roundings):
                taps: BothModes = ((tap, values, {}) for tap, values in oracle.taps())
                runs.append(compare_taps(oracle.source.oracle(), sides[SOURCE], taps))
            has_other_epsilon = layout.ws_eps != checkpoint.config.ws_eps and not layout.folded
            of_both = OracleOfTwoEpsilons(expected) if has_other_epsilon else None
            of_oracle = judge(of_both or checkpoint.oracle(), expected, isolated)
            runs += [of_oracle, *(judge(implementation, expected, isolated) for implementation in others)]
            by_references = [(reference, run) for reference, runs_of_it in running for run in runs_of_it.result()]
        runs += [run for _, run in by_references if run.checks]
        crashed = {
            reference.name: f"{run.failure}; to install it again: {reference.install}"
            for reference, run in by_references
            if run.failure
        }
        findings: dict[tuple[str, str | None], Finding] = {}
        for finding in (item for run in runs for item in run.findings):
            findings.setdefault((finding.part, finding.explanation), finding)
        return NetworkResult(
            checks=tuple(check for run in runs for check in run.checks),
            agreements=tuple(item for run in runs for item in run.agreements),
            environments={run.checks[0].run: dict(run.environment) for run in runs},
            not_run=not_run | crashed,
            crashed=tuple(crashed),
            findings=tuple(findings.values()),
            epsilon=of_both.effect(of_oracle.outputs) if of_both is not None else None,
            reference=expected.reference(),
            inputs={name: input_sha256(batch) for name, batch in images.items()},
            recordings=recordings.files if recordings is not None else {},
        )


def judge(implementation: Implementation, expected: Expected, isolated: bool) -> RunResult:
    """Compare one implementation; if it differs and there is a source, in isolation too, and diagnose it."""
    candidate, oracle = expected.candidate, expected.oracle
    config, task = candidate.checkpoint.config, f"comparing {implementation.name} {implementation.dtype}"
    taps = run_both_modes(implementation, expected, isolated)
    result = compare_taps(implementation, expected, tracked(taps, task, len(tap_names(config)), expected.progress))
    if oracle is None or result.failure or all(check.passed for check in result.checks):
        return result
    if not isolated:
        again = judge(implementation, expected, isolated=True)
        return replace(result, failure=again.failure) if again.failure else again
    failed = {
        part: [c for c in result.checks if c.mode == ISOLATED and c.tap in part.taps and not c.passed]
        for part in parts(config)
        if candidate.keeps(part.name) and part.name in oracle.names
    }
    faulty = {part: checks for part, checks in failed.items() if checks}
    try:
        return replace(result, findings=tuple(diagnose(implementation, oracle, faulty, candidate.differing)))
    except ProcessError as error:
        return replace(result, failure=error.problems[0])


def _planned(
    references: Sequence[Reference], sides: Mapping[str, Expected]
) -> tuple[list[tuple[Reference, Expected]], dict[str, str]]:
    """Return the runs of each reference on the sides that it reads, and the reason for each that cannot run."""
    planned, not_run = list[tuple[Reference, Expected]](), dict[str, str]()
    for reference in references:
        found = [sides[side] for side in reference.sides if side in sides]
        found = [expected for expected in found if reference.reads(expected.candidate.checkpoint)]
        if not found:
            not_run[reference.name] = "it reads neither the converted layout nor the layout of the source"
        elif reference.missing is not None:
            not_run[reference.name] = f"{reference.missing} is not installed: {reference.install}"
        elif any(_has_foreign_graph(expected.candidate.checkpoint) for expected in found):
            not_run[reference.name] = FOREIGN_GRAPH
        else:
            planned += [(reference, expected) for expected in (found if reference.layouts else found[:1])]
    return planned, not_run


def _has_foreign_graph(checkpoint: Checkpoint) -> bool:
    return checkpoint.layout.folded and not is_written_here(checkpoint)


@contextlib.contextmanager
def _started(
    planned: Sequence[tuple[Reference, Expected]], progress: SharedProgress, count: int
) -> Iterator[list[tuple[Reference, Future[list[RunResult]]]]]:
    """Run references in the background, `count` of them side by side; an error in the context ends them.

    Processes of one thread each finish earlier than one process of many: much of what a framework does, such as
    importing and compiling, has one thread anyway.
    """
    threads, processes = processors() // count, list[ReferenceProcess]()

    def run(reference: Reference, expected: Expected) -> list[RunResult]:
        with ReferenceProcess(reference, expected.candidate.checkpoint, threads) as process:
            processes.append(process)
            return list(_run_dtypes(reference, expected, process))

    pool = ThreadPoolExecutor(count)
    try:
        yield [(reference, pool.submit(run, reference, expected)) for reference, expected in planned]
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        progress.stop()
        for process in processes:
            process.kill()
        raise
    finally:
        pool.shutdown()


def _run_dtypes(reference: Reference, expected: Expected, process: ReferenceProcess) -> Iterator[RunResult]:
    """Compare a reference in every dtype that it has, up to one that fails."""
    for dtype in reference.dtypes:
        try:
            result = judge(process.load(dtype), expected, dtype == "float64" and expected.oracle is not None)
        except (CheckpointError, MemoryError) as error:
            reasons = (*getattr(error, "problems", ()), str(error), "out of memory")
            result = RunResult(failure=next(filter(None, reasons)))
        yield result
        if result.failure:
            break


class OracleOfTwoEpsilons:
    """The oracle, which runs the smallest image of a verification with the epsilon of the layout's own library, too.

    Both go in one pass over the parts: to read and standardize the weights takes longer than a small image.
    """

    OTHER = "other epsilon"
    """The name of the input that has the other epsilon."""

    def __init__(self, expected: Expected) -> None:
        checkpoint, images = expected.candidate.checkpoint, expected.images
        self._checkpoint, self._input = checkpoint, min(images, key=lambda name: images[name].size)
        self._oracle = Oracle(checkpoint.weights, checkpoint.config, epsilons={self.OTHER: checkpoint.layout.ws_eps})
        self.name, self.dtype, self.about = self._oracle.name, self._oracle.dtype, self._oracle.about
        self._left = [part for part in parts(checkpoint.config) if expected.candidate.keeps(part.name)]
        self._last, self._other = self._left[-1].name, images[self._input]

    def run(self, part: Part, x: Batches) -> Sequence[Batches]:
        """Return the values of the part's taps; the first time, go on with the other epsilon, too."""
        if part not in self._left[:1]:
            return self._oracle.run(part, x)
        del self._left[0]
        values = [dict(tap) for tap in self._oracle.run(part, {**x, self.OTHER: self._other})]
        *_, self._other = [tap.pop(self.OTHER) for tap in values]
        return values

    @np.errstate(invalid="ignore", over="ignore")
    def effect(self, outputs: Mapping[Key, Array]) -> EpsilonEffect | None:
        """Return the difference between the epsilons, once every part has run; `outputs` are those of the first one.

        It is that of the logits, or of the pooled features if the head was changed.
        """
        if self._left:
            return None
        layout, original = self._checkpoint.layout, self._checkpoint.config.ws_eps
        difference = finite(relative_l2(self._other, outputs[self._input, self._last]))
        return EpsilonEffect(layout.name, layout.ws_eps, original, self._input, self._last, difference)
