"""`bit convert`."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bit.image_processing import PROFILES
from convert.cli.common import (
    checkpoints_option,
    chosen_references,
    conclude,
    full_option,
    json_option,
    layout_option,
    mirror_option,
    output_folder,
    records_option,
    references_option,
    require,
)
from convert.cli.terminal import print_json, print_warning, progress_bar, write
from convert.errors import CheckpointError
from convert.layouts import LAYOUTS
from convert.network.dtypes import BY_NAME
from convert.sources.resolve import user_path

if TYPE_CHECKING:
    from convert.checkpoints.checkpoint import Checkpoint
    from convert.progress import Progress


@click.command("convert")
@click.argument("checkpoint")
@layout_option
@click.option("--out", type=click.Path(path_type=Path), help="The new folder. [default: converted/NAME/LAYOUT]")
@click.option("--force", is_flag=True, help="Replace an existing conversion.")
@click.option("--no-verify", is_flag=True, help="Convert only; the folder then counts as unverified.")
@full_option(False)
@references_option
@records_option
@click.option(
    "--head",
    default="keep",
    show_default=True,
    help="keep, drop, or new:N for zeros of N classes, from which fine-tuning starts.",
)
@click.option("--dtype", type=click.Choice(list(BY_NAME)), help="Round every weight to it. [default: as it is]")
@click.option(
    "--ws-eps",
    type=click.Choice(["keep", "compensate"]),
    default="keep",
    show_default=True,
    help="compensate scales kernels so that a library with another epsilon computes the same; for inference.",
)
@click.option(
    "--profile",
    type=click.Choice(list(PROFILES)),
    help="Whose way to prepare images is written. [default: google; timm for the layout timm]",
)
@click.option("--max-shard-size", help="Split the weights as transformers does, 5GB say.")
@click.option(
    "--allow-nonfinite", is_flag=True, help="Convert weights that hold NaN or infinity, which no verification passes."
)
@checkpoints_option
@mirror_option
@json_option
def convert_command(
    checkpoint: str,
    layout: str,
    out: Path | None,
    force: bool,
    no_verify: bool,
    full: bool,
    references: tuple[str, ...],
    records: Path,
    head: str,
    dtype: str | None,
    ws_eps: str,
    profile: str | None,
    max_shard_size: str | None,
    allow_nonfinite: bool,
    checkpoints: Path,
    mirror: str | None,
    as_json: bool,
) -> None:
    """Convert CHECKPOINT to a folder of another layout and verify it.

    CHECKPOINT is a file or folder of any layout, a published name such as BiT-M-R101x3,
    hf:owner/name on the Hub, or Synthetic-R50x1: seeded weights, generated on the spot, for which
    outputs of Google's own code are recorded.
    """
    from convert.checkpoints.checkpoint import Checkpoint
    from convert.checkpoints.manifest import foreign_names
    from convert.checkpoints.options import ConversionOptions
    from convert.conversion import write as conversion
    from convert.files.atomic import NewFolder
    from convert.reporting.files import write_report
    from convert.sources.resolve import hub_name, locate
    from convert.verification.published_outputs import IMAGE
    from convert.verification.verify import verify

    changes = ConversionOptions(head, dtype, ws_eps, profile)
    changes.check(LAYOUTS[layout])
    conversion.check_sharding(LAYOUTS[layout], max_shard_size)
    require(LAYOUTS[layout].container == "onnx", "onnx", "onnxruntime")
    target = output_folder(checkpoint, layout, out)
    folder = NewFolder(target, foreign_names, force)
    with progress_bar() as progress:
        path = locate(checkpoint, user_path(checkpoints), progress, mirror)
        with Checkpoint(path, hub_name(checkpoint)) as source, contextlib.ExitStack() as stack:
            if target.resolve() in source.file.path.resolve().parents:
                raise CheckpointError(f"{target} holds {path}, what is to be converted; choose another --out")
            stack.enter_context(folder)
            record = conversion.write(
                source, LAYOUTS[layout], folder, progress, changes, max_shard_size, allow_nonfinite
            )
            verification = None
            if not no_verify:
                chosen, sha256 = chosen_references(references, full), record.source.sha256
                folders = _recorded(source, sha256, records, progress)
                image = user_path(checkpoints) / IMAGE
                verification = verify(folder.path, source, progress, chosen, sha256, folders, image, references)
                if trouble := write_report(folder.path, verification, record):
                    verification.warnings.append(trouble)
            kept = verification is not None and not verification.passed and target.exists()
            if not kept:
                folder.commit()
    if as_json:
        result = verification and verification.to_dict()
        print_json({"folder": str(target), "conversion": asdict(record), "verification": result})
    else:
        classes = f"{record.classes} classes" if record.classes else "no head"
        size = sum(file.bytes for file in record.files.values()) / 1e6
        write(
            f"{target}: {record.architecture}, {classes}, {len(record.tensors)} tensors, {size:.1f} MB, from {path}\n",
            sys.stdout,
        )
    for note in (*source.notes, source.assumption):
        if note:
            print_warning(note)
    if any("scale" in row for row in record.tensors):
        print_warning(
            f"kernels were scaled for the epsilon of {layout}; that is meant for inference: "
            "it changes their norm, and so the learning rate of fine-tuning"
        )
    if kept:
        print_warning(f"the verification failed, so {target} was kept as it was")
    if verification is None:
        print_warning("not verified, as asked; bit verify does it")
    else:
        conclude(verification, as_json, table=False)


def _recorded(source: Checkpoint, sha256: str, records: Path, progress: Progress) -> tuple[Path, ...]:
    """The folders of records; what an original checkpoint computes is recorded if that was not done yet."""
    from convert.references.recorder import record
    from convert.references.recordings import SHIPPED, find

    folders = (SHIPPED, user_path(records))
    if source.record is None and not source.layout.folded and find(sha256, folders, source.config.ws_eps) is None:
        try:
            record(source, folders[1], progress, frameworks=(), sha256=sha256)
        except (CheckpointError, OSError) as error:
            print_warning(f"nothing was recorded: {error}")
    return folders
