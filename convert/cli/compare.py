"""`bit compare`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click

from convert.cli.common import FAILED, checkpoints_option, json_option, mirror_option
from convert.cli.terminal import print_json, print_rich, progress_bar
from convert.sources.resolve import user_path


@click.command("compare")
@click.argument("first")
@click.argument("second")
@click.option("--no-taps", is_flag=True, help="Compare the weights alone; the networks are not run.")
@checkpoints_option
@mirror_option
@json_option
def compare_command(
    first: str, second: str, no_taps: bool, checkpoints: Path, mirror: str | None, as_json: bool
) -> None:
    """Say in what FIRST and SECOND, two checkpoints of any layouts, differ; exit with 1 if they do."""
    from convert.checkpoints.checkpoint import Checkpoint
    from convert.reporting.text import difference_lines, difference_table
    from convert.sources.resolve import hub_name, locate
    from convert.verification.comparison import compare

    with progress_bar() as progress, contextlib.ExitStack() as stack:
        one, other = (
            stack.enter_context(Checkpoint(locate(name, user_path(checkpoints), progress, mirror), hub_name(name)))
            for name in (first, second)
        )
        found = compare(one, other, progress, taps=not no_taps)
    if as_json:
        print_json(found.to_dict())
    else:
        tables = [] if found.equal else [difference_table(found)]
        print_rich(*tables, *difference_lines(found))
    if not found.equal:
        sys.exit(FAILED)
