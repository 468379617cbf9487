"""A verification as text for the terminal, in rich's markup."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any, TypeVar

from rich.markup import escape

from convert.network.inputs import INPUTS
from convert.reporting.columns import Column, table_lines
from convert.verification.results import INCOMPLETE, Agreement, Check, GradientCheck, PixelCheck, Verification

AnyCheck = TypeVar("AnyCheck", Check, GradientCheck)
PASS, FAIL, NOTE = "[green]✓[/]", "[red]✗[/]", "[yellow]![/]"
INDENT = "  "
HALF = ("float16", "bfloat16")
"""The dtypes to which rounding changes what a network computes so much that the verdict says it."""


def grouped(checks: Sequence[AnyCheck], *attributes: str) -> dict[Any, list[AnyCheck]]:
    """Group checks by one attribute, such as `run`, or by a tuple of several; in order."""
    groups: dict[Any, list[AnyCheck]] = {}
    for check in checks:
        groups.setdefault(attrgetter(*attributes)(check), []).append(check)
    return groups


def worst(checks: Sequence[AnyCheck]) -> AnyCheck:
    """Return the check that is closest to the tolerance; one that failed comes before all that passed."""
    return max(checks, key=lambda check: (not check.passed, check.error / (check.tolerance or 1), check.error))


def number(value: float | None, form: str = ".1e") -> str:
    """Format an error or a tolerance."""
    if value is None or not math.isfinite(value):
        return "not finite"
    return f"{value:{form}}" if value else "0"


def input_label(name: str) -> str:
    """Name an input with height and width, such as `odd input, 193×257`."""
    size = ", {2}×{3}".format(*INPUTS[name]) if name in INPUTS else ""
    return f"{name} input{size}"


def summary(verification: Verification) -> list[str]:
    """Return one line for each thing that was compared, and for each that was not."""
    network = verification.network
    lines = [f"{FAIL} {escape(problem)}" for problem in verification.problems]
    lines += [f"{NOTE} {escape(reason)}" for reason in verification.incomplete]
    lines += _byte_lines(verification)
    if verification.replay is not None and verification.replay.passed:
        files = len(verification.replay.identical)
        lines.append(f"{PASS} replay: converting again from the source writes the same bytes of all {files} files")
    lines += [_run_line(run, checks) for run, checks in grouped(verification.checks, "run").items()]
    lines += [f"{FAIL} {escape(f'{found.implementation}: {found.words}')}" for found in network.findings]
    lines += [_gradient_line(run, checks) for run, checks in grouped(verification.gradients, "run").items()]
    if network.agreements:
        lines.append(_agreement_line(network.agreements))
    lines += [_pixel_line(check) for check in verification.pixels]
    if verification.roundings:
        lines.append(
            f"{INDENT}tolerances include the rounding of the weights to {' and '.join(verification.roundings)}"
        )
    if verification.checks:
        lines.append(f"{INDENT}reference: {escape(network.reference)}")
    others = {name: why for name, why in network.not_run.items() if why not in " ".join(verification.incomplete)}
    lines += [f"{INDENT}not run: {escape(f'{name}, {reason}')}" for name, reason in others.items()]
    if (effect := network.epsilon) and effect.relative_l2 is not None:
        lines.append(
            f"{INDENT}{escape(effect.library)} standardizes weights with epsilon {effect.epsilon:g}, this checkpoint "
            f"expects {effect.original:g}: {escape(effect.tap)} computed there differ by {number(effect.relative_l2)} "
            f"({escape(input_label(effect.input))})"
        )
    return lines


def verdicts(verification: Verification) -> list[str]:
    """Return the verdict; a difference names the part that failed, the model or the preprocessing."""
    if verification.passed:
        remarks = [f", rounded to {name}" for name in verification.roundings if name in HALF]
        if not (verification.tensors_exact or verification.tensors_changed):
            remarks.append(", but not the bytes: name the source with --source")
        return [f"[bold green]verified[/]{''.join(dict.fromkeys(remarks))}"]
    if verification.verdict == INCOMPLETE:
        so_far = "nothing that was compared differs" if verification.checks else "nothing was compared"
        return [f"[bold yellow]{INCOMPLETE}[/]: {so_far}"]
    differs = "differs" if any(not check.passed for check in verification.checks) else "is not verified"
    model = "[bold green]the model is verified[/]" if verification.model_passed else f"[bold red]the model {differs}[/]"
    pixels = [] if verification.pixels_passed else ["[bold red]the preprocessing differs[/]"]
    return [model, *pixels, "[bold red]verification failed[/]"]


def tap_table(verification: Verification, width: int | None = None) -> list[str]:
    """Tabulate for each tap and dtype the error closest to the tolerance, that tolerance, and the run.

    Columns that do not fit `width` characters are left out: first the runs, then the tolerances. Taps and errors
    always stay, and nothing is cut off. Without a width every column is shown.
    """
    taps = list(grouped(verification.checks, "tap"))
    columns = [Column(["", "tap", *taps], 0, left=True)]
    for dtype, same in grouped(verification.checks, "dtype").items():
        found = grouped(same, "tap")
        rows = [worst(found[tap]) if tap in found else None for tap in taps]
        errors = [row and ("" if row.passed else "✗ ") + f"{row.error:.1e}" for row in rows]
        tolerances = [row and number(row.tolerance) for row in rows]
        columns += [
            Column([dtype, "error", *(error or "" for error in errors)], 0),
            Column(["", "tolerance", *(tolerance or "" for tolerance in tolerances)], 1),
            Column(["", "run", *(row.run.replace(f" {dtype}", "") if row else "" for row in rows)], 2, left=True),
        ]
    shown = [escape(line) for line in table_lines(columns, width)]
    return [f"[bold]{line}[/]" for line in shown[: 2 if taps else 0]] + [line.replace("✗", FAIL) for line in shown[2:]]


def _byte_lines(verification: Verification) -> Iterator[str]:
    exact, changed = verification.tensors_exact, verification.tensors_changed
    every = "" if verification.problems or (exact and changed) else "all "
    if exact:
        yield f"{PASS} bytes: {every}{exact} tensors convert back to the source exactly"
    if changed:
        yield f"{PASS} bytes: {every}{changed} tensors are exactly the source's after the stated change"


def _run_line(run: str, checks: Sequence[Check]) -> str:
    failed = [check for check in checks if not check.passed]
    if failed:
        first = failed[0]
        return (
            f"{FAIL} {escape(run)}: {len(failed)} of {len(checks)} taps differ, first at {escape(first.tap)} "
            f"({escape(input_label(first.input))}): error {number(first.error)} "
            f"(up to {number(first.tolerance)} allowed)"
        )
    most, inputs = max(checks, key=lambda check: check.error), len({check.input for check in checks})
    return (
        f"{PASS} {escape(run)}: {len(checks) // inputs} taps of {inputs} input{'s' if inputs > 1 else ''} agree, "
        f"greatest error {number(most.error)} at {escape(most.tap)} (up to {number(most.tolerance)} allowed)"
    )


def _gradient_line(run: str, checks: Sequence[GradientCheck]) -> str:
    failed = [check for check in checks if not check.passed]
    most, references = worst(checks), " and ".join(dict.fromkeys(check.reference for check in checks))
    if failed:
        return (
            f"{FAIL} gradients, {escape(run)}: {len(failed)} of {len(checks)} differ from {escape(references)}, in "
            f"{escape(', '.join(dict.fromkeys(check.part for check in failed)))}, most at {escape(most.parameter)}: "
            f"error {number(most.error)} (up to {number(most.tolerance)} allowed)"
        )
    return (
        f"{PASS} gradients, {escape(run)}: {len(checks)} agree with {escape(references)}, greatest error "
        f"{number(most.error)} at {escape(most.parameter)} (up to {number(most.tolerance)} allowed)"
    )


def _agreement_line(agreements: Sequence[Agreement]) -> str:
    same = all(item.top1 == item.top5 == item.images for item in agreements)
    images = {item.input: item.images for item in agreements}
    return (
        f"{PASS if same else NOTE} classes: top 1 and top 5 of {sum(images.values())} images are "
        f"{'the same in every run' if same else 'not the same in every run'}; the two largest logits are at least "
        f"{number(min(item.margin for item in agreements))} apart, the greatest error of a logit is "
        f"{number(max(item.largest_error for item in agreements))}"
    )


def _pixel_line(check: PixelCheck) -> str:
    why = f": {escape(check.explanation)}" if check.explanation else "; no known mistake explains it"
    return (
        f"{PASS if check.passed else FAIL} preprocessing: {escape(check.input)} image, greatest difference "
        f"{number(check.error, '.3g')} of 255 levels (up to {check.tolerance:g} allowed){'' if check.passed else why}"
    )
