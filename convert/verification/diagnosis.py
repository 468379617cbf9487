"""Where a network goes wrong, and which of the usual mistakes explains it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convert.network.oracle import Oracle
from convert.network.parameters import parameters
from convert.network.runner import Batches, Implementation, run
from convert.verification import mistakes
from convert.verification.metrics import relative_l2
from convert.verification.mistakes import Mistake
from convert.verification.oracle_taps import OracleTaps

MANY = 3
"""So many parts at fault are looked into one by one; a mistake that all of them share shows in the first."""


@dataclass(frozen=True)
class Fault:
    """That a part, given the reference's input, is not within its tolerance."""

    error: float
    """Relative L2, the largest of its taps and inputs."""
    tolerance: float


@dataclass(frozen=True)
class Finding:
    """What is wrong with one part of a network."""

    implementation: str
    part: str
    """The unit, or `root_block`, `pooled`, `logits`; also `pixels`."""
    explanation: str | None
    """In words; None if no mistake explains the error."""
    before: float
    """The part's relative L2 error, given the reference's input."""
    after: float | None
    """What is left of it when the reference makes the same mistake."""

    @property
    def words(self) -> str:
        before = f"{self.before:.1e}" if math.isfinite(self.before) else "no finite number"
        if self.explanation is None:
            return f"{self.part}: none of the usual mistakes explains the error, {before}"
        left = "" if self.after is None else f"; with that the error falls from {before} to {self.after:.1e}"
        return f"{self.part}: {self.explanation}{left}"


def diagnose(
    implementation: Implementation,
    truth: OracleTaps,
    at_fault: Mapping[str, Fault],
    written: Mapping[str, NDArray[np.float64]] | None = None,
) -> Iterator[Finding]:
    """What explains the errors of an implementation in the parts `at_fault`, each explanation once.

    `written` gives those parameters, by canonical name, that are known to differ from the source's.
    """
    right, known, said = truth.subject.definition(), dict(written or {}), set[str]()
    wrong = {part: _outputs(implementation, part, truth) for part in list(at_fault)[:MANY]}
    names = {part: _names(right, part) for part in at_fault}
    for part, outputs in wrong.items():
        others = [name for other in at_fault if other != part for name in names[other]]
        candidates = _candidates(right, truth, outputs, names[part], others, known)
        finding = _explain(implementation.name, truth, part, outputs, at_fault[part], candidates)
        if finding.explanation is None or finding.explanation not in said:
            yield finding
        said.add(finding.explanation or "")


def _candidates(
    right: Oracle,
    truth: OracleTaps,
    outputs: Mapping[str, Batches],
    names: Sequence[str],
    others: Sequence[str],
    known: Mapping[str, NDArray[np.float64]],
) -> Iterator[Mistake]:
    if differing := [name for name in names if name in known]:
        yield mistakes.of_values(right, differing, known)
    if "logits" in outputs:
        found, expected = (
            np.concatenate([values[name] for name in truth.images]) for values in (outputs["logits"], truth["logits"])
        )
        mistake = mistakes.of_classes(right, found, expected)
        if mistake is not None:
            yield mistake
    yield from mistakes.functions_and_weights(right, names, [] if differing else others)


def _explain(
    implementation: str,
    truth: OracleTaps,
    part: str,
    outputs: Mapping[str, Batches],
    fault: Fault,
    candidates: Iterator[Mistake],
) -> Finding:
    """The mistake with which least of the error is left, if that is within the tolerance."""
    best, after = None, math.inf
    for mistake in candidates:
        left = _error(_outputs(mistake.definition, part, truth), outputs)
        if left < after:
            best, after = mistake, left
        if after <= fault.tolerance / 10:
            break
    if best is None or not after <= fault.tolerance:
        return Finding(implementation, part, None, fault.error, None)
    return Finding(implementation, part, best.explanation, fault.error, after)


def _names(right: Oracle, part: str) -> list[str]:
    """The parameters of a part."""
    prefix = {"root_block": "stem", "pooled": "norm", "logits": "head"}.get(part, part)
    return [item.name for item in parameters(right.config) if item.name.startswith(f"{prefix}/")]


@np.errstate(invalid="ignore", over="ignore")
def _outputs(implementation: Implementation, part: str, truth: OracleTaps) -> dict[str, Batches]:
    return dict(run(implementation, part, truth.inputs(part)))


def _error(found: Mapping[str, Batches], expected: Mapping[str, Batches]) -> float:
    return max(relative_l2(found[tap][name], values[name]) for tap, values in expected.items() for name in values)
