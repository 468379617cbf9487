"""Train a BiT network with transformers' `Trainer`, which brings several devices, mixed precision and TensorBoard."""

from __future__ import annotations

import errno
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import (
    EvalPrediction,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from transformers.integrations.integration_utils import TensorBoardCallback

from bit import hyperrule
from bit.config import WEIGHTS_NAME
from bit.files import one_line
from bit.finetuning import checkpoints
from bit.finetuning.curve import Curve
from bit.finetuning.data import Collator, EvaluationImages, Images, Mixing, TrainingImages, in_range
from bit.finetuning.keeper import DivergedError as DivergedError
from bit.finetuning.keeper import Keeper, Report, Stop
from bit.finetuning.keeper import Step as Step
from bit.finetuning.settings import Settings

KEPT = 2
"""Checkpoints that are kept: if the disk is full while one is written, the one before is still there."""
LOGGED = 500
"""Most entries of the loss in TensorBoard's log, if there are more steps."""
LOGS = "logs"
TRACEBACK = "Traceback (most recent call last)"
"""Part of the message of an error in a process that prepares images."""


@dataclass(frozen=True)
class Outcome:
    """A finished or interrupted training."""

    curve: Curve
    finished: bool
    """False if it was stopped; the last checkpoint is that of the last step taken."""
    resumed_from: int
    """Steps that were taken before in an earlier run; 0 for none."""
    seconds: float
    """Time of this run."""


@dataclass(frozen=True)
class Data:
    """The images that a training reads. Fields may be replaced by others of the same kind, as tests do."""

    training: Any
    """A data set as long as all steps together, such as `TrainingImages`."""
    evaluation: Any
    """A data set such as `EvaluationImages`; None to evaluate nothing."""
    mixup: Mixing

    @classmethod
    def of(cls, training: Images, evaluation: Images | None, settings: Settings) -> Data:
        """Return the data of two sets of images."""
        return cls(
            TrainingImages(training, settings),
            None if evaluation is None or not len(evaluation) else EvaluationImages(evaluation, settings),
            hyperrule.Mixup(settings.mixup, settings.seed),
        )


def finetune(
    model: nn.Module,
    data: Data,
    settings: Settings,
    folder: Path,
    report: Report | None = None,
    *,
    workers: int = 0,
) -> Outcome:
    """Train `model` in place; `folder` keeps checkpoints and TensorBoard's logs, and a run there is resumed.

    The folder must be of a training with the same model, data and settings, which the caller checks. `workers`
    processes prepare images. SIGINT and SIGTERM end the training after the current step with a checkpoint; then
    `Outcome.finished` is False. Raises `DivergedError` for a loss that is not finite, `OSError` if a checkpoint cannot
    be written, with the last complete one left in both cases, `ValueError` for a batch that cannot be divided
    among the processes, the errors of `data` in one line, and `MemoryError` on an accelerator whose memory is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with quiet(), _stop_requests() as stop:
        arguments = _arguments(settings, folder, workers, data.evaluation is not None)
        if arguments.should_save:
            checkpoints.remove_incomplete(folder)
        optimizer = hyperrule.optimizer(model.parameters(), settings.base_lr)
        trainer = BitTrainer(
            model,
            arguments,
            data_collator=Collator(data.mixup, settings.batch, settings.micro_batch),
            train_dataset=data.training,
            eval_dataset=data.evaluation,
            compute_metrics=_accuracy,
            preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(1),
            optimizers=(optimizer, hyperrule.scheduler(optimizer, settings.schedule)),
        )
        trainer.accelerator.wait_for_everyone()
        start, resumed = time.monotonic(), checkpoints.latest(folder)
        taken = 0 if resumed is None else checkpoints.step_of(resumed)
        keeper = Keeper(trainer, settings, report, stop, resumed)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(keeper)
        trainer.add_callback(TensorBoardCallback(_writer(folder, taken) if arguments.should_save else None))
        if resumed is None or taken < settings.steps:
            with _one_line_errors(settings):
                trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
        else:  # the run was killed after the last checkpoint
            model.load_state_dict(load_file(resumed / WEIGHTS_NAME))
    return Outcome(keeper.curve, len(keeper.curve.loss) == settings.steps, taken, time.monotonic() - start)


class BitTrainer(Trainer):
    """transformers' `Trainer` with mixup, and with places of the training in the order of the data set."""

    loss_is_scaled_for_ga = False  # a mean over a micro-batch: Trainer divides it by their number, as Google does

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.model_accepts_loss_kwargs = False
        self.losses: list[Tensor] = []
        """The loss of each micro-batch of the current step in this process."""
        self.network: nn.Module = self.model  # type: ignore[assignment]  # `Trainer` has refused None
        self.folder = Path(str(self.args.output_dir))
        self._dtype = next(self.network.parameters()).dtype

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return micro-batches in order; each process takes its share."""
        arguments = self.args
        loader = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]  # `Trainer` names more kinds than it gets here
            arguments.per_device_train_batch_size,
            collate_fn=self.data_collator,
            num_workers=arguments.dataloader_num_workers,
            pin_memory=arguments.dataloader_pin_memory,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the mean cross-entropy of a micro-batch, mixed if it comes with `ratio` and `partners`."""
        x, labels = in_range(inputs["pixel_values"], self._dtype), inputs["labels"]
        ratio, partners = inputs.get("ratio"), inputs.get("partners")
        if ratio is None or partners is None:
            logits = model(pixel_values=x).logits
            loss = functional.cross_entropy(logits.to(_at_least_float32(logits)), labels)
        else:
            ratio = ratio.to(x.dtype)
            logits = model(pixel_values=hyperrule.mix(x, ratio, partners)).logits
            loss = hyperrule.mixed_cross_entropy(logits.to(_at_least_float32(logits)), labels, ratio, partners)
        if model.training:
            self.losses.append(loss.detach())
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint; whatever goes wrong is an `OSError`, and what was written is removed."""
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:  # PyTorch and safetensors have errors of their own
            folder = self.folder
            if self.args.should_save:
                checkpoints.remove_incomplete(folder)
            number, place = getattr(error, "errno", None) or errno.EIO, checkpoints.latest(folder)
            kept = f"the one of step {checkpoints.step_of(place)} is complete" if place is not None else "none is left"
            message = (
                f"the checkpoint of step {self.state.global_step} cannot be written ({one_line(error)}); {kept}: make "
                "sure that the disk has room, then start the training again to go on"
            )
            raise OSError(number, message, str(folder)) from error

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return nothing unless gradients are clipped: the norm costs a pass over all of them at every step."""
        return grad_norm


def _arguments(settings: Settings, folder: Path, workers: int, evaluates: bool) -> TrainingArguments:
    """Return the arguments of `Trainer`. Raises `ValueError` unless the processes can share a batch."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.micro_batch,
        per_device_eval_batch_size=settings.micro_batch,
        bf16=settings.precision == "bf16",
        use_cpu=not torch.accelerator.is_available(),
        max_grad_norm=0.0,
        seed=settings.seed,
        eval_strategy="steps" if evaluates and settings.evaluate_every else "no",
        eval_steps=settings.evaluate_every or None,
        save_strategy="steps",
        save_steps=settings.save_every or settings.steps,
        save_total_limit=KEPT,
        logging_steps=max(1, settings.steps // LOGGED),
        logging_nan_inf_filter=False,
        log_level="error",
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # or `DataParallel` would split micro-batches; torchrun starts a process for each device
    processes = arguments.world_size
    if settings.split % processes:
        raise ValueError(
            f"a batch of {settings.batch} images in micro-batches of {settings.micro_batch} cannot be divided among "
            f"{processes} processes"
        )
    arguments.gradient_accumulation_steps = settings.split // processes
    return arguments


def _writer(folder: Path, taken: int) -> Any:
    """Return TensorBoard's writer; steps that will be repeated are removed from earlier logs."""
    # TensorBoard then writes files by itself. Otherwise it imports TensorFlow for that, where it is installed.
    sys.modules.setdefault("tensorboard.compat.notf", ModuleType("notf"))
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / LOGS), purge_step=taken + 1 if taken else None)


def _accuracy(found: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float(np.mean(found.predictions == found.label_ids))}


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep remarks and bars of transformers, which are not about this training, from the terminal."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _one_line_errors(settings: Settings) -> Iterator[None]:
    """Raise an error of a process that prepares images without the traceback that PyTorch adds to its message."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        message = f"{one_line(error)}; choose a smaller micro-batch than {settings.micro_batch}"
        raise MemoryError(message) from None
    except (OSError, ValueError) as error:
        if TRACEBACK not in str(error):
            raise
        last = str(error).rstrip().splitlines()[-1]  # `ValueError: image.png cannot be read as an image`
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(last.partition(": ")[2] or last) from None


@contextmanager
def _stop_requests() -> Iterator[Stop]:
    """Provide what the first SIGINT or SIGTERM sets; the second does what it did before."""
    stop, before = Stop(), dict[int, Any]()

    def ask(number: int, frame: Any) -> None:
        stop.asked = True
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        before |= {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
