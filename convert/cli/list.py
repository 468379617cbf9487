"""`bit list`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

import convert
from convert.cli.common import json_option
from convert.cli.terminal import print_result, table


@click.command("list")
@click.argument("pattern", required=False)
@click.option("--architecture", metavar="NAME", help="For example R50x1.")
@click.option("--data", metavar="NAME", help="Training set: ILSVRC-2012, ImageNet-21k, CIFAR-10 or VTAB-1k.")
@click.option("--task", metavar="NAME", help="Task of the head, for example caltech101.")
@click.option("--classes", metavar="N", type=int, help="Number of classes of the head.")
@json_option
def list_command(pattern: str | None, as_json: bool, **filters: Any) -> None:
    """List the checkpoints that Google published.

    PATTERN is a part of the name or, with *, ? or [...], the whole name.
    """
    chosen = convert.zoo(pattern, **filters)
    together = pattern is None and all(value is None for value in filters.values())
    print_result(as_json, [item.to_dict() for item in chosen], _lines(chosen, together))


def _rows(chosen: list[convert.Published], together: bool) -> Iterator[tuple[str, ...]]:
    """Yield a row for each checkpoint; with `together` one row for all files of a task of VTAB-1k."""
    from convert.published.catalogue import VTAB

    rows = {f"BiT-M-*-{item.task}" if together and VTAB in item.data else item.name: item for item in chosen}
    for name, item in rows.items():
        accuracy = f"{item.accuracies[-1].value:.2f}" if item.accuracies else ""
        mark = " !" if item.defects else ""
        yield name + mark, str(item.classes), accuracy, str(item.evaluation.size), ", ".join(item.data)


def _lines(chosen: list[convert.Published], together: bool) -> Iterator[str]:
    yield from table(("name", "classes", "top-1 %", "input", "trained on"), _rows(chosen, together), left=(0, 4))
    for item in chosen:
        for defect in item.defects:
            yield f"[yellow]![/] {item.name}: {defect}"
    hint = "; to see the files behind a name with *, give that name to bit list" if together else ""
    yield f"{len(chosen)} checkpoint{'s' if len(chosen) != 1 else ''}{hint}"
