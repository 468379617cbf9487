"""Fine-tune a checkpoint of any layout on a folder of images."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from bit import __version__
from bit.image_processing import PREPROCESSOR_NAME
from convert.api import ConversionResult, convert, verify
from convert.checkpoints.checkpoint import Checkpoint, checkpoint_name
from convert.checkpoints.manifest import Manifest, foreign_names
from convert.checkpoints.options import ConversionOptions
from convert.checkpoints.training import TRAINING_NAME, DataUsed, Evaluated, Training, TrainingCurve
from convert.conversion.plan import plan
from convert.conversion.write import write
from convert.errors import CheckpointError, ConvertError, TrainingError, UsageError, check_names
from convert.files.atomic import NewFolder, write_json
from convert.files.base import combined_sha256, shown
from convert.finetuning.options import FinetuneOptions
from convert.finetuning.workplace import Workplace
from convert.layouts.transformers import TRANSFORMERS
from convert.options import StrPath
from convert.progress import Progress, silent
from convert.published.preprocessing import preprocessor
from convert.sources.resolve import SYNTHETIC, hub_name, user_path
from convert.verification.results import Verification
from convert.verifying import open_checkpoint

if TYPE_CHECKING:
    from bit.finetuning.engine import Outcome, Step
    from bit.finetuning.settings import Settings
    from bit.image_folder import LabelledImages

DEFAULT_CHECKPOINT, DEFAULT_DATA = "Synthetic-R14x1", "digits"
NEEDS = ("torch", "torchvision", "transformers", "accelerate", "tensorboard")
"""Packages that a training imports."""
LIBRARIES = ("torch", "torchvision", "transformers", "accelerate", "numpy", "pillow")
"""Libraries whose versions are written down, because another one may give other bits."""
RULE = ("schedule", "resolution", "batch", "base_lr", "mixup", "flip")
"""The settings that BiT-HyperRule chooses."""


@dataclass(frozen=True)
class FinetuneResult:
    """The result of a fine-tuning."""

    folder: Path
    """A converted folder of the layout transformers, with `training.json`."""
    training: Training | None
    """None if the training was stopped before the end."""
    conversion: ConversionResult | None
    """None if the training was stopped before the end."""
    steps: int
    """Steps that are taken."""
    total: int
    resumed_from: int = 0
    """Steps that were taken by earlier runs."""
    seconds: float = 0.0
    """Time of the training in this run."""
    skipped: tuple[str, ...] = ()
    """One line for each image that was left out."""
    main: bool = True
    """False in all processes but the first, if there are several; these have no conversion."""

    @property
    def finished(self) -> bool:
        return self.steps >= self.total


def finetune(
    checkpoint: StrPath | None = None,
    data: StrPath | None = None,
    out: StrPath | None = None,
    *,
    progress: Progress = silent,
    report: Callable[[Step], None] | None = None,
    **options: Unpack[FinetuneOptions],
) -> FinetuneResult:
    """Fine-tune a checkpoint by BiT-HyperRule, and write a folder of the layout transformers.

    `checkpoint` is anything that `convert` takes; its head is replaced by zeros for the classes of the data. `data`
    is a folder with a folder of images for each class, or what `bit.image_folder.read_images` takes besides. By
    default seeded weights of R14x1 learn scikit-learn's digits. `out` is the new folder, by default
    `finetuned/CHECKPOINT-DATA`; the state of the training is kept beside it in `OUT.training`, and the same call
    resumes a run that was killed. `report` is called after each step. The result is verified as `convert` does.

    Raises `CheckpointError` for a checkpoint, images or a folder that cannot be used, `UsageError` for settings,
    `TrainingError` if the loss is not finite, `OSError` if a checkpoint cannot be written, and the errors of
    `convert`.
    """
    check_names(options, FinetuneOptions)
    name, images = os.fspath(checkpoint or DEFAULT_CHECKPOINT), os.fspath(data or DEFAULT_DATA)
    require_packages(images)
    place = Workplace(user_path(out) if out is not None else default_out(name, images))
    with contextlib.ExitStack() as stack:
        with _main_process_first() as main:
            if main:
                stack.enter_context(place.held())
            job = _prepare(place, name, images, main, progress, options)
        if isinstance(job, FinetuneResult):
            return job
        outcome = _train(job, report, options.get("workers"))
        taken = len(outcome.curve.loss)
        result = FinetuneResult(
            place.out, None, None, taken, job.settings.steps, outcome.resumed_from, outcome.seconds, job.skipped, main
        )
        if not main or not result.finished:
            return result
        training = job.record(outcome)
        _keep(job, training)
        del job.model  # the verification needs the memory
        conversion = _convert(place, job.settings.resolution.crop, progress, options)
        place.finish()
        return replace(result, training=training, conversion=conversion)


@dataclass
class _Job:
    """A training that is ready to begin or to go on."""

    place: Workplace
    model: Any
    training: LabelledImages
    validation: LabelledImages
    settings: Settings
    changed: tuple[str, ...]
    about: Mapping[str, Any]
    """The content of `run.json`."""

    @property
    def skipped(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.training.skipped, *self.validation.skipped)))

    def record(self, outcome: Outcome) -> Training:
        """Return the content of `training.json`, which depends on nothing but what was asked for."""
        curve, about = outcome.curve, self.about
        evaluations = [Evaluated(item.step, item.loss, item.accuracy) for item in curve.evaluations]
        return Training(
            checkpoint=about["checkpoint"],
            checkpoint_sha256=about["checkpoint_sha256"],
            data=DataUsed(
                name=about["data"],
                training_images=len(self.training),
                validation_images=len(self.validation),
                classes=len(self.training.classes),
                training_sha256=about["training_sha256"],
                validation_sha256=about["validation_sha256"],
                skipped=len(self.skipped),
            ),
            settings=self.settings.to_dict(),
            changed=self.changed,
            versions=_versions(),
            curve=TrainingCurve(curve.loss, curve.learning_rate, evaluations),
        )


def default_out(checkpoint: str, data: str) -> Path:
    """Return `finetuned/CHECKPOINT-DATA`."""
    path = user_path(checkpoint)
    name = checkpoint_name(path) if path.exists() else hub_name(checkpoint) or path.name
    return Path("finetuned", f"{name}-{user_path(data).resolve().name}")


def require_packages(data: str) -> None:
    """Raise `UsageError` if a package that a training on this data imports is missing."""
    needed = (*NEEDS, *(("sklearn",) if data == DEFAULT_DATA else ()))
    if missing := next((package for package in needed if find_spec(package) is None), None):
        raise UsageError(f"{missing} is not installed; run make setup, or pip install -e '.[finetune]'")


def _prepare(
    place: Workplace, checkpoint: str, data: str, main: bool, progress: Progress, options: FinetuneOptions
) -> _Job | FinetuneResult:
    """Read the images, choose the settings, and make the folder in which the training begins or goes on.

    Returns the result instead if it is there already.
    """
    from bit.image_folder import splits

    with _refused_as(CheckpointError):
        training, validation = splits(
            data, skip_bad=options.get("skip_bad_images", False), seed=options.get("seed") or 0, progress=progress
        )
    with open_checkpoint(checkpoint, progress, options) as source:
        with _refused_as(UsageError):
            settings, changed = _settings(checkpoint, data, source, training, options)
        files = source.file.digests()
        origin = source.manifest.origin if source.manifest is not None else None
        about = {
            "checkpoint": origin.name if origin is not None else source.name,
            "checkpoint_sha256": origin.sha256 if origin is not None else combined_sha256(files),
            "weights_sha256": combined_sha256(files),
            "data": shown(user_path(data).resolve().name),
            "training_sha256": training.fingerprint(),
            "validation_sha256": validation.fingerprint(),
            "keep_head": options.get("keep_head", False),
            **settings.to_dict(),
        }
        del about["save_every"]  # which changes nothing in the result
        if main:
            if (before := _existing(place, about, options)) is not None:
                return before
            place.begin(about, options.get("force", False))
            _start(place, source, training.classes, progress, options.get("keep_head", False))
        elif not place.start.exists():  # the first process has found the result
            return FinetuneResult(place.out, None, None, settings.steps, settings.steps, main=False)
    model = _load(place.start, training.classes)
    return _Job(place, model, training, validation, settings, changed, about)


def _settings(
    checkpoint: str, data: str, source: Checkpoint, training: LabelledImages, options: FinetuneOptions
) -> tuple[Settings, tuple[str, ...]]:
    """Return the settings, and the names of those that are not the rule's. Raises `ValueError`."""
    import torch

    from bit.finetuning.settings import FROM_SCRATCH_ON_DIGITS, Wishes, choose

    names = (
        "steps",
        "batch",
        "micro_batch",
        "size",
        "mixup",
        "flip",
        "precision",
        "seed",
        "evaluate_every",
        "save_every",
    )
    asked: dict[str, Any] = {name: options.get(name) for name in names}
    wishes = Wishes(**asked, base_lr=options.get("lr"), batch_scaling=options.get("batch_scaling", False))
    if checkpoint in SYNTHETIC and data == DEFAULT_DATA:
        wishes = wishes.or_else(FROM_SCRATCH_ON_DIGITS)
    size = len(training), training.sizes, source.config.embedding_size / 64
    settings = choose(*size, wishes, torch.cuda.is_available())
    rule = choose(*size)
    return settings, tuple(name for name in RULE if getattr(settings, name) != getattr(rule, name))


