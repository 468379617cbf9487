"""`bit inspect`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import click

import convert
from convert.cli.common import source_options
from convert.cli.terminal import escape, print_result, progress_bar
from convert.options import SourceOptions


@click.command("inspect")
@click.argument("checkpoint")
@source_options
def inspect_command(checkpoint: str, as_json: bool, **options: Unpack[SourceOptions]) -> None:
    """Describe a checkpoint and the weights."""
    with progress_bar() as progress:
        found = convert.inspect(checkpoint, progress=progress, **options)
    print_result(as_json, found.to_dict(), _lines(found))


def _lines(found: convert.Inspection) -> Iterator[str]:
    classes = f"{found.classes} classes" if found.classes else "no head"
    yield f"{escape(found.path)}: {found.architecture}, {classes}"
    yield (
        f"  layout {found.layout}, {found.container}, {found.dtype}, {found.tensors} tensors, "
        f"{found.parameters:,} parameters, {found.bytes:,} bytes"
    )
    for name, file in found.files.items():
        yield f"  {file.sha256}  {escape(name)}"
    yield f"  {'a' if found.recorded_outputs else 'no'} recording of the original code exists for these bytes"
    if found.zero_head:
        yield "  the head is all zeros"
    for name in found.nonfinite:
        yield f"  [red]✗[/] {escape(name)} holds NaN or infinity"
    if found.least_variance is not None:
        yield (
            f"  expected epsilon {found.ws_eps:g}; smallest variance of a filter {found.least_variance:.2e}, "
            f"at {escape(found.worst_filter)}"
        )
    for cost in found.epsilon_costs:
        yield (
            f"  {cost.layout} standardizes with epsilon {cost.epsilon:g}, which makes the output of that filter "
            f"{abs(cost.deviation):.2%} {'smaller' if cost.deviation >= 0 else 'larger'}"
        )
    for note in found.notes:
        yield f"  {escape(note)}"
