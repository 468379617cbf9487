"""An evaluation as one HTML page, as JSON, and in words that the terminal shows, too."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

from bit import __version__
from convert.evaluation.results import Evaluation, Pair
from convert.files.atomic import json_text, new_file
from convert.reporting.reliability import diagrams
from convert.reporting.templates import template
from convert.reporting.text import number

TEMPLATE = "evaluation.html.jinja"
MOST = 200
"""Most images of a comparison that the page lists; the JSON has all."""
EVALUATION_NAMES = ("evaluation.json", "evaluation.html")


def write_evaluation(file: Path, evaluation: Evaluation) -> None:
    """Write the report to one file, a page if the name ends with `.html`, else JSON. Raises `OSError`."""
    text = render(evaluation) if file.suffix == ".html" else json_text(evaluation.to_dict())
    file.parent.mkdir(parents=True, exist_ok=True)
    with new_file(file) as partial:
        partial.write_text(text, "utf-8")


def render(evaluation: Evaluation) -> str:
    """Return the content of `evaluation.html`. Equal values give equal bytes; it loads nothing and runs no script."""
    names = short_names(evaluation)
    filters: dict[str, Callable[..., Any]] = {
        "number": number,
        "percent": percent,
        "rate": rate,
        "sha256": lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode(),
        "difference_words": difference_words,
    }
    return template("convert.reporting", TEMPLATE, filters, autoescape=True).render(
        evaluation=evaluation,
        names=names,
        drawings=diagrams(evaluation.runs, names),
        evaluator=f"bit-convert {__version__}",
        command=command(evaluation),
        notes=notes(evaluation),
        MOST=MOST,
    )


def command(evaluation: Evaluation) -> str:
    """Return the command line that repeats an evaluation."""
    data = evaluation.data
    every = [*(run.checkpoint for run in evaluation.runs), *(item.checkpoint for item in evaluation.not_run)]
    options = ["--split", data.split] if data.split else []
    options += ["--preprocessing", evaluation.preprocessing] if evaluation.preprocessing != "same" else []
    options += ["--skip-bad-images"] if data.skipped else []
    return shlex.join(["bit", "evaluate", *every, "--data", data.name, *options])


def short_names(evaluation: Evaluation) -> list[str]:
    """Return the names of the checkpoints that were run, of each as many of the last parts as tell them apart."""
    names = [run.checkpoint for run in evaluation.runs]
    parts = [PurePath(name).parts for name in names]
    for count in range(1, max(map(len, parts), default=0)):
        shown = [str(PurePath(*row[-count:])) for row in parts]
        if 1 < len(set(shown)) == len(set(names)):
            return shown
    return names


def notes(evaluation: Evaluation) -> list[str]:
    """Return the remarks on the runs, each with the checkpoints that it is about unless these are all."""
    found: dict[str, list[str]] = {}
    for name, run in zip(short_names(evaluation), evaluation.runs, strict=True):
        for note in run.notes:
            found.setdefault(note, []).append(name)
    count = len(evaluation.runs)
    return [note if len(names) == count else f"{', '.join(names)}: {note}" for note, names in found.items()]


def percent(share: float | None) -> str:
    """Format a share with two decimals; an en dash stands for a measure that does not apply."""
    return "–" if share is None else f"{100 * share:.2f} %"


def rate(images_per_second: float) -> str:
    """Format images a second with three digits."""
    return f"{images_per_second:.0f}" if images_per_second >= 99.5 else f"{images_per_second:.3g}"


def difference_words(pair: Pair) -> str:
    """Say whether all first classes are the same, and if not, whether something known explains it."""
    why = " and ".join(pair.causes)
    different = len(pair.disagreements)
    if pair.tolerance is None:
        return f"{different} of {pair.images} images have another first class; the images were prepared differently"
    allowed = f"relative L2 {number(pair.relative_l2)} (up to {number(pair.tolerance)} expected from {why})"
    if not pair.explained:
        return f"the outputs differ: {allowed}; {different} of {pair.images} images have another first class"
    if not different:
        return f"all {pair.images} images have the same first class: {allowed}"
    margins = [max(item.first.margin, item.second.margin) for item in pair.disagreements]
    return (
        f"{different} of {pair.images} images have another first class, each explained by its margin (at most "
        f"{number(max(margins))}): {allowed}"
    )
