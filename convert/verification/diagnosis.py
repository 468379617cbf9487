"""Find the parts where a network goes wrong, and the known mistakes that explain it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice

import numpy as np

from convert.network.oracle import Oracle
from convert.network.parameters import parameters
from convert.network.runner import Batches, Implementation, run_part
from convert.network.taps import Array, Part
from convert.verification import mistakes
from convert.verification.metrics import relative_l2
from convert.verification.mistakes import Mistake
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
        inputs = oracle.inputs(part)
        outputs = _outputs(implementation, part, inputs)
        seen = [name for name in names[part] if name in differing]
        others = [name for other in failed if other != part and not seen for name in names[other]]
        known_mistakes = chain(
            [mistakes.seen_in_values(right, seen, differing)] if seen else [],
            mistakes.seen_in_classes(right, outputs["logits"], oracle["logits"]) if "logits" in outputs else [],
            mistakes.of_functions(right, part),
            mistakes.of_weights(right, names[part], others),
        )
        explanation, after = _best(known_mistakes, part, inputs, outputs, max(check.tolerance for check in checks))
        before = max(check.error for check in checks)
        finding = Finding(implementation.name, part.name, explanation, before, after)
        findings.setdefault(explanation or part.name, finding)
    return list(findings.values())


def _best(
    known_mistakes: Iterable[Mistake],
    part: Part,
    inputs: Batches,
    outputs: Mapping[str, Batches],
    tolerance: float,
) -> tuple[str | None, float | None]:
    """Return the explanation that leaves the smallest error, and that error, if it is within the tolerance.

    Every mistake is tried on the smallest input, and on all if it explains that.
    """
    smallest = min(inputs, key=lambda name: inputs[name].size)
    best, after = None, math.inf
    for item in known_mistakes:
        for given in ({smallest: inputs[smallest]}, inputs):
            error = _error(item.oracle, part, given, outputs)
            if error > tolerance:
                break
        else:
            if error < after:
                best, after = item.explanation, error
            if after <= tolerance / 10:
                break
    return best, after if best is not None else None


@np.errstate(all="ignore")
def _outputs(implementation: Implementation, part: Part, inputs: Batches) -> dict[str, Batches]:
    return dict(run_part(implementation, part, inputs))


def _error(oracle: Oracle, part: Part, inputs: Batches, expected: Mapping[str, Batches]) -> float:
    """Return the largest error of an oracle with a mistake; infinite if it does not run on these shapes."""
    try:
        found = _outputs(oracle, part, inputs)
    except ValueError:
        return math.inf
    return max(relative_l2(values[name], expected[tap][name]) for tap, values in found.items() for name in values)
