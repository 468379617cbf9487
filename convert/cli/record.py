"""`bit record`."""

from __future__ import annotations

from typing import Unpack

import click

import convert
from convert.cli.common import recordings_option, source_options
from convert.cli.terminal import escape, print_result, progress_bar
from convert.options import SourceOptions


@click.command("record")
@click.argument("checkpoint")
@recordings_option
@source_options
def record_command(checkpoint: str, recordings: str | None, as_json: bool, **options: Unpack[SourceOptions]) -> None:
    """Record the outputs of a checkpoint's network.

    Conversions of CHECKPOINT are then compared with the recording. The oracle runs in float64;
    PyTorch and TensorFlow, where they are installed, in float32.
    """
    with progress_bar() as progress:
        folder = convert.record(checkpoint, recordings=recordings, progress=progress, **options)
    runs = sorted(file.stem for file in folder.glob("*.safetensors"))
    print_result(as_json, {"folder": str(folder), "recordings": runs}, [escape(f"{folder}: {', '.join(runs)}")])
