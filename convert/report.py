"""A verification as text for the terminal."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

from rich.markup import escape
from rich.table import Table

from convert.difference import DIFFERENT, EQUAL, IDENTICAL, MISSING, Difference
from convert.inspection import Inspection
from convert.taps import Check
from convert.verification import Verification


def by_run(checks: list[Check]) -> dict[str, list[Check]]:
    """The checks of each run, `definition float64` and so on, in order."""
    return {
        run: list(group) for run, group in groupby(checks, key=lambda check: f"{check.implementation} {check.dtype}")
    }


def tap_table(verification: Verification) -> Table:
    """The error of every tap beside its budget, the larger of the inputs'; what is over it is marked."""
    runs = by_run(verification.checks)
    table = Table(box=None, pad_edge=False, title=None)
    table.add_column("tap")
    for run in runs:
        table.add_column(f"{run}\nerror / budget", justify="right")
    for tap in dict.fromkeys(check.tap for check in verification.checks):
        cells = []
        for checks in runs.values():
            worst = _worst([check for check in checks if check.tap == tap])
            text = f"{worst.error:.1e} / {worst.budget:.1e}"
            cells.append(text if worst.passed else f"[bold red]{text} ✗[/]")
        table.add_row(tap, *cells)
    return table


def inspection_lines(found: Inspection) -> list[str]:
    """An inspection in lines for the terminal."""
    classes = f"{found.classes} classes" if found.classes else "no head"
    lines = [
        f"{escape(found.path)}: {found.architecture}, {classes}",
        f"  layout {found.layout}, {found.container}, {found.dtype}, {found.tensors} tensors, "
        f"{found.parameters:,} parameters, {found.bytes:,} bytes",
        *(f"  {file.sha256}  {escape(name)}" for name, file in found.files.items()),
        "  outputs of the original code are recorded for it" if found.recorded_outputs else "  no outputs are recorded",
    ]
    if found.zero_head:
        lines.append("  the head is all zeros")
    lines += [f"  [red]✗[/] {escape(name)} holds NaN or infinity" for name in found.nonfinite]
    if found.least_variance is not None:
        lines.append(
            f"  meant for epsilon {found.ws_eps:g}; the least variance of a filter is {found.least_variance:.2e}, "
            f"in {escape(found.worst_filter)}"
        )
    lines += [
        f"  {cost.layout} standardizes with epsilon {cost.epsilon:g}: the output of that filter is "
        f"{cost.deviation:.2%} smaller there"
        for cost in found.epsilon_costs
    ]
    return [*lines, *(f"  {escape(note)}" for note in found.notes)]


def difference_table(found: Difference) -> Table:
    """The tensors that differ, and the taps."""
    table = Table(box=None, pad_edge=False, title=None)
    for column in ("tensor or tap", "largest difference", "relative L2"):
        table.add_column(column, justify="left" if column == "tensor or tap" else "right")
    for tensor in found.tensors:
        if tensor.status == MISSING:
            table.add_row(tensor.parameter, "missing in one", "")
        elif tensor.status == DIFFERENT:
            table.add_row(tensor.parameter, _number(tensor.largest), _number(tensor.relative_l2))
    for tap in found.taps:
        if not tap.alike:
            table.add_row(f"{tap.tap} ({tap.input})", "", _number(tap.relative_l2))
    return table


def difference_lines(found: Difference) -> list[str]:
    """How many tensors and taps are alike, and the verdict."""
    counts = Counter(tensor.status for tensor in found.tensors)
    words = {
        IDENTICAL: "identical",
        EQUAL: "equal, though stored otherwise",
        DIFFERENT: "different",
        MISSING: "missing in one of them",
    }
    alike = sum(tap.alike for tap in found.taps)
    largest = max((tap.relative_l2 for tap in found.taps if tap.relative_l2 is not None), default=None)
    return [
        f"{len(found.tensors)} tensors: " + ", ".join(f"{counts[key]} {words[key]}" for key in words if counts[key]),
        *(
            [f"{len(found.taps)} comparisons of taps, {alike} alike, the largest error {_number(largest)}"]
            if found.taps
            else []
        ),
        "[bold green]equal[/]" if found.equal else "[bold red]different[/]",
    ]


def _number(value: float | None) -> str:
    return "not comparable" if value is None else f"{value:.1e}"


def summary(verification: Verification) -> list[str]:
    """The verdict, a line for each thing that was compared, and what was not."""
    lines = [f"[red]✗[/] {escape(problem)}" for problem in verification.problems]
    if verification.tensors_proven:
        lines.append(f"[green]✓[/] {verification.tensors_proven} tensors give back the source's bytes")
    if verification.tensors_changed:
        changed = f"{verification.tensors_changed} tensors are bit for bit the source's, changed as asked"
        lines.append(f"[green]✓[/] {changed}")
    for run, checks in by_run(verification.checks).items():
        failed = [check for check in checks if not check.passed]
        inputs = len({check.input for check in checks})
        if failed:
            first = failed[0]
            lines.append(
                f"[red]✗[/] {run}: {len(failed)} of {len(checks)} comparisons are off; the first tap that diverges is "
                f"{first.tap} ({first.input} input, error {first.error:.1e}, budget {first.budget:.1e})"
            )
        else:
            worst = _worst(checks)
            lines.append(
                f"[green]✓[/] {run}: {len(checks) // inputs} taps of {inputs} inputs, "
                f"nearest to its budget at {worst.tap}: error {worst.error:.1e}, budget {worst.budget:.1e}"
            )
    if verification.roundings:
        lines.append(f"  budgets allow for weights that were rounded to {' and '.join(verification.roundings)}")
    if verification.checks:
        lines.append(f"  held to {verification.checks[0].reference}")
    if (epsilon := verification.epsilon) and epsilon.relative_l2 is not None:
        lines.append(
            f"  {epsilon.library} itself standardizes weights with epsilon {epsilon.epsilon:g} instead of "
            f"{epsilon.original:g}: its {epsilon.tap} of the {epsilon.input} input differ by "
            f"{epsilon.relative_l2:.1e} (relative L2)"
        )
    return lines


def _worst(checks: list[Check]) -> Check:
    """The check that uses most of its budget."""
    return max(checks, key=lambda check: check.error / check.budget if check.budget else float("inf"))
