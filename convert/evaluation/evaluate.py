"""Run every checkpoint on the same images, one library after the other, and score and compare the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from platform import machine, python_version
from typing import Any

import numpy as np

from bit.image_folder import LabelledImages
from bit.image_processing import BitImageProcessorPil
from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.training import Training
from convert.errors import CheckpointError
from convert.evaluation.classes import Matching, match_all
from convert.evaluation.libraries import Runner, runner_of
from convert.evaluation.metrics import Logits, differences, scores
from convert.evaluation.preparation import Batches, effective, in_words, stated_preprocessing
from convert.evaluation.results import Choice, Data, Disagreement, Evaluation, NotRun, Pair, Run
from convert.evaluation.worker import RunnerProcess
from convert.progress import Progress
from convert.published.preprocessing import preprocessor
from convert.references.worker import ProcessError, processors

SAME, EACH, LIBRARY = "same", "each", "library"
PREPROCESSING = (SAME, EACH, LIBRARY)
"""The same pixels for all checkpoints; what each folder states; or each library's own pipeline."""
MULTI_LABEL = "multi_label_classification"
SEVERAL = (
    "the head is for several labels: the first class is the most probable, its confidence a sigmoid, and NLL the "
    "binary cross-entropy, summed over the classes"
)

ROUNDING, EPSILON = 1e-4, 1e-2
"""Relative L2 differences of logits that rounding to float32 and another epsilon explain. Google's own float32 code
differs from its float64 by up to 2.3e-5, so two libraries by twice that; the epsilons 1e-10 and 1e-8 by 3.5e-4 for
seeded weights, and by more where filters have little variance."""
DTYPES = {"float16": 1e-2, "bfloat16": 1e-1}
"""The same for weights that are stored with fewer bits: eight and one times the rounding of bfloat16, 2^-8, summed
over the layers, as measured for seeded weights."""


@dataclass(frozen=True)
class Candidate:
    """A checkpoint to evaluate."""

    name: str
    """As it was named."""
    checkpoint: Checkpoint
    runner: Runner

    @property
    def sigmoid(self) -> bool:
        """True for a head with a sigmoid for each class."""
        return self.checkpoint.config.problem_type == MULTI_LABEL


@dataclass(frozen=True)
class Settings:
    """How images are prepared and run."""

    preprocessing: str = SAME
    batch: int = 8


@dataclass(frozen=True)
class _Pipeline:
    """How images become pixels for one checkpoint."""

    batches: Batches
    words: str
    settings: dict[str, Any] | None


def candidate(name: str, checkpoint: Checkpoint) -> Candidate:
    """Return a checkpoint with the library that runs it.

    Raises `CheckpointError` if it has no head, takes other images than RGB, or no library runs its layout.
    """
    config, layout = checkpoint.config, checkpoint.layout
    if not config.num_labels:
        raise CheckpointError(f"{name} has no head, so it cannot classify; fine-tune it first, or add --head new:N")
    if config.num_channels != 3:
        raise CheckpointError(f"{name} takes images with {config.num_channels} channels; only RGB images are evaluated")
    runner = runner_of(layout.name)
    if runner is None:
        raise CheckpointError(f"{name} has the layout {layout.name}, which no library here runs; convert it first")
    return Candidate(name, checkpoint, runner)


