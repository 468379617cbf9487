"""`bit finetune`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Unpack

import click

import convert
from convert.cli.common import conclude, recordings_option, report_in, skipped_words, source_options, verification_lines
from convert.cli.terminal import escape, print_result, print_warning, progress_bar, write

if TYPE_CHECKING:
    from bit.finetuning.engine import Step
    from convert.finetuning.options import FinetuneOptions
    from convert.finetuning.run import FinetuneResult
    from convert.progress import Progress

LINES = 50
"""Lines of progress of a whole training."""


@click.command("finetune")
@click.argument("checkpoint", required=False)
@click.option(
    "--data",
    metavar="DATA",
    help="Folder with a folder of images for each class, or with train/ and val/ of them; a data set that the library "
    "datasets loads; or digits. [default: digits]",
)
@click.option("--out", metavar="DIR", help="The new folder. [default: finetuned/CHECKPOINT-DATA]")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of optimizer steps. [default: 500, 10,000 or 20,000, by the number of images]",
)
@click.option("--batch", type=click.IntRange(min=1), metavar="N", help="Images for each step. [default: 512]")
@click.option("--micro-batch", type=click.IntRange(min=1), metavar="N", help="Images at once. [default: by their size]")
@click.option("--lr", type=float, metavar="RATE", help="Learning rate after the warm-up. [default: 0.003]")
@click.option("--batch-scaling", is_flag=True, help="Multiply the rate by batch / 512 and the steps by 512 / batch.")
@click.option(
    "--size",
    type=click.IntRange(min=1),
    metavar="PIXELS",
    help="Edge of the image that the network sees. [default: 128 for images of less than 96×96, else 480]",
)
@click.option(
    "--mixup",
    type=click.FloatRange(min=0),
    metavar="ALPHA",
    help="Mix images; 0 to leave it out. [default: 0.1 from 20,000 images on]",
)
@click.option("--flip/--no-flip", default=None, help="Mirror half of the images. [default: flip]")
@click.option("--precision", metavar="NAME", help="fp32, or bf16: convolutions in bfloat16. [default: fp32]")
@click.option(
    "--seed", type=click.IntRange(min=0), metavar="N", help="Seed of order, crops, mixtures and split. [default: 0]"
)
@click.option(
    "--evaluate-every", type=click.IntRange(min=1), metavar="STEPS", help="Measure accuracy. [default: 10 times]"
)
@click.option(
    "--save-every",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Keep the state. [default: 10 times, and every 10 minutes]",
)
@click.option(
    "--workers", type=click.IntRange(min=0), metavar="N", help="Processes that prepare images. [default: as needed]"
)
@click.option("--keep-head", is_flag=True, help="Train the checkpoint's head in place of a new one of zeros.")
@click.option("--skip-bad-images", is_flag=True, help="Leave out images that cannot be read, and count them.")
@click.option("--no-verify", "verify", flag_value=False, default=True, help="Do not verify the result.")
@click.option("--force", is_flag=True, help="Begin again, and replace an earlier result.")
@recordings_option
@source_options
def finetune_command(
    checkpoint: str | None, data: str | None, out: str | None, as_json: bool, **options: Unpack[FinetuneOptions]
) -> None:
    """Fine-tune a checkpoint by BiT-HyperRule.

    CHECKPOINT is anything that bit convert takes. The result is a converted folder of the layout transformers, with
    training.json, and the plot of loss and accuracy in verification.html. Without CHECKPOINT and DATA, a small network
    with seeded weights learns scikit-learn's handwritten digits, in minutes.

    Schedule, size and mixup follow from the number and the size of the images; each can be replaced. The state of the
    training is kept in OUT.training: after a kill at any moment, the same command goes on. Ctrl-C saves first.

    Several GPUs: torchrun --nproc-per-node 2 -m convert finetune …
    """
    with progress_bar() as progress:
        report = _reporter(progress)
        try:
            result = convert.finetune(checkpoint, data, out, progress=progress, report=report, **options)
        except (convert.VerificationError, convert.IncompleteError) as error:
            if error.result is None:
                raise
            conclude(error.result.verification)
            raise
    if not result.finished:
        write(f"stopped after step {result.steps} of {result.total}; the same command goes on from there\n", sys.stderr)
        sys.exit(128 + signal.SIGINT)
    if not result.main:
        return
    training, conversion = result.training, result.conversion
    assert training is not None, "it is finished"
    assert conversion is not None, "it is finished"
    value = {
        "folder": str(result.folder),
        "accuracy": training.accuracy,
        "steps": result.steps,
        "resumed_from": result.resumed_from,
        "seconds": round(result.seconds, 1),
        "skipped": result.skipped,
        "verdict": conversion.verification.verdict if options["verify"] else None,
        "training": training.to_dict(),
    }
    print_result(as_json, value, _lines(result))
    if result.skipped:
        print_warning(skipped_words(result.skipped))
    for warning in conversion.warnings:
        print_warning(warning)
    if options["verify"]:
        conclude(conversion.verification)


def _lines(result: FinetuneResult) -> Iterator[str]:
    training, conversion = result.training, result.conversion
    assert training is not None, "it is finished"
    assert conversion is not None, "it is finished"
    data = training.data
    yield (
        f"{escape(result.folder)}: {escape(conversion.manifest.architecture)}, {data.classes} classes, fine-tuned from "
        f"{escape(training.checkpoint)} on {data.training_images:,} images in {result.steps:,} steps"
    )
    if not conversion.created:
        yield "  this training was finished before; --force begins again"
    if training.accuracy is not None:
        yield f"[bold]accuracy {training.accuracy:.2%}[/] of {data.validation_images:,} validation images"
    verified = conversion.verification
    if verified.checks:
        yield from verification_lines(verified, report_in(result.folder, verified))
    if conversion.loading:
        yield "load it with:"
        yield from (f"  {escape(line)}" for line in conversion.loading.splitlines())


def _reporter(progress: Progress) -> Callable[[Step], None]:
    """Return a callback that moves the bar of a terminal, and prints a line about some of the steps."""

    def show(step: Step) -> None:
        if sys.stderr is not None and sys.stderr.isatty():
            progress("training", step.step, step.steps)
        if step.step % max(1, step.steps // LINES) == 0 or step.step == step.steps:
            write(f"{_words(step)}\n", sys.stderr)

    return show


def _words(step: Step) -> str:
    minutes, seconds = divmod(round(step.seconds_left), 60)
    accuracy = "" if step.accuracy is None else f", accuracy {step.accuracy:.1%}"
    return (
        f"step {step.step:,} of {step.steps:,}: loss {step.loss:.4f}{accuracy}, rate {step.learning_rate:.2g}, "
        f"{step.images_per_second:.0f} images/s, {minutes}:{seconds:02} left"
    )
