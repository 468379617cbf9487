"""`bit inspect`."""

from __future__ import annotations

from pathlib import Path

import click

from convert.cli.common import checkpoints_option, json_option, mirror_option
from convert.cli.terminal import print_json, print_rich, progress_bar
from convert.sources.resolve import user_path


@click.command("inspect")
@click.argument("checkpoint")
@checkpoints_option
@mirror_option
@json_option
def inspect_command(checkpoint: str, checkpoints: Path, mirror: str | None, as_json: bool) -> None:
    """Say what CHECKPOINT is: its layout and network, and whether its weights are as they should be."""
    from convert.checkpoints.checkpoint import Checkpoint
    from convert.reporting.text import inspection_lines
    from convert.sources.resolve import hub_name, locate
    from convert.verification.inspection import inspect

    with progress_bar() as progress:
        path = locate(checkpoint, user_path(checkpoints), progress, mirror)
        with Checkpoint(path, hub_name(checkpoint)) as opened:
            found = inspect(opened, progress)
    if as_json:
        print_json(found.to_dict())
    else:
        print_rich(*inspection_lines(found))
