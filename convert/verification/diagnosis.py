"""Find the parts where a network goes wrong, and the known mistakes that explain it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice

import numpy as np

from convert.network.parameters import parameters
from convert.network.runner import Batches, Implementation, run_part
from convert.network.taps import Array, Part
from convert.verification import mistakes
from convert.verification.metrics import relative_l2
from convert.verification.oracle_taps import OracleTaps
from convert.verification.results import Check, Finding

MOST_PARTS = 3
"""Largest number of parts that are diagnosed; a mistake that all parts share shows in the first."""


def diagnose(
    implementation: Implementation,
    oracle: OracleTaps,
    failed: Mapping[Part, Sequence[Check]],
    differing: Mapping[str, Array],
) -> list[Finding]:
    """Explain the errors of an implementation in each part with `failed` isolated checks, each explanation once.

    `differing` are the parameters, by canonical name, that are known to differ from the source.
    """
    right = oracle.source.oracle()
    every = [item.name for item in parameters(right.config)]
    names = {part: [name for name in every if name.startswith(f"{part.prefix}/")] for part in failed}
    findings: dict[str, Finding] = {}
    for part, checks in islice(failed.items(), MOST_PARTS):
        outputs = _outputs(implementation, part, oracle)
        seen = [name for name in names[part] if name in differing]
        others = [name for other in failed if other != part and not seen for name in names[other]]
        known_mistakes = chain(
            [mistakes.seen_in_values(right, seen, differing)] if seen else [],
            mistakes.seen_in_classes(right, outputs["logits"], oracle["logits"]) if "logits" in outputs else [],
            mistakes.of_functions(right),
            mistakes.of_weights(right, names[part], others),
        )
        errors = ((item.explanation, _error(_outputs(item.oracle, part, oracle), outputs)) for item in known_mistakes)
        explanation, after = _best(errors, tolerance=max(check.tolerance for check in checks))
        before = max(check.error for check in checks)
        finding = Finding(implementation.name, part.name, explanation, before, after)
        findings.setdefault(explanation or part.name, finding)
    return list(findings.values())


def _best(errors: Iterable[tuple[str, float]], tolerance: float) -> tuple[str | None, float | None]:
    """Return the explanation that leaves the smallest error, and that error, if it is within the tolerance."""
    best, after = None, math.inf
    for explanation, error in errors:
        if error < after:
            best, after = explanation, error
        if after <= tolerance / 10:
            break
    return (best, after) if after <= tolerance else (None, None)


@np.errstate(invalid="ignore", over="ignore")
def _outputs(implementation: Implementation, part: Part, oracle: OracleTaps) -> dict[str, Batches]:
    return dict(run_part(implementation, part, oracle.inputs(part)))


def _error(found: Mapping[str, Batches], expected: Mapping[str, Batches]) -> float:
    return max(relative_l2(found[tap][name], values[name]) for tap, values in expected.items() for name in values)