def _existing(place: Workplace, about: Mapping[str, Any], options: FinetuneOptions) -> FinetuneResult | None:
    """Return the result of the same training if it is there, verified again.

    Raises `CheckpointError` for anything else at `out`.
    """
    force = options.get("force", False)
    if force or not os.path.lexists(place.out):
        NewFolder(place.out, foreign_names, force=force)  # refuses what must not be replaced
        return None
    training = Training.beside(place.out)
    manifest = Manifest.read(place.out) if training is not None else None
    if training is None or manifest is None or place.run() != about:
        raise CheckpointError(
            f"{place.out} exists and is not the result of this training; choose another --out, or replace a result of "
            "another training with --force"
        )
    steps = len(training.curve.loss)
    verification = Verification(manifest.name, manifest.layout, manifest.architecture, manifest.classes)
    if options.get("verify", True):
        verification = verify(place.out, full=False, recordings=options.get("recordings"))
    place.finish()  # a run that was killed at the very end did not
    conversion = ConversionResult(place.out, manifest, verification, place.trained, created=False)
    return FinetuneResult(place.out, training, conversion, steps, steps, resumed_from=steps)


def _start(place: Workplace, source: Checkpoint, classes: Sequence[str], progress: Progress, keep_head: bool) -> None:
    """Convert the checkpoint to what the training begins from, unless it is there."""
    if place.start.exists():
        return
    found = source.config.num_labels
    if keep_head and found != len(classes):
        raise UsageError(
            f"the data has {len(classes)} classes, but the head of {source.name} has {found}; leave out --keep-head to "
            "begin with a new head"
        )
    changes = ConversionOptions("keep" if keep_head else f"new:{len(classes)}", "float32")
    with NewFolder(place.start, foreign_names) as output:
        write(plan(source, TRANSFORMERS, changes), output, progress)
        output.commit()


