"""Holding what an implementation computes to the references, tap by tap; the errors, as values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from convert.network.inputs import INPUTS, batches
from convert.network.runner import Batches, Implementation, run
from convert.network.taps import WHOLE, Key, Summary, parts, summarize, tap_names
from convert.progress import Progress
from convert.references.recordings import Recordings
from convert.verification.candidate import Candidate
from convert.verification.metrics import agreement, relative_l2, summary_error
from convert.verification.oracle_taps import OracleTaps
from convert.verification.results import END_TO_END, ISOLATED, Agreement, Check
from convert.verification.tolerances import Tolerances


@dataclass
class TapComparison:
    """End-to-end errors are those from the records or, where there are none, from the truth.

    Isolated ones are always from the truth, and need one.
    """

    records: Recordings | None
    truth: OracleTaps | None
    channels: int
    progress: Progress
    checks: list[Check] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.images: Batches = batches(self.records.truth.inputs if self.records else INPUTS, self.channels)
        self.whole: dict[Key, NDArray[np.float64]] = {}
        """The pooled features and logits that the last implementation gave end-to-end."""
        self._budgets: dict[tuple[str, bool], Tolerances] = {}

    @property
    def reference(self) -> str:
        if self.records is None:
            return "the definition on the source file"
        return f"recorded outputs of {self.records.truth.implementation}"

    @np.errstate(invalid="ignore", over="ignore")
    def run(self, implementation: Implementation, subject: Candidate, forced: bool = False) -> list[Check]:
        """Check every tap of an implementation that runs the subject's weights; the checks of this run.

        `forced` gives each part the truth's input too, in the same pass. A tap that is missing on
        either side fails, and so do values that are not finite.
        """
        found: dict[tuple[str, Key], float] = {}
        self.whole.clear()
        state, config = self.images, subject.checkpoint.config
        what = f"comparing {implementation.name} {implementation.dtype}"
        for number, part in enumerate(parts(config), 1):
            given = self.truth.inputs(part) if forced and self.truth is not None else None
            for tap, values, alone in _both(implementation, part, state, given):
                state = values
                for name, value in values.items():
                    found[END_TO_END, (name, tap)] = self._error(END_TO_END, subject, (name, tap), value)
                    if tap in WHOLE:
                        self.whole[name, tap] = value.astype(np.float64)
                for name, value in alone.items():
                    found[ISOLATED, (name, tap)] = self._error(ISOLATED, subject, (name, tap), value)
            self.progress(what, number, len(parts(config)))
        checks = self._judged(found, implementation, subject, forced)
        self.checks += checks
        return checks

    def tolerances(self, subject: Candidate) -> Tolerances:
        key = subject.side, self.truth is not None
        if key not in self._budgets:
            self._budgets[key] = Tolerances(subject, self.records, self.truth, self.images, self.progress)
        return self._budgets[key]

    def expected(self, subject: Candidate) -> set[Key]:
        """What the references hold of what this subject should compute."""
        if self.records is not None:
            known = set(self.records.truth.taps)
        else:
            assert self.truth is not None, "there are records, or a source"
            known = {(name, tap) for name in self.images for tap in tap_names(self.truth.subject.checkpoint.config)}
        kept = {key for key in known if subject.keeps(key[1])}
        return kept | ({(name, "logits") for name in self.images} if subject.has_new_head else set())

    def _error(self, mode: str, subject: Candidate, key: Key, value: NDArray[np.generic]) -> float:
        name, tap = key
        if not subject.keeps(tap):
            zeros = np.zeros((len(value), subject.checkpoint.config.num_labels))
            return relative_l2(value, zeros) if subject.has_new_head else math.inf
        if mode == END_TO_END and self.records is not None:
            return summary_error(summarize(tap, value), self.records.truth.taps.get(key, {}))
        if self.truth is None or tap not in self.truth:
            return math.inf
        return relative_l2(value, self.truth[tap][name])

    def _judged(
        self, found: dict[tuple[str, Key], float], implementation: Implementation, subject: Candidate, forced: bool
    ) -> list[Check]:
        keys = {(name, tap) for name in self.images for tap in tap_names(subject.checkpoint.config)}
        expected, tolerances = self.expected(subject), self.tolerances(subject)
        checks = []
        for mode in (END_TO_END, ISOLATED) if forced and self.truth is not None else (END_TO_END,):
            reference = self.reference if mode == END_TO_END else "the definition on the source file"
            run = (reference, implementation.name, subject.side, implementation.dtype, mode)
            order = [(name, tap) for tap in tap_names(subject.checkpoint.config) for name in self.images]
            for key in dict.fromkeys((*order, *sorted(expected), *(key for _, key in found))):
                error = found.get((mode, key), math.inf) if key in keys else math.inf
                limit = tolerances.of(implementation.dtype, mode, key) if key in expected and key in keys else 0.0
                checks.append(Check(*run, *key, error, limit))
        for (name, tap), logits in self.whole.items():
            wanted = self._true_logits(subject, name) if tap == "logits" else None
            if wanted is not None and wanted.shape == logits.shape and np.isfinite(logits).all():
                about = (implementation.name, subject.side, implementation.dtype, name, len(logits))
                self.agreements.append(Agreement(*about, *agreement(logits, wanted)))
        return checks

    def _true_logits(self, subject: Candidate, name: str) -> NDArray[np.float64] | None:
        if not subject.keeps("logits"):
            return None
        if self.records is not None:
            summary: Summary = self.records.truth.taps.get((name, "logits"), {})
            return summary.get("")
        return self.truth["logits"][name] if self.truth is not None and "logits" in self.truth else None


def _both(
    implementation: Implementation, part: str, state: Batches, given: Batches | None
) -> Iterator[tuple[str, Batches, Batches]]:
    """Each tap of a part, made of the `state` and, apart, of what is `given`.

    Both go together, so that the part's weights are read once.
    """
    if isinstance(implementation, OracleTaps):
        yield from ((tap, values, {}) for tap, values in implementation.run(part, state))
        return
    both = {(END_TO_END, name): value for name, value in state.items()}
    both |= {(ISOLATED, name): value.astype(state[name].dtype, copy=False) for name, value in (given or {}).items()}
    names = {" ".join(key): key for key in both}
    for tap, values in run(implementation, part, {name: both[key] for name, key in names.items()}):
        modes: dict[str, dict[str, NDArray[np.generic]]] = {END_TO_END: {}, ISOLATED: {}}
        for name, value in values.items():
            mode, of = names[name]
            modes[mode][of] = value
        yield tap, modes[END_TO_END], modes[ISOLATED]
