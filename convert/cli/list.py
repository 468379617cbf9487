"""`bit list`."""

from __future__ import annotations

from typing import Any

import click

from convert.cli.common import json_option
from convert.cli.terminal import print_json, print_rich


@click.command("list")
@click.argument("name", metavar="[PATTERN]", required=False)
@click.option("--architecture", help="R50x1, say.")
@click.option("--data", help="What it was trained on: ILSVRC-2012, ImageNet-21k, CIFAR-10 or VTAB-1k.")
@click.option("--task", help="What its head tells apart: caltech101, say.")
@click.option("--classes", type=int, help="How many classes its head has.")
@json_option
def list_command(as_json: bool, **wanted: Any) -> None:
    """List the checkpoints that Google published, those with PATTERN in their names if it is given.

    PATTERN may have * and ?, and then stands for the whole name.
    """
    from convert.published.selection import select
    from convert.reporting.text import zoo_lines, zoo_table

    chosen = select(**wanted)
    if as_json:
        print_json([item.to_dict() for item in chosen])
    else:
        together = all(value is None for value in wanted.values())
        print_rich(zoo_table(chosen, together), *zoo_lines(chosen, together))
