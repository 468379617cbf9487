"""`bit verify`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from convert.cli.common import (
    chosen_references,
    conclude,
    converted_folder,
    full_option,
    json_option,
    layout_option,
    records_option,
    references_option,
)
from convert.cli.terminal import print_json, progress_bar
from convert.sources.resolve import user_path

if TYPE_CHECKING:
    from convert.checkpoints.checkpoint import Checkpoint


@click.command("verify")
@click.argument("folder")
@layout_option
@click.option("--source", type=click.Path(path_type=Path), help="What it was converted from, if it was moved.")
@click.option(
    "--coco-image",
    type=click.Path(path_type=Path),
    default=Path("checkpoints/000000039769.jpg"),
    show_default=True,
    help="The image for which logits of google/bit-50 are published.",
)
@full_option(True)
@references_option
@records_option
@json_option
def verify_command(
    folder: str,
    layout: str,
    source: Path | None,
    coco_image: Path,
    full: bool,
    references: tuple[str, ...],
    records: Path,
    as_json: bool,
) -> None:
    """Verify a FOLDER that `bit convert` wrote, against its source, recorded outputs and other implementations.

    The CHECKPOINT that was converted may be named instead, with --to for its layout.
    """
    from convert.checkpoints.manifest import Manifest
    from convert.references.recordings import SHIPPED
    from convert.reporting.files import write_report
    from convert.verification.verify import verify

    path = converted_folder(folder, layout)
    chosen = chosen_references(references, full)
    with progress_bar() as progress, _source_of(path, source and user_path(source)) as opened:
        folders, image = (SHIPPED, user_path(records)), user_path(coco_image)
        verification = verify(path, opened, progress, chosen, records=folders, image=image, required=references)
        manifest = Manifest.read(path)
        assert manifest is not None
        if trouble := write_report(path, verification, manifest):
            verification.warnings.append(trouble)
    if as_json:
        print_json(verification.to_dict())
    conclude(verification, as_json, table=True)


@contextlib.contextmanager
def _source_of(folder: Path, source: Path | None) -> Iterator[Checkpoint | None]:
    """The checkpoint that `folder` was converted from, opened; None where it is not at hand."""
    from convert.checkpoints.checkpoint import Checkpoint
    from convert.checkpoints.manifest import Manifest

    record = Manifest.read(folder)
    if source is None and record is not None and (folder / record.source.path).exists():
        source = folder / record.source.path
    if source is None:
        yield None
        return
    with Checkpoint(source, record.name if record else None) as checkpoint:
        yield checkpoint