def evaluate(
    candidates: Sequence[Candidate], images: LabelledImages, data: Data, settings: Settings, progress: Progress
) -> Evaluation:
    """Run checkpoints on images, and compare each with the first that could be run.

    One that cannot be run, because a library is missing or fails, is listed in `not_run`. Raises `UsageError` for
    classes that are not those of a head, and `CheckpointError` for invalid preprocessing.
    """
    labels = np.array(images.labels, np.int64)
    matched = match_all(images.classes, {item.name: item.checkpoint.config for item in candidates})
    matchings = [matched[item.name] for item in candidates]
    stated = [stated_preprocessing(item.checkpoint) for item in candidates]
    common, warnings = _common(candidates, stated)
    prepared: dict[str, Batches] = {}
    runs: list[tuple[Candidate, Run, Logits]] = []
    not_run: list[NotRun] = []
    for item, matching, own in zip(candidates, matchings, stated, strict=True):
        processor = common if settings.preprocessing == SAME else own or _usual(item)
        if (package := item.runner.missing) is not None:
            reason = f"{package} is not installed; run make setup, or {item.runner.install}"
            not_run.append(NotRun(item.name, item.checkpoint.layout.name, item.runner.shown, reason))
            continue
        progress(_task(item), 0, len(images))
        try:
            with RunnerProcess(item.runner, item.checkpoint) as process:
                about = process.loaded()
                theirs = settings.preprocessing == LIBRARY and about.own_pipeline
                pipeline = _pipeline(prepared, images, None if theirs else processor, settings.batch)
                logits, seconds = _logits(process, pipeline.batches, matching, item, progress)
                memory = process.memory()
        except ProcessError as error:
            not_run.append(NotRun(item.name, item.checkpoint.layout.name, item.runner.shown, error.problems[0]))
            continue
        several = SEVERAL if item.sigmoid else None
        notes = [note for note in (about.note, several, matching.note, _training_note(item, data)) if note]
        run = Run(
            checkpoint=item.name,
            layout=item.checkpoint.layout.name,
            architecture=item.checkpoint.config.architecture,
            library=item.runner.shown,
            version=about.version,
            ws_eps=about.ws_eps,
            dtype=item.checkpoint.dtype,
            preprocessing=pipeline.words,
            settings=pipeline.settings,
            sigmoid=item.sigmoid,
            scores=scores(logits, labels, item.sigmoid),
            images_per_second=len(images) / seconds,
            memory=memory,
            notes=tuple(notes),
        )
        runs.append((item, run, logits))
    return Evaluation(
        data=data,
        preprocessing=settings.preprocessing,
        runs=tuple(run for _, run, _ in runs),
        not_run=tuple(not_run),
        pairs=tuple(_compared(runs[0], other, images) for other in runs[1:]),
        warnings=warnings if settings.preprocessing == SAME else (),
        environment={
            "python": python_version(),
            "machine": machine(),
            "processors": str(processors()),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def _common(
    candidates: Sequence[Candidate], stated: Sequence[BitImageProcessorPil | None]
) -> tuple[BitImageProcessorPil, tuple[str, ...]]:
    """Return the preprocessing for all: that of the first checkpoint that states one; and who states another."""
    place = next((place for place, own in enumerate(stated) if own is not None), None)
    common = _usual(candidates[0]) if place is None else stated[place]
    assert common is not None
    source = f"{candidates[place or 0].name} states" if place is not None else "Google evaluates"
    others = [
        f"{item.name} states other preprocessing ({in_words(own)}); all were given images as {source}: "
        f"{in_words(common)}; --preprocessing each follows every folder"
        for item, own in zip(candidates, stated, strict=True)
        if own is not None and own != common
    ]
    return common, tuple(others)


def _usual(item: Candidate) -> BitImageProcessorPil:
    """Return Google's preprocessing for a checkpoint that states none."""
    return effective(BitImageProcessorPil.from_dict(preprocessor("google", item.checkpoint.name)))


def _pipeline(
    prepared: dict[str, Batches], images: LabelledImages, processor: BitImageProcessorPil | None, batch: int
) -> _Pipeline:
    """Return the batches of a preprocessing; those with equal settings share what is prepared."""
    if processor is None:
        return _Pipeline(Batches(images, None, batch), "by the library's own pipeline", None)
    batches = prepared.setdefault(repr(processor), Batches(images, processor, batch))
    return _Pipeline(batches, in_words(processor), processor.to_dict())


def _logits(
    process: RunnerProcess, batches: Batches, matching: Matching, item: Candidate, progress: Progress
) -> tuple[Logits, float]:
    """Return the logits of the data's classes for all images `[N, classes]`, and the seconds that the network took."""
    found: list[tuple[list[int], Logits]] = []
    seconds, done, total = 0.0, 0, batches.total
    outputs = list(matching.outputs)
    for batch in batches:
        answer = process.logits(batch.images, batches.size)
        if answer.logits.shape[1:] != (item.checkpoint.config.num_labels,):
            raise ProcessError("", [f"it returned values of the shape {list(answer.logits.shape)}"])
        found.append((batch.places, answer.logits[:, outputs]))
        seconds += answer.seconds
        done += len(batch.places)
        progress(_task(item), done, total)
    logits = np.empty((total, len(outputs)), np.float32)
    for places, rows in found:
        logits[places] = rows
    return logits, max(seconds, 1e-9)


def _task(item: Candidate) -> str:
    """Return the name of a run for `progress`."""
    return f"{item.name} ({item.runner.shown})"


def _compared(
    first: tuple[Candidate, Run, Logits], second: tuple[Candidate, Run, Logits], images: LabelledImages
) -> Pair:
    """Compare the logits of a checkpoint with those of the first."""
    found = differences(first[2], second[2], first[0].sigmoid)
    causes = _causes(first[1], second[1])
    same_pixels = first[1].settings is not None and first[1].settings == second[1].settings
    ours, theirs = found.first_class
    return Pair(
        first=first[1].checkpoint,
        second=second[1].checkpoint,
        images=len(images),
        same_first_class=int((ours == theirs).sum()),
        kl_mean=float(found.kl.mean()),
        kl_max=float(found.kl.max()),
        largest_difference=float(found.largest.max()),
        relative_l2=found.relative_l2,
        tolerance=sum(causes.values()) if same_pixels else None,
        causes=(*causes, *([] if same_pixels else ["other pixels"])),
        disagreements=tuple(
            Disagreement(
                image=images.name(int(place)),
                label=images.classes[images.labels[place]],
                first=Choice(images.classes[ours[place]], float(found.margin[0][place])),
                second=Choice(images.classes[theirs[place]], float(found.margin[1][place])),
                largest_difference=float(found.largest[place]),
            )
            for place in np.flatnonzero(ours != theirs)
        ),
    )


def _causes(first: Run, second: Run) -> dict[str, float]:
    """Return the known reasons why two right conversions differ, and the relative difference that each explains."""
    causes = {"rounding of float32": ROUNDING}
    if first.ws_eps != second.ws_eps:
        there, here = ("unknown" if run.ws_eps is None else f"{run.ws_eps:g}" for run in (first, second))
        causes[f"epsilon {there} in the first and {here} here"] = EPSILON
    if first.dtype != second.dtype:
        causes |= {f"weights in {dtype}": DTYPES[dtype] for dtype in (first.dtype, second.dtype) if dtype in DTYPES}
    return causes


def _training_note(item: Candidate, data: Data) -> str | None:
    """Return a note if `training.json` beside the weights says that these are the images of the training."""
    training = Training.beside(item.checkpoint.file.path.parent)
    if training is None:
        return None
    notes = {
        training.data.validation_sha256: "these are the validation images of its training",
        training.data.training_sha256: "it was trained on these images",
    }
    return notes.get(data.fingerprint)
