"""`bit record`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Unpack

import click

from convert.cli.common import checkpoints_option, json_option, mirror_option, recordings_option
from convert.cli.terminal import print_json, progress_bar, write

if TYPE_CHECKING:
    from convert.options import SourceOptions


@click.command("record")
@click.argument("checkpoint")
@recordings_option
@checkpoints_option
@mirror_option
@json_option
def record_command(checkpoint: str, recordings: str | None, as_json: bool, **options: Unpack[SourceOptions]) -> None:
    """Record the outputs of a checkpoint's network.

    Conversions of CHECKPOINT are then compared with the recording. The oracle runs in float64;
    PyTorch and TensorFlow, where they are installed, in float32.
    """
    from convert import api

    with progress_bar() as progress:
        folder = api.record(checkpoint, recordings=recordings, progress=progress, **options)
    runs = sorted(file.stem for file in folder.glob("*.safetensors"))
    if as_json:
        print_json({"folder": str(folder), "recordings": runs})
    else:
        write(f"{folder}: {', '.join(runs)}\n", sys.stdout)
