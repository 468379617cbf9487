"""`bit classify`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from convert.cli.common import json_option, require
from convert.cli.terminal import print_json, progress_bar, write
from convert.errors import CheckpointError
from convert.sources.resolve import user_path


@click.command("classify")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--model", required=True, type=click.Path(path_type=Path), help="A converted folder, transformers or timm."
)
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="How many classes to name.")
@json_option
def classify_command(images: tuple[Path, ...], model: Path, top: int, as_json: bool) -> None:
    """Name what IMAGES, files or folders of files, show."""
    require(True, "torch", "torch")
    from bit.classification import classify, image_files

    model = user_path(model)
    if not model.is_dir():
        raise CheckpointError(f"there is no folder {str(model)!r}")
    results = {}
    with progress_bar() as progress:
        try:
            for file, predictions in classify(image_files([user_path(path) for path in images]), model, top, progress):
                results[str(file)] = [asdict(prediction) for prediction in predictions]
        except ValueError as error:
            raise CheckpointError(str(error)) from None
    if as_json:
        print_json(results)
        return
    for name, found in results.items():
        write(f"{name}\n", sys.stdout)
        for prediction in found:
            write(f"  {prediction['probability']:7.2%}  {prediction['label']}\n", sys.stdout)
