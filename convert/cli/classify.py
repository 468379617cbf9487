"""`bit classify`."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from convert.cli.common import json_option
from convert.cli.terminal import print_json, progress_bar, write


@click.command("classify")
@click.argument("images", nargs=-1, required=True)
@click.option("--model", metavar="DIR", required=True, help="A converted folder, of the layout transformers or timm.")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Number of labels to print.")
@json_option
def classify_command(images: tuple[str, ...], model: str, top: int, as_json: bool) -> None:
    """Label images with a converted model.

    IMAGES are image files, or folders of image files. Needs PyTorch.
    """
    from convert import api

    with progress_bar() as progress:
        results = api.classify(images, model, top=top, progress=progress)
    if as_json:
        print_json({str(file): [asdict(label) for label in labels] for file, labels in results.items()})
        return
    for file, labels in results.items():
        write(f"{file}\n", sys.stdout)
        for label in labels:
            write(f"  {label.probability:7.2%}  {label.label}\n", sys.stdout)