def _load(folder: Path, classes: Sequence[str]) -> Any:
    """Return the model, with the names of the classes."""
    from bit import BitForImageClassification

    with _refused_as(CheckpointError):
        return BitForImageClassification.from_pretrained(folder, id2label=dict(enumerate(classes)), problem_type=None)


def _train(job: _Job, report: Callable[[Step], None] | None, workers: int | None) -> Outcome:
    """Run the training. Raises `TrainingError` if it diverges."""
    from bit.finetuning.data import Prepared
    from bit.finetuning.engine import Data, DivergedError, finetune

    if workers is None:
        kept = Prepared.fits(len(job.training), job.settings.resolution.precrop)
        workers = 0 if kept else max(1, min(8, (os.cpu_count() or 1) - 1))
    data = Data.of(job.training, job.validation, job.settings)
    with _refused_as(UsageError):
        try:
            return finetune(job.model, data, job.settings, job.place.steps, report, workers=workers)
        except DivergedError as error:
            raise TrainingError(str(error)) from None


def _keep(job: _Job, training: Training) -> None:
    """Write the trained network beside the result, whole or not at all."""
    from bit.finetuning.engine import quiet

    with NewFolder(job.place.trained, lambda folder: [], force=True) as output, quiet():
        job.model.save_pretrained(output.path)
        write_json(output.path / PREPROCESSOR_NAME, preprocessor(_profile(job.settings.resolution.crop), ""))
        write_json(output.path / TRAINING_NAME, training.to_dict())
        output.commit()


def _convert(place: Workplace, crop: int, progress: Progress, options: FinetuneOptions) -> ConversionResult:
    """Convert the trained network to the result, and verify it."""
    return convert(
        place.trained,
        out=place.out,
        progress=progress,
        profile=_profile(crop),
        force=options.get("force", False),
        verify=options.get("verify", True),
        recordings=options.get("recordings"),
    )


def _profile(crop: int) -> str:
    """Return the preprocessing of the rule's evaluation at this size."""
    return f"google:{crop}"


def _versions() -> dict[str, str]:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {platform.machine()}"
    found = {name: metadata.version(name) for name in LIBRARIES}
    return {"bit-convert": __version__, "python": platform.python_version(), **found, "device": device}


@contextlib.contextmanager
def _refused_as(kind: type[ConvertError]) -> Iterator[None]:
    """Raise a `ValueError` of the package `bit` as an error of this one."""
    try:
        yield
    except ConvertError:
        raise
    except ValueError as error:
        raise kind(str(error)) from None


@contextlib.contextmanager
def _main_process_first() -> Iterator[bool]:
    """Let the first of several processes, which torchrun or `accelerate launch` started, go first.

    Yields True in it, and in a process alone.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.accelerator.is_available())
    with state.main_process_first():
        yield state.is_main_process
