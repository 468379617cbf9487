"""`bit evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

import click

import convert
from convert.cli.common import UNFINISHED, skipped_words, source_options
from convert.cli.terminal import escape, print_result, print_warning, progress_bar, table
from convert.options import EvaluateOptions, StrPath

SHOWN = 10
"""Most disagreements that are printed; the report has all."""


@click.command("evaluate")
@click.argument("models", nargs=-1, required=True, metavar="CHECKPOINT…")
@click.option("--data", metavar="DATA", required=True, help="Folder of images, data set, or digits.")
@click.option("--split", metavar="NAME", help="train, val or another split. [default: val, else all images]")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of train and val of data without splits.")
@click.option("--skip-bad-images", is_flag=True, help="Leave out images that cannot be read, and count them.")
@click.option(
    "--preprocessing",
    metavar="HOW",
    default="same",
    show_default=True,
    help="same: all get the pixels that the first checkpoint states; each: those that each states; library: by each "
    "library's own pipeline.",
)
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Images at once.")
@click.option(
    "--report",
    metavar="PLACE",
    help="Folder for evaluation.json and evaluation.html, or one such file. [default: beside the first CHECKPOINT]",
)
@source_options
def evaluate_command(models: tuple[str, ...], data: str, as_json: bool, **options: Unpack[EvaluateOptions]) -> None:
    """Measure checkpoints on labelled images, and compare their answers.

    Each CHECKPOINT is run by the library of its layout, in a process of its own: accuracy, calibration and images a
    second. The first one is compared with each other: images with the same first class, and how far outputs differ.

    DATA is a folder with a folder of images for each class (also inside train and val), a name or path for the library
    datasets, or digits: scikit-learn's 1,797 handwritten digits.

    Exits with 3 if a library could not run its checkpoint.
    """
    from convert.evaluating import report_beside

    place = options["report"] = options.get("report") or report_beside(models[0])
    with progress_bar() as progress:
        found = convert.evaluate(models, data, progress=progress, **options)
    print_result(as_json, found.to_dict(), [*_lines(found), *_report_lines(place)])
    for warning in found.warnings:
        print_warning(warning)
    if found.data.skipped:
        print_warning(skipped_words(found.data.skipped))
    for item in found.not_run:
        print_warning(f"{item.checkpoint} was not run by {item.library}: {item.reason}")
    if not found.complete:
        sys.exit(UNFINISHED)


def _lines(found: convert.Evaluation) -> Iterator[str]:
    """Yield the tables of scores and of comparisons, and images with different classes."""
    from convert.reporting.evaluation import difference_words, notes, percent, rate, short_names

    data, names = found.data, short_names(found)
    yield f"{data.images} images of {len(data.classes)} classes from {escape(data.name)}"
    rows = [
        (
            name,
            run.library,
            percent(run.scores.top1),
            percent(run.scores.top5),
            percent(run.scores.ece),
            f"{run.scores.nll:.4f}",
            rate(run.images_per_second),
        )
        for name, run in zip(names, found.runs, strict=True)
    ]
    yield from table(("checkpoint", "library", "top-1", "top-5", "ECE", "NLL", "images/s"), rows, left=(0, 1))
    for words in dict.fromkeys(run.preprocessing for run in found.runs):
        users = [name for name, run in zip(names, found.runs, strict=True) if run.preprocessing == words]
        whose = "" if len(users) == len(names) else f"{', '.join(map(escape, users))}: "
        yield f"images: {whose}{escape(words)}"
    yield from map(escape, notes(found))
    if not found.pairs:
        return
    yield ""
    pairs = [
        (
            name,
            f"{pair.same_first_class} of {pair.images}",
            f"{pair.kl_mean:.1e}",
            f"{pair.kl_max:.1e}",
            f"{pair.largest_difference:.1e}",
            f"{pair.relative_l2:.1e}",
        )
        for name, pair in zip(names[1:], found.pairs, strict=True)
    ]
    headings = (f"compared with {names[0]}", "same first class", "mean KL", "max KL", "largest logit", "relative L2")
    yield from table(headings, pairs)
    for name, pair in zip(names[1:], found.pairs, strict=True):
        sign = "[green]✓[/]" if pair.explained else "[red]✗[/]"
        yield f"{sign} {escape(name)}: {escape(difference_words(pair))}"
        for item in pair.disagreements[:SHOWN]:
            yield (
                f"    {escape(item.image)}: {escape(item.first.label)} (margin {item.first.margin:.1e}), here "
                f"{escape(item.second.label)} (margin {item.second.margin:.1e}); logits differ by up to "
                f"{item.largest_difference:.1e}"
            )
        if len(pair.disagreements) > SHOWN:
            yield f"    and {len(pair.disagreements) - SHOWN} more, in the report"


def _report_lines(place: StrPath | None) -> list[str]:
    if place is None:
        return []
    folder = Path(place).expanduser()
    page = folder if folder.is_file() else folder / "evaluation.html"
    hint = " (open it in a browser)" if page.suffix == ".html" else ""
    return [f"report: {escape(page)}{hint}"]
