"""Options and output that several subcommands share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

import convert
from convert.cli.terminal import escape, print_warning
from convert.options import StrPath

FAILED = 1
"""Exit status of a verification that fails, and of a comparison that finds a difference."""
UNFINISHED = 3
"""Exit status of a verification that could not be completed."""
Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
layout_option = click.option(
    "--to",
    metavar="LAYOUT",
    default="transformers",
    show_default=True,
    help="transformers, timm, google, google-tf2, flax, keras, keras-saved or onnx.",
)
recordings_option = click.option(
    "--recordings",
    metavar="DIR",
    help="Folder for recordings of reference outputs. [default: the cache folder; BIT_CACHE sets it]",
)


source_ws_eps_option = click.option(
    "--source-ws-eps",
    metavar="VALUE",
    type=float,
    help="The epsilon of weight standardization that the checkpoint was trained with, if its files do not state it: "
    "1e-10 in Google's code, 1e-8 in transformers and timm.",
)


def source_options(command: Command) -> Command:
    """Add `--source-ws-eps`, `--checkpoints`, `--mirror` and `--json`."""
    folder = click.option(
        "--checkpoints",
        metavar="DIR",
        default="checkpoints",
        show_default=True,
        help="Folder for downloaded and generated checkpoints.",
    )
    mirror = click.option(
        "--mirror",
        metavar="URL",
        envvar="BIT_MIRROR",
        show_envvar=True,
        help="Download published files from this address.",
    )
    return source_ws_eps_option(folder(mirror(json_option(command))))


def reference_options(full: bool) -> Callable[[Command], Command]:
    """Add `--full/--quick` with this default, `--reference` and `--recordings`."""
    switch = click.option(
        "--full/--quick",
        default=full,
        show_default=True,
        help="Run every installed reference implementation, or only the oracle.",
    )
    named = click.option(
        "--reference",
        "references",
        multiple=True,
        metavar="NAME",
        help="Run this implementation, and exit with 3 if it cannot run: pytorch, flax, keras, timm, transformers, "
        "onnxruntime or keras-saved. May be repeated.",
    )
    return lambda command: switch(named(recordings_option(command)))


def skipped_words(skipped: Sequence[str]) -> str:
    """Return how many images were left out, and why the first was."""
    if len(skipped) == 1:
        return f"1 image was left out: {skipped[0]}"
    return f"{len(skipped)} images were left out; the first: {skipped[0]}"


def verification_lines(verification: convert.Verification, report: StrPath | None) -> list[str]:
    """Return what was compared, the verdict, and the path of the report if there is one."""
    from convert.reporting.text import summary, verdicts

    hint = " (open it in a browser)" if str(report).endswith(".html") else ""
    shown = [f"report: {escape(report)}{hint}"] if report is not None and Path(report).is_file() else []
    return [*summary(verification), *verdicts(verification), *shown]


def report_in(folder: Path, verification: convert.Verification) -> Path | None:
    """Return the path of the page about this verification in a folder; None if there is another one, or none."""
    from convert.checkpoints.manifest import REPORT_NAME, is_signed
    from convert.reporting.files import keeps_pass

    return None if is_signed(folder) or keeps_pass(folder, verification) else folder / REPORT_NAME


def conclude(verification: convert.Verification) -> None:
    """Print the warnings of a verification, and exit with 1 if anything differs, with 3 if it was not completed."""
    from convert.verification.results import DIFFERS

    for warning in verification.warnings:
        print_warning(warning)
    if not verification.passed:
        sys.exit(FAILED if verification.verdict == DIFFERS else UNFINISHED)
