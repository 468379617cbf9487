"""`bit convert`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Unpack

import click

import convert
from convert.cli.common import (
    conclude,
    layout_option,
    reference_options,
    report_in,
    source_options,
    verification_lines,
)
from convert.cli.terminal import escape, print_result, print_warning, progress_bar
from convert.options import ConvertOptions


@click.command("convert")
@click.argument("checkpoint")
@layout_option
@click.option("--out", metavar="DIR", help="The new folder. [default: converted/NAME/LAYOUT]")
@click.option("--force", is_flag=True, help="Replace an existing conversion.")
@click.option("--no-verify", "verify", flag_value=False, default=True, help="Convert only; the folder is not verified.")
@reference_options(full=False)
@click.option(
    "--head",
    metavar="HEAD",
    default="keep",
    show_default=True,
    help="keep, drop, or new:N for a head of zeros with N classes, for fine-tuning.",
)
@click.option(
    "--labels",
    metavar="FILE",
    help="Names of the classes, for a head that has none or is new: one a line, or JSON.",
)
@click.option("--replace-labels", is_flag=True, help="Let --labels replace the names that the head has.")
@click.option(
    "--dtype",
    metavar="DTYPE",
    help="Round every weight to float64, float32, float16 or bfloat16. [default: unchanged]",
)
@click.option(
    "--ws-eps",
    metavar="MODE",
    default="keep",
    show_default=True,
    help="keep, or compensate: scale kernels so that a library with another epsilon computes the same function; "
    "for inference.",
)
@click.option(
    "--profile",
    metavar="NAME",
    help="Preprocessing to store: google, google:SIZE, timm or transformers. [default: google; timm for the layout "
    "timm; of a fine-tuned network its own]",
)
@click.option("--max-shard-size", metavar="SIZE", help="Split the weights as transformers does, for example 5GB.")
@click.option(
    "--allow-nonfinite", is_flag=True, help="Convert weights that hold NaN or infinity; these do not pass verification."
)
@source_options
def convert_command(
    checkpoint: str, to: str, out: str | None, as_json: bool, **options: Unpack[ConvertOptions]
) -> None:
    """Convert a checkpoint and verify the result.

    CHECKPOINT is a file or folder of any layout, a published name such as BiT-M-R101x3 or
    google/bit-50, hf:owner/name on the Hub, or Synthetic-R50x1: seeded weights, generated on the
    spot, with recorded outputs of Google's own code.
    """
    with progress_bar() as progress:
        try:
            result = convert.convert(checkpoint, to, out, progress=progress, **options)
        except (convert.VerificationError, convert.IncompleteError) as error:
            if error.result is None:
                raise
            result = error.result
    verified = result.verification if options["verify"] else None
    value = {"folder": str(result.folder), "created": result.created, "conversion": asdict(result.manifest)}
    value |= {"verdict": verified and verified.verdict, "verification": verified and verified.to_dict()}
    print_result(as_json, value, _lines(result, verified))
    for warning in result.warnings:
        print_warning(warning)
    if verified is None:
        print_warning("not verified, because of --no-verify; bit verify verifies the folder")
    else:
        conclude(verified)


def _lines(result: convert.ConversionResult, verified: convert.Verification | None) -> Iterator[str]:
    manifest = result.manifest
    classes = f"{manifest.classes} classes" if manifest.classes else "no head"
    size = sum(file.bytes for file in manifest.files.values()) / 1e6
    yield (
        f"{escape(result.folder)}: {escape(manifest.architecture)}, {classes}, {len(manifest.tensors)} tensors, "
        f"{size:.1f} MB, from {escape(result.source)}"
    )
    if not result.created:
        yield "  this conversion exists already; --force converts again (with make: ARGS=--force)"
    if verified is not None:
        yield from verification_lines(verified, report_in(result.folder, verified))
    if result.loading and (verified is None or verified.passed):
        yield "load it with:"
        yield from (f"  {escape(line)}" for line in result.loading.splitlines())
