"""Watch a training: keep the curve, stop it, mark checkpoints as complete and report progress."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bit.files import read_json
from bit.finetuning import checkpoints
from bit.finetuning.curve import Curve, Evaluation
from bit.finetuning.settings import Settings

SAVE_SECONDS = 600.0
"""A checkpoint is written after this time even if no number of steps asks for it."""
SYNC_STEPS = 10
"""Steps after which losses are fetched from an accelerator; on a processor they are there at once."""
SPEED_STEPS = 20
"""Steps over which the speed is measured."""


class DivergedError(ValueError):
    """The loss is not a finite number."""


@dataclass(frozen=True)
class Step:
    """How far a training is."""

    step: int
    """Steps taken."""
    steps: int
    loss: float
    """Mean loss of the last step."""
    learning_rate: float
    images_per_second: float
    seconds_left: float
    accuracy: float | None = None
    """The last measured accuracy in [0, 1]; None before the first."""


Report = Callable[[Step], None]


class Watched(Protocol):
    """The parts of `engine.BitTrainer` that are watched."""

    accelerator: Any
    eval_dataset: Any
    network: nn.Module
    losses: list[Tensor]
    """The loss of each micro-batch of the current step in this process."""
    folder: Path


class Keeper(TrainerCallback):
    """Keeps the curve, stops at a loss that is not finite, marks checkpoints as complete and reports progress."""

    def __init__(
        self, trainer: Watched, settings: Settings, report: Report | None, stop: Stop, resumed: Path | None
    ) -> None:
        self._trainer, self._settings, self._report, self._stop = trainer, settings, report, stop
        stored = None if resumed is None else read_json(resumed / checkpoints.CURVE)
        self.curve = Curve() if stored is None else Curve.from_dict(stored)
        self._pending: list[tuple[float, Tensor]] = []
        """The rate of each step, and the sum of the losses of the micro-batches, that were not fetched yet."""
        self._saved, self._begun = time.monotonic(), 0.0
        self._seconds: deque[float] = deque(maxlen=SPEED_STEPS)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._begun = time.monotonic()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        losses, self._trainer.losses = self._trainer.losses, []
        rate = self._settings.schedule.rate(state.global_step, self._settings.base_lr)
        self._pending.append((rate or 0.0, torch.stack(losses).sum()))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Decide what follows; the same in all processes."""
        self._seconds.append(time.monotonic() - self._begun)
        last, alone = state.global_step >= self._settings.steps, args.world_size == 1
        often = args.device.type == "cpu" and alone
        if often or last or control.should_save or control.should_evaluate or state.global_step % SYNC_STEPS == 0:
            stopped = self._fetch()
            control.should_training_stop |= stopped
            control.should_save |= stopped or last
        if alone and time.monotonic() - self._saved > SAVE_SECONDS:
            control.should_save = True
        if last and self._trainer.eval_dataset is not None:
            control.should_evaluate = True
        if control.should_save:
            self._check_weights(state.global_step)
        if self._report is not None and args.should_save and not self._pending:
            self._report(self._step(state.global_step))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> None:
        found = Evaluation(state.global_step, metrics["eval_loss"], metrics["eval_accuracy"])
        if not math.isfinite(found.loss):
            where = f"the loss of the evaluation after step {found.step}"
            raise DivergedError(self._diverged(f"{where} is {found.loss}"))
        self.curve.evaluations.append(found)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._trainer.accelerator.wait_for_everyone()
        if args.should_save:
            folder = self._trainer.folder / f"checkpoint-{state.global_step}"
            checkpoints.complete(folder, self.curve.to_dict())
        self._saved = time.monotonic()

    def _fetch(self) -> bool:
        """Move pending losses to the curve; return whether a process was asked to stop. Raises `DivergedError`."""
        accelerator, (rates, losses) = self._trainer.accelerator, zip(*self._pending, strict=True)
        self._pending = []
        asked = torch.tensor([float(self._stop.asked)], dtype=losses[0].dtype, device=losses[0].device)
        found = torch.cat([torch.stack(losses), asked])
        if accelerator.num_processes > 1:
            found = accelerator.reduce(found, "sum")
        *sums, stopped = found.tolist()
        for rate, loss in zip(rates, sums, strict=True):
            mean = loss / self._settings.split
            if not math.isfinite(mean):
                raise DivergedError(self._diverged(f"the loss of step {len(self.curve.loss) + 1} is {mean}"))
            self.curve.loss.append(mean)
            self.curve.learning_rate.append(rate)
        return bool(stopped)

    def _check_weights(self, step: int) -> None:
        """Raise `DivergedError` if a weight is not finite, so that no checkpoint holds it."""
        if not all(bool(value.isfinite().all()) for value in self._trainer.network.parameters()):
            raise DivergedError(self._diverged(f"weights are not finite after step {step}"))

    def _diverged(self, what: str) -> str:
        place = checkpoints.latest(self._trainer.folder)
        kept = f"; the checkpoint of step {checkpoints.step_of(place)} is kept" if place is not None else ""
        return f"{what}{kept}: choose a smaller learning rate"

    def _step(self, step: int) -> Step:
        seconds, steps = statistics.mean(self._seconds), self._settings.steps
        return Step(
            step,
            steps,
            self.curve.loss[-1],
            self.curve.learning_rate[-1],
            self._settings.batch / seconds,
            (steps - step) * seconds,
            self.curve.accuracy,
        )


class Stop:
    """A flag: a signal asked for the end of the training."""

    asked = False
