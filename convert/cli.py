"""The command `bit`: the one place that prints, exits or reads the environment."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import convert
from convert.errors import CheckpointError
from convert.layouts import LAYOUTS

if TYPE_CHECKING:
    from convert.checkpoint import Checkpoint
    from convert.conversion import Progress
    from convert.verification import Verification

FAILED, BAD_INPUT = 1, 2


class Commands(click.Group):
    """Turns what can go wrong with input into one `error:` line and exit status 2."""

    def invoke(self, ctx: click.Context) -> Any:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
        try:
            return super().invoke(ctx)
        except (CheckpointError, OSError) as error:
            message, problems = str(error), getattr(error, "problems", ())
            if isinstance(error, OSError) and error.strerror:
                message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
            if ctx.meta.get("json"):
                _print_json({"error": message, "problems": problems})
            click.echo("error: " + " ".join(message.split()), err=True)
            sys.exit(BAD_INPUT)
        except KeyboardInterrupt:
            click.echo("interrupted; nothing was written", err=True)
            sys.exit(128 + signal.SIGINT)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(convert.__version__, prog_name="bit")
def main() -> None:
    """Convert BiT weights between libraries, and prove that nothing changed."""


def _remember_json(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    ctx.meta["json"] = value
    return value


json_option = click.option(
    "--json", "as_json", is_flag=True, callback=_remember_json, is_eager=True, help="Print the result as JSON."
)


@main.command("convert")
@click.argument("checkpoint")
@click.option("--to", "layout", type=click.Choice(list(LAYOUTS)), default="transformers", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="The new folder. [default: converted/NAME/LAYOUT]")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--no-verify", is_flag=True, help="Convert only; the folder then counts as unverified.")
@click.option("--torch", is_flag=True, help="Verify with bit's PyTorch model too.")
@click.option("--allow-nonfinite", is_flag=True, help="Convert weights that hold NaN or infinity.")
@click.option(
    "--checkpoints",
    type=click.Path(path_type=Path),
    default=Path("checkpoints"),
    show_default=True,
    help="Where named checkpoints are kept.",
)
@click.option("--mirror", envvar="BIT_MIRROR", help="Fetch published files from here instead of Google's bucket.")
@json_option
def convert_command(
    checkpoint: str,
    layout: str,
    out: Path | None,
    force: bool,
    no_verify: bool,
    torch: bool,
    allow_nonfinite: bool,
    checkpoints: Path,
    mirror: str | None,
    as_json: bool,
) -> None:
    """Convert CHECKPOINT to a folder of another layout and verify it.

    CHECKPOINT is a file or folder, a published name such as BiT-M-R101x3, or Synthetic-R50x1:
    seeded weights, generated on the spot, for which outputs of Google's own code are recorded.
    """
    from convert import conversion
    from convert.checkpoint import Checkpoint
    from convert.files.atomic import NewFolder
    from convert.locate import locate
    from convert.verification import verify

    if torch:
        _require_torch()
    with _progress() as progress:
        path = locate(checkpoint, checkpoints, progress, mirror)
        with Checkpoint(path) as source:
            target = out or Path("converted") / source.name / layout
            with NewFolder(target, force) as folder:
                record = conversion.write(source, LAYOUTS[layout], folder.path, progress, allow_nonfinite)
                verification = None
                if not no_verify:
                    verification = verify(folder.path, source, progress, torch, record.source.sha256)
                folder.commit()
    if as_json:
        _print_json(
            {
                "folder": str(target),
                "conversion": asdict(record),
                "verification": verification and verification.to_dict(),
            }
        )
    else:
        _print_line(
            f"{target}: {record.architecture}, {record.classes} classes, {len(record.tensors)} tensors, "
            f"{source.nbytes / 1e6:.1f} MB, from {path}"
        )
    _conclude(verification, as_json, table=False)


@main.command("verify")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--source", type=click.Path(path_type=Path), help="What it was converted from, if it was moved.")
@click.option(
    "--torch/--no-torch",
    default=None,
    help="Run bit's PyTorch model too. [default: where PyTorch is installed]",
)
@json_option
def verify_command(folder: Path, source: Path | None, torch: bool | None, as_json: bool) -> None:
    """Verify a FOLDER that `bit convert` wrote, against its source and recorded outputs."""
    from convert.verification import verify

    if torch:
        _require_torch()
    elif torch is None:
        torch = importlib.util.find_spec("torch") is not None
    with _progress() as progress, _source_of(folder, source) as opened:
        verification = verify(folder, opened, progress, torch)
    if as_json:
        _print_json(verification.to_dict())
    _conclude(verification, as_json, table=True)


@contextmanager
def _source_of(folder: Path, source: Path | None) -> Iterator[Checkpoint | None]:
    """The checkpoint that `folder` was converted from, opened; None where it is not at hand."""
    from convert.checkpoint import Checkpoint
    from convert.record import ConversionRecord

    record = ConversionRecord.read(folder)
    if source is None and record is not None and (folder / record.source.path).exists():
        source = folder / record.source.path
    if source is None:
        yield None
        return
    with Checkpoint(source, record.name if record else None) as checkpoint:
        yield checkpoint


def _conclude(verification: Verification | None, as_json: bool, table: bool) -> None:
    """Print the verdict, and exit with 1 unless it passed."""
    from convert.report import summary, tap_table

    if verification is None:
        _print_warning("not verified, as asked; bit verify does it")
        return
    if not as_json:
        console = _console()
        if table:
            console.print(tap_table(verification))
        for line in summary(verification):
            console.print(line, highlight=False, soft_wrap=True)
        console.print("[bold green]verified[/]" if verification.passed else "[bold red]verification failed[/]")
    for warning in verification.warnings:
        _print_warning(warning)
    if not verification.passed:
        sys.exit(FAILED)


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on a terminal, elsewhere a line for each kind of work; on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal:
        seen: set[str] = set()

        def line(what: str, done: int, total: int) -> None:
            if what not in seen:
                seen.add(what)
                print(f"{what} …", file=sys.stderr, flush=True)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def bar(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=None)
            bars.update(tasks[what], completed=done, total=total or None)

        yield bar


def _console() -> Any:
    from rich.console import Console

    return Console()


def _print_line(text: str) -> None:
    click.echo(text)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def _print_warning(text: str) -> None:
    click.echo(f"warning: {text}", err=True)


def _require_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise click.UsageError("PyTorch is not installed; pip install 'bit-convert[torch]'")
