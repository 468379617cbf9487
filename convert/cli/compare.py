"""`bit compare`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Unpack

import click

import convert
from convert.cli.common import FAILED, source_options
from convert.cli.terminal import print_result, progress_bar, table
from convert.options import SourceOptions

STATUS = {
    "identical": "identical",
    "equal": "equal but stored differently",
    "different": "different",
    "missing": "missing in one",
}
"""Wording for each status of a tensor."""


@click.command("compare")
@click.argument("first")
@click.argument("second")
@click.option("--no-taps", "taps", flag_value=False, default=True, help="Compare only the weights; do not run them.")
@source_options
def compare_command(first: str, second: str, taps: bool, as_json: bool, **options: Unpack[SourceOptions]) -> None:
    """Compare two checkpoints of any layouts.

    Exits with 1 if FIRST and SECOND differ.
    """
    with progress_bar() as progress:
        found = convert.compare(first, second, taps=taps, progress=progress, **options)
    print_result(as_json, found.to_dict(), _lines(found))
    if not found.equal:
        sys.exit(FAILED)


def _rows(found: convert.Difference) -> Iterator[tuple[str, str, str]]:
    for tensor in found.tensors:
        if tensor.status == "missing":
            yield tensor.parameter, STATUS["missing"], ""
        elif tensor.status == "different":
            yield tensor.parameter, _number(tensor.largest), _number(tensor.relative_l2)
    for tap in found.taps:
        if not tap.alike:
            yield f"{tap.tap} ({tap.input})", "", _number(tap.relative_l2)


def _lines(found: convert.Difference) -> Iterator[str]:
    yield from table(("tensor or tap", "largest difference", "relative L2"), _rows(found))
    counts = Counter(tensor.status for tensor in found.tensors)
    described = ", ".join(f"{counts[status]} {words}" for status, words in STATUS.items() if counts[status])
    yield f"{len(found.tensors)} tensors: {described}"
    if found.taps:
        alike = sum(tap.alike for tap in found.taps)
        greatest = max((tap.relative_l2 for tap in found.taps if tap.relative_l2 is not None), default=None)
        yield f"{alike} of {len(found.taps)} taps agree, greatest error {_number(greatest)} (relative L2)"
    yield "[bold green]equal[/]" if found.equal else "[bold red]different[/]"


def _number(value: float | None) -> str:
    return "not comparable" if value is None else f"{value:.1e}"
