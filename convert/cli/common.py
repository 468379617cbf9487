"""What several subcommands have in common: options, and what becomes of a verification."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from convert.cli.terminal import print_rich, print_warning
from convert.errors import CheckpointError
from convert.layouts import LAYOUTS
from convert.references.registry import REFERENCES
from convert.sources.resolve import user_path

if TYPE_CHECKING:
    from convert.verification.verify import Verification

FAILED = 1
"""The exit status of a verification that fails."""
Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
layout_option = click.option(
    "--to", "layout", type=click.Choice(list(LAYOUTS)), default="transformers", show_default=True
)


def full_option(default: bool) -> Callable[[Command], Command]:
    """Whether every implementation that is installed is run, or only what takes seconds."""
    return click.option(
        "--full/--quick",
        default=default,
        show_default=True,
        help="Run every installed implementation, or only the definition.",
    )


checkpoints_option = click.option(
    "--checkpoints",
    type=click.Path(path_type=Path),
    default=Path("checkpoints"),
    show_default=True,
    help="Where named checkpoints are kept.",
)
references_option = click.option(
    "--reference",
    "references",
    multiple=True,
    type=click.Choice(list(REFERENCES)),
    help="Run this implementation too; may be given more than once.",
)
records_option = click.option(
    "--records",
    type=click.Path(path_type=Path),
    default=Path("reference_outputs"),
    show_default=True,
    help="Where outputs are recorded, beside those that come with the project.",
)
mirror_option = click.option(
    "--mirror", envvar="BIT_MIRROR", show_envvar=True, help="Fetch published files below this address, not Google's."
)


def chosen_references(references: tuple[str, ...], full: bool) -> tuple[str, ...]:
    """The implementations to run beside the definition: those that were named, else all or none."""
    return references or (tuple(REFERENCES) if full else ())


def output_folder(checkpoint: str, layout: str, out: Path | None) -> Path:
    """The folder that a conversion of `checkpoint` is written to."""
    from convert.checkpoints.checkpoint import checkpoint_name
    from convert.sources.resolve import hub_name

    if out is not None:
        return user_path(out)
    path = user_path(checkpoint)
    name = checkpoint_name(path) if path.exists() else hub_name(checkpoint) or path.name
    return Path("converted") / name / layout


def converted_folder(folder: str, layout: str) -> Path:
    """A converted folder, named itself or by the checkpoint that it was converted from."""
    from convert.checkpoints.manifest import Manifest

    path = user_path(folder)
    if Manifest.read(path) is None and (converted := output_folder(folder, layout, None)).is_dir():
        path = converted
    if not path.is_dir():
        raise CheckpointError(f"there is no folder {folder!r}")
    return path


def conclude(verification: Verification, as_json: bool, table: bool) -> None:
    """Print the verdict, and exit with 1 unless it passed."""
    from convert.reporting.text import summary, tap_table, verdicts

    if not as_json:
        print_rich(*([tap_table(verification)] if table else []), *summary(verification), *verdicts(verification))
    for warning in verification.warnings:
        print_warning(warning)
    if not verification.passed:
        sys.exit(FAILED)


def require(wanted: bool, extra: str, *modules: str) -> None:
    """Raise `CheckpointError` if one of the modules that the `extra` brings is wanted and missing."""
    for module in modules if wanted else ():
        if importlib.util.find_spec(module) is None:
            raise CheckpointError(f"{module} is not installed; make setup installs it, or pip install -e '.[{extra}]'")
