"""The command `bit`: the one place that exits or reads the environment and, through `terminal`, prints."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

import convert
from convert.dtypes import BY_NAME
from convert.errors import CheckpointError
from convert.layouts import LAYOUTS
from convert.locate import user_path
from convert.terminal import print_json, print_rich, print_warning, progress_bar, write

if TYPE_CHECKING:
    from convert.checkpoint import Checkpoint
    from convert.verification import Verification

FAILED, BAD_INPUT = 1, 2


class Commands(click.Group):
    """Turns what can go wrong with input into one `error:` line and exit status 2."""

    def main(self, *arguments: Any, **options: Any) -> NoReturn:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
                signal.signal(number, _terminate)
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            sys.exit(super().main(*arguments, **{**options, "standalone_mode": False}) or 0)
        except click.exceptions.NoArgsIsHelpError as error:
            write(error.format_message() + "\n", sys.stdout)
            sys.exit(BAD_INPUT)
        except click.ClickException as error:
            hint = "; see bit --help" if isinstance(error, click.UsageError) else ""
            _refuse(error.format_message().rstrip(".") + hint)
        except CheckpointError as error:
            _refuse(str(error), error.problems)
        except OSError as error:
            message = error.strerror or str(error)
            _refuse(f"{error.filename}: {message}" if error.filename else message)
        except (KeyboardInterrupt, click.Abort):
            write("interrupted\n", sys.stderr)
            sys.exit(128 + signal.SIGINT)


def _terminate(number: int, frame: object) -> NoReturn:
    write("ended by a signal\n", sys.stderr)
    sys.exit(128 + number)


def _refuse(message: str, problems: tuple[str, ...] = ()) -> NoReturn:
    if "--json" in sys.argv:
        print_json({"error": message, "problems": problems})
    write("error: " + " ".join(message.split()) + "\n", sys.stderr)
    sys.exit(BAD_INPUT)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(convert.__version__, prog_name="bit")
def main() -> None:
    """Convert BiT weights between libraries, and prove that nothing changed."""


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
layout_option = click.option(
    "--to", "layout", type=click.Choice(list(LAYOUTS)), default="transformers", show_default=True
)


checkpoints_option = click.option(
    "--checkpoints",
    type=click.Path(path_type=Path),
    default=Path("checkpoints"),
    show_default=True,
    help="Where named checkpoints are kept.",
)
mirror_option = click.option(
    "--mirror", envvar="BIT_MIRROR", show_envvar=True, help="Fetch published files below this address, not Google's."
)


@main.command("convert")
@click.argument("checkpoint")
@layout_option
@click.option("--out", type=click.Path(path_type=Path), help="The new folder. [default: converted/NAME/LAYOUT]")
@click.option("--force", is_flag=True, help="Replace an existing conversion.")
@click.option("--no-verify", is_flag=True, help="Convert only; the folder then counts as unverified.")
@click.option("--torch", is_flag=True, help="Verify with bit's PyTorch model too.")
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
    torch: bool,
    head: str,
    dtype: str | None,
    ws_eps: str,
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
    from convert import conversion
    from convert.changes import Changes
    from convert.checkpoint import Checkpoint
    from convert.files.atomic import NewFolder
    from convert.locate import hub_name, locate
    from convert.record import foreign_names
    from convert.verification import verify

    _require(torch, "torch", "torch")
    changes = Changes(head, dtype, ws_eps)
    changes.check(LAYOUTS[layout])
    conversion.check_sharding(LAYOUTS[layout], max_shard_size)
    _require(LAYOUTS[layout].container == "onnx", "onnx", "onnxruntime")
    target = _output(checkpoint, layout, out)
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
                verification = verify(folder.path, source, progress, torch, record.source.sha256)
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
        _conclude(verification, as_json, table=False)


@main.command("verify")
@click.argument("folder")
@layout_option
@click.option("--source", type=click.Path(path_type=Path), help="What it was converted from, if it was moved.")
@click.option(
    "--torch/--no-torch", default=None, help="Run bit's PyTorch model too. [default: where PyTorch is installed]"
)
@json_option
def verify_command(folder: str, layout: str, source: Path | None, torch: bool | None, as_json: bool) -> None:
    """Verify a FOLDER that `bit convert` wrote, against its source and recorded outputs.

    The CHECKPOINT that was converted may be named instead, with --to for its layout.
    """
    from convert.record import ConversionRecord
    from convert.verification import verify

    path = user_path(folder)
    if ConversionRecord.read(path) is None and (converted := _output(folder, layout, None)).is_dir():
        path = converted
    if not path.is_dir():
        raise CheckpointError(f"there is no folder {folder!r}")
    _require(bool(torch), "torch", "torch")
    if torch is None:
        torch = importlib.util.find_spec("torch") is not None
    with progress_bar() as progress, _source_of(path, source and user_path(source)) as opened:
        verification = verify(path, opened, progress, torch)
    if as_json:
        print_json(verification.to_dict())
    _conclude(verification, as_json, table=True)


@main.command("inspect")
@click.argument("checkpoint")
@checkpoints_option
@mirror_option
@json_option
def inspect_command(checkpoint: str, checkpoints: Path, mirror: str | None, as_json: bool) -> None:
    """Say what CHECKPOINT is: its layout and network, and whether its weights are as they should be."""
    from convert.checkpoint import Checkpoint
    from convert.inspection import inspect
    from convert.locate import hub_name, locate
    from convert.report import inspection_lines

    with progress_bar() as progress:
        path = locate(checkpoint, user_path(checkpoints), progress, mirror)
        with Checkpoint(path, hub_name(checkpoint)) as opened:
            found = inspect(opened, progress)
    if as_json:
        print_json(found.to_dict())
    else:
        print_rich(*inspection_lines(found))


@main.command("compare")
@click.argument("first")
@click.argument("second")
@click.option("--no-taps", is_flag=True, help="Compare the weights alone; the networks are not run.")
@checkpoints_option
@mirror_option
@json_option
def compare_command(
    first: str, second: str, no_taps: bool, checkpoints: Path, mirror: str | None, as_json: bool
) -> None:
    """Say in what FIRST and SECOND, two checkpoints of any layouts, differ; exit with 1 if they do."""
    from convert.checkpoint import Checkpoint
    from convert.difference import compare
    from convert.locate import hub_name, locate
    from convert.report import difference_lines, difference_table

    with progress_bar() as progress, contextlib.ExitStack() as stack:
        one, other = (
            stack.enter_context(Checkpoint(locate(name, user_path(checkpoints), progress, mirror), hub_name(name)))
            for name in (first, second)
        )
        found = compare(one, other, progress, taps=not no_taps)
    if as_json:
        print_json(found.to_dict())
    else:
        tables = [] if found.equal else [difference_table(found)]
        print_rich(*tables, *difference_lines(found))
    if not found.equal:
        sys.exit(FAILED)


@main.command("classify")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--model", required=True, type=click.Path(path_type=Path), help="A converted folder, transformers or timm."
)
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="How many classes to name.")
@json_option
def classify_command(images: tuple[Path, ...], model: Path, top: int, as_json: bool) -> None:
    """Name what IMAGES, files or folders of files, show."""
    _require(True, "torch", "torch")
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


def _output(checkpoint: str, layout: str, out: Path | None) -> Path:
    """The folder that a conversion of `checkpoint` is written to."""
    from convert.checkpoint import checkpoint_name
    from convert.locate import hub_name

    if out is not None:
        return user_path(out)
    path = user_path(checkpoint)
    name = checkpoint_name(path) if path.exists() else hub_name(checkpoint) or path.name
    return Path("converted") / name / layout


@contextlib.contextmanager
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


def _conclude(verification: Verification, as_json: bool, table: bool) -> None:
    """Print the verdict, and exit with 1 unless it passed."""
    from convert.report import summary, tap_table

    if not as_json:
        verdict = "[bold green]verified[/]" if verification.passed else "[bold red]verification failed[/]"
        print_rich(*([tap_table(verification)] if table else []), *summary(verification), verdict)
    for warning in verification.warnings:
        print_warning(warning)
    if not verification.passed:
        sys.exit(FAILED)


def _require(wanted: bool, extra: str, *modules: str) -> None:
    """Raise `CheckpointError` if one of the modules that the `extra` brings is wanted and missing."""
    for module in modules if wanted else ():
        if importlib.util.find_spec(module) is None:
            raise CheckpointError(f"{module} is not installed; make setup installs it, or pip install -e '.[{extra}]'")
