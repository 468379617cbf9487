"""`bit classify`."""

from __future__ import annotations

from dataclasses import asdict

import click

import convert
from convert.cli.common import json_option
from convert.cli.terminal import escape, print_result, progress_bar


@click.command("classify")
@click.argument("images", nargs=-1, required=True)
@click.option("--model", metavar="DIR", required=True, help="A converted folder, of the layout transformers or timm.")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Number of labels to print.")
@json_option
def classify_command(images: tuple[str, ...], model: str, top: int, as_json: bool) -> None:
    """Label images with a converted model.

    IMAGES are JPEG, PNG, WebP, BMP or GIF files (the first frame counts), or folders of them. Needs
    PyTorch.
    """
    with progress_bar() as progress:
        results = convert.classify(images, model, top=top, progress=progress)
    lines: list[str] = []
    for file, labels in results.items():
        lines += [escape(file), *(f"  {label.probability:7.2%}  {escape(label.label)}" for label in labels)]
    values = {str(file): [asdict(label) for label in labels] for file, labels in results.items()}
    print_result(as_json, values, lines)
