"""What was found out, as text for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from convert.published.catalogue import VTAB, Published
from convert.publishing.publish import Publication
from convert.verification.comparison import DIFFERENT, EQUAL, IDENTICAL, MISSING, Difference
from convert.verification.inspection import Inspection
from convert.verification.pixels import PixelCheck
from convert.verification.results import Agreement, Check
from convert.verification.verify import Verification


def by_run(checks: list[Check]) -> dict[str, list[Check]]:
    """The checks of each run, `definition float64` and so on, in order."""
    runs: dict[str, list[Check]] = {}
    for check in checks:
        runs.setdefault(check.run, []).append(check)
    return runs


def worst(checks: Sequence[Check]) -> Check:
    """The check that uses most of its tolerance; one that is over it before all others."""
    return max(checks, key=lambda check: (not check.passed, check.error / (check.tolerance or 1), check.error))


def tap_table(verification: Verification) -> Table:
    """Tabulate, for every tap and dtype, the error nearest to its tolerance, the tolerance and the run."""
    dtypes = list(dict.fromkeys(check.dtype for check in verification.checks))
    table = Table(box=None, pad_edge=False, title=None)
    table.add_column("tap", no_wrap=True)
    for dtype in dtypes:
        table.add_column(f"{dtype} error", justify="right", no_wrap=True)
        table.add_column("budget", justify="right", no_wrap=True)
        table.add_column("largest in", overflow="ellipsis", no_wrap=True)
    for tap in dict.fromkeys(check.tap for check in verification.checks):
        cells = []
        for dtype in dtypes:
            found = [check for check in verification.checks if (check.tap, check.dtype) == (tap, dtype)]
            most = worst(found) if found else None
            mark = "" if most is None or most.passed else " [bold red]✗[/]"
            cells += ["", "", ""] if most is None else [f"{most.error:.1e}{mark}", f"{most.tolerance:.1e}", most.run]
        table.add_row(tap, *cells)
    return table


def publication_lines(publication: Publication) -> list[str]:
    """What was pushed, or would be, in lines for the terminal."""
    commit, pull_request = (publication.commit or "")[:12], publication.pull_request
    where = pull_request or publication.url
    if publication.state == "identical":
        return [f"{escape(where)} holds exactly this already, at commit {commit}; nothing was sent"]
    planned, size = publication.state == "planned", sum(file.bytes for file in publication.files.values()) / 1e6
    kind = "private" if publication.private else "public"
    lines = [
        *([f"{escape(publication.repository)} would be made, {kind}"] if planned and publication.creates else []),
        *(f"  send    {publication.files[name].sha256}  {escape(name)}" for name in publication.sent),
        *(f"  delete  {escape(name)}" for name in publication.deleted),
    ]
    if planned:
        return [*lines, f"{escape(where)} would hold {len(publication.files)} files, {size:.1f} MB; nothing was sent"]
    hashes = f"[green]✓[/] {len(publication.files)} files, {size:.1f} MB: the Hub's hashes are those of the files"
    return [*lines, hashes, f"{escape(where)}: {kind}, commit {commit}"]


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


def zoo_table(chosen: list[Published], together: bool) -> Table:
    """Published checkpoints, a row each; `together`: the files of each task of VTAB-1k in one."""
    table = Table(box=None, pad_edge=False, title=None)
    for column in ("name", "trained on", "classes", "input", "top-1 %"):
        left = column in ("name", "trained on")
        table.add_column(column, no_wrap=column == "name", justify="left" if left else "right")
    rows = {f"BiT-M-*-{item.task}" if together and VTAB in item.data else item.name: item for item in chosen}
    for name, item in rows.items():
        table.add_row(
            f"{name} [yellow]![/]" if item.defects else name,
            ", ".join(item.data),
            str(item.classes),
            str(item.evaluation.size),
            *(f"{found.value:.2f}" for found in item.accuracies[-1:]),
        )
    return table


def zoo_lines(chosen: list[Published], together: bool) -> list[str]:
    """What is wrong with some of them, and how many there are."""
    return [
        *(f"[yellow]![/] {item.name}: {defect}" for item in chosen for defect in item.defects),
        f"{len(chosen)} checkpoint{'s' if len(chosen) > 1 else ''}"
        + ("; bit list with a name that has a * lists what it stands for" if together else ""),
    ]


def _number(value: float | None) -> str:
    return "not comparable" if value is None else f"{value:.1e}"


def summary(verification: Verification) -> list[str]:
    """The verdict, a line for each thing that was compared, and what was not."""
    trials = verification.trials
    lines = [f"[red]✗[/] {escape(problem)}" for problem in verification.problems]
    if verification.tensors_proven:
        lines.append(f"[green]✓[/] {verification.tensors_proven} tensors give back the source's bytes")
    if verification.tensors_changed:
        changed = f"{verification.tensors_changed} tensors are bit for bit the source's, changed as asked"
        lines.append(f"[green]✓[/] {changed}")
    lines += [_run_line(run, checks) for run, checks in by_run(verification.checks).items()]
    lines += [f"[red]✗[/] {escape(finding.words)} ({finding.implementation})" for finding in trials.findings]
    if trials.agreements:
        lines.append(_agreement_line(trials.agreements))
    lines += [_pixel_line(check) for check in verification.pixels]
    if verification.roundings:
        lines.append(f"  tolerances allow for weights that were rounded to {' and '.join(verification.roundings)}")
    if verification.checks:
        lines.append(f"  held to {trials.reference}")
    lines += [f"  not run: {name}, {escape(reason)}" for name, reason in trials.not_run.items()]
    if (epsilon := trials.epsilon) and epsilon.relative_l2 is not None:
        lines.append(
            f"  {epsilon.library} itself standardizes weights with epsilon {epsilon.epsilon:g} instead of "
            f"{epsilon.original:g}: its {epsilon.tap} of the {epsilon.input} input differ by "
            f"{epsilon.relative_l2:.1e} (relative L2)"
        )
    return lines


def verdicts(verification: Verification) -> list[str]:
    """The verdict or, where it is bad, both: of the model, and of the preprocessing."""
    if verification.passed:
        return ["[bold green]verified[/]"]
    model = "[bold green]the model is verified[/]" if verification.model_passed else "[bold red]the model differs[/]"
    pixels = [] if verification.pixels_passed else ["[bold red]the preprocessing differs[/]"]
    return [model, *pixels, "[bold red]verification failed[/]"]


def _run_line(run: str, checks: list[Check]) -> str:
    failed = [check for check in checks if not check.passed]
    inputs = len({check.input for check in checks})
    if failed:
        first = failed[0]
        return (
            f"[red]✗[/] {run}: {len(failed)} of {len(checks)} comparisons are off; the first tap that diverges is "
            f"{first.tap} ({first.input} input, error {first.error:.1e}, tolerance {first.tolerance:.1e})"
        )
    most = worst(checks)
    return (
        f"[green]✓[/] {run}: {len(checks) // inputs} taps of {inputs} inputs, "
        f"nearest to its tolerance at {most.tap}: error {most.error:.1e}, tolerance {most.tolerance:.1e}"
    )


def _agreement_line(agreements: list[Agreement]) -> str:
    same = all(item.top1 == item.top5 == item.images for item in agreements)
    images = {item.input: item.images for item in agreements}
    return (
        f"{'[green]✓[/]' if same else '[yellow]![/]'} the first class and the first five are "
        f"{'the same' if same else 'not the same'} for {sum(images.values())} images in every run; first and second "
        f"are {min(item.margin for item in agreements):.1e} apart or more, where the largest error of a logit is "
        f"{max(item.largest_error for item in agreements):.1e}"
    )


def _pixel_line(check: PixelCheck) -> str:
    if check.passed:
        return f"[green]✓[/] preprocessing: the {check.input} image is at most {check.error:.2g} of 255 levels off"
    why = f": {escape(check.explanation)}" if check.explanation else "; none of the usual mistakes explains it"
    return f"[red]✗[/] preprocessing: the {check.input} image is {check.error:.3g} of 255 levels off{why}"
