"""`bit record`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from convert.cli.common import checkpoints_option, mirror_option, records_option
from convert.cli.terminal import progress_bar, write
from convert.sources.resolve import user_path


@click.command("record")
@click.argument("checkpoint")
@records_option
@checkpoints_option
@mirror_option
def record_command(checkpoint: str, records: Path, checkpoints: Path, mirror: str | None) -> None:
    """Record what the network of CHECKPOINT computes, to hold conversions to.

    The definition runs in float64, PyTorch and TensorFlow, where they are installed, in float32.
    """
    from convert.checkpoints.checkpoint import Checkpoint
    from convert.references.recorder import record
    from convert.sources.resolve import hub_name, locate

    with progress_bar() as progress:
        path = locate(checkpoint, user_path(checkpoints), progress, mirror)
        with Checkpoint(path, hub_name(checkpoint)) as source:
            target = record(source, user_path(records), progress)
    write(f"{target}: {', '.join(sorted(file.stem for file in target.glob('*.safetensors')))}\n", sys.stdout)
