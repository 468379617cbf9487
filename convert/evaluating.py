"""Evaluate checkpoints on labelled images: open them, read the images, run each library, and write the report."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from bit.image_folder import LabelledImages, read_images
from convert.checkpoints.manifest import Manifest, is_signed
from convert.errors import UsageError, check_choice, check_names
from convert.evaluation.evaluate import PREPROCESSING, SAME, Settings, candidate
from convert.evaluation.evaluate import evaluate as evaluate_candidates
from convert.evaluation.results import Data, Evaluation
from convert.options import EvaluateOptions, StrPath
from convert.progress import Progress, silent
from convert.reporting.evaluation import EVALUATION_NAMES, write_evaluation
from convert.sources.resolve import user_path
from convert.verifying import open_checkpoint


def evaluate(
    models: StrPath | Sequence[StrPath],
    data: StrPath,
    *,
    progress: Progress = silent,
    **options: Unpack[EvaluateOptions],
) -> Evaluation:
    """Measure accuracy and calibration of checkpoints, each run by its own library, and compare their answers.

    `models` are one or several checkpoints of any layout, as `convert` takes them; others are compared with the first.
    `data` is a folder with a folder of images for each class, a name or path for the library `datasets`, or `digits`,
    see `bit.image_folder.read_images`. `options` are those of `convert.options.EvaluateOptions`. What a library could
    not run is in `not_run` of the result. Raises `CheckpointError` for a checkpoint that cannot be evaluated, and
    `UsageError` for options, images that cannot be read, and classes that a head does not have.
    """
    check_names(options, EvaluateOptions)
    named = [models] if isinstance(models, str | os.PathLike) else list(models)
    if not named:
        raise UsageError("no checkpoint was named; name one or more")
    settings = Settings(options.get("preprocessing", SAME), options.get("batch", Settings.batch))
    check_choice("preprocessing", settings.preprocessing, PREPROCESSING)
    if settings.batch < 1:
        raise UsageError(f"a batch of {settings.batch} images is not possible; choose 1 or more")
    files = _report_files(options.get("report"))
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(open_checkpoint(name, progress, options)) for name in named]
        candidates = [candidate(os.fspath(name), item) for name, item in zip(named, opened, strict=True)]
        images = _read(data, progress, options)
        about = Data(
            os.fspath(data), options.get("split"), len(images), images.classes, images.fingerprint(), images.skipped
        )
        evaluation = evaluate_candidates(candidates, images, about, settings, progress)
    for file in files:
        write_evaluation(file, evaluation)
    return evaluation


def report_beside(checkpoint: StrPath) -> Path | None:
    """Return the folder that holds a checkpoint's folder or file, for the report.

    None for a name, and for a folder that cannot be written to or is signed.
    The checkpoint's own folder stays as it is: a conversion holds what it was verified with, and may be signed.
    """
    path = user_path(checkpoint)
    if not path.exists():
        return None
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    if path.is_dir() or Manifest.beside(path) is not None:
        folder = folder.parent
    signed = any(map(is_signed, (folder, *folder.parents)))
    return folder if os.access(folder, os.W_OK) and not signed else None


def _read(data: StrPath, progress: Progress, options: EvaluateOptions) -> LabelledImages:
    """Read the images. Raises `UsageError` for data that cannot be used."""
    try:
        return read_images(
            os.fspath(data),
            split=options.get("split"),
            skip_bad=options.get("skip_bad_images", False),
            seed=options.get("seed", 0),
            progress=progress,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def _report_files(report: StrPath | None) -> list[Path]:
    """Return the files of a report: one that is named, or both in a folder. Raises `UsageError`.

    Without a report there are none.
    """
    if not report:
        return []
    path = user_path(report)
    files = [path] if path.suffix in (".html", ".json") and not path.is_dir() else [path / n for n in EVALUATION_NAMES]
    folder = files[0].parent
    for place in (folder.resolve(), *folder.resolve().parents):
        if is_signed(place):
            raise UsageError(
                f"{files[0]} is in the signed folder {place}, which stays as it is; choose another --report"
            )
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{folder} cannot be written to; choose another --report")
    return files
