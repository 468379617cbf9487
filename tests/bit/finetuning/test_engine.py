"""The engine takes the steps of Google's own training code, and ends with the same bits however often it is killed."""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.networks import TINY
from support.training import RECORDED, RecordedImages, RecordedMixup, network, recorded_errors, settings_of
from torch import Tensor

from bit import BitForImageClassification
from bit.finetuning import checkpoints, engine
from bit.finetuning.engine import Data, DivergedError, Outcome, Step, finetune
from bit.finetuning.settings import Settings
from bit.hyperrule import Resolution, Schedule
from convert.references.training import FOLDER, TrainingRecording

SETTINGS = Settings(
    Schedule(2, (4, 6), 7),
    Resolution(20, 16),
    batch=6,
    micro_batch=3,
    base_lr=0.01,
    mixup=0.5,
    seed=3,
    evaluate_every=3,
    save_every=2,
)
"""Two micro-batches a step, mixed; evaluations and checkpoints at different steps."""


@dataclass(frozen=True)
class Stripes:
    """Images of lying and standing stripes with noise."""

    count: int
    first: int = 0

    @property
    def labels(self) -> tuple[int, ...]:
        return tuple(index % 2 for index in range(self.count))

    def __len__(self) -> int:
        return self.count

    def open(self, index: int) -> Image.Image:
        noise = np.random.default_rng(self.first + index).integers(0, 60, (24, 24, 3))
        stripes = np.where(np.arange(24) % 6 < 3, 180, 0)[:, None, None] + noise
        return Image.fromarray((stripes if index % 2 else stripes.swapaxes(0, 1)).astype(np.uint8))


@dataclass
class Killed(BaseException):
    """Stands for the end of the process."""


def model() -> BitForImageClassification:
    torch.manual_seed(0)
    return BitForImageClassification(TINY.replace(num_labels=2))


def train(
    folder: Path, settings: Settings = SETTINGS, report: Any = None, data: Data | None = None
) -> tuple[Outcome, dict[str, Tensor]]:
    trained = model()
    outcome = finetune(trained, data or Data.of(Stripes(10), Stripes(4, 100), settings), settings, folder, report)
    return outcome, trained.state_dict()


def killing(at: int) -> Any:
    def report(step: Step) -> None:
        if step.step == at:
            raise Killed

    return report


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, dict[str, Tensor]]:
    return train(tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("name", [n if "mixup" in n else pytest.param(n, marks=pytest.mark.long) for n in RECORDED])
def test_the_engine_takes_googles_training_steps(name: str, tmp_path: Path) -> None:
    recording = TrainingRecording.read(FOLDER / f"{name}.safetensors")
    settings = settings_of(recording.about)
    data = Data(RecordedImages(recording.about), None, RecordedMixup(settings.mixup, settings.split))
    trained = network(recording)
    outcome = finetune(trained, data, settings, tmp_path / "run")
    assert outcome.finished
    assert outcome.curve.learning_rate == pytest.approx(recording.arrays["learning_rate"].tolist(), rel=1e-14)
    errors = recorded_errors(recording, trained, outcome.curve.loss)
    assert {key: error for key, error in errors.items() if not error < 1e-9} == {}


def test_a_training_learns_and_keeps_a_curve(undisturbed: tuple[Outcome, dict[str, Tensor]]) -> None:
    outcome, _ = undisturbed
    assert outcome.finished
    assert outcome.resumed_from == 0
    assert len(outcome.curve.loss) == 7
    assert outcome.curve.learning_rate == pytest.approx([0, 0.005, 0.01, 0.01, 0.01, 0.001, 0.001])
    assert [item.step for item in outcome.curve.evaluations] == [3, 6, 7]


def test_a_network_learns(tmp_path: Path) -> None:
    longer = replace(SETTINGS, schedule=Schedule(5, (), 40), mixup=0.0, save_every=0, evaluate_every=0)
    steps: list[Step] = []
    outcome, _ = train(tmp_path, longer, steps.append)
    assert outcome.curve.accuracy == 1.0
    assert np.mean(outcome.curve.loss[-5:]) < 0.3 < np.mean(outcome.curve.loss[:5])
    assert [step.step for step in steps] == list(range(1, 41))
    assert steps[-1].seconds_left == 0
    assert all(step.images_per_second > 0 for step in steps)


@pytest.mark.parametrize("step", [1, 5])
def test_a_killed_training_ends_with_the_same_bits(
    step: int, tmp_path: Path, undisturbed: tuple[Outcome, dict[str, Tensor]]
) -> None:
    with pytest.raises(Killed):
        train(tmp_path, report=killing(step))
    outcome, state = train(tmp_path)
    assert outcome.resumed_from == (step - 1) // 2 * 2, "the report comes before the checkpoint of the step"
    assert outcome.curve == undisturbed[0].curve
    assert same(state, undisturbed[1])


def test_a_half_written_checkpoint_is_not_used(tmp_path: Path, undisturbed: tuple[Outcome, dict[str, Tensor]]) -> None:
    with pytest.raises(Killed):
        train(tmp_path, report=killing(5))
    newest = checkpoints.latest(tmp_path)
    assert newest == tmp_path / "checkpoint-4"
    for name in ("model.safetensors", "optimizer.pt", "trainer_state.json", checkpoints.MARK):
        whole = (newest / name).read_bytes()
        (newest / name).write_bytes(whole[: len(whole) // 2])
        assert checkpoints.latest(tmp_path) == tmp_path / "checkpoint-2"
        (newest / name).write_bytes(whole)
    (newest / checkpoints.MARK).unlink()
    outcome, state = train(tmp_path)
    assert outcome.resumed_from == 2
    assert same(state, undisturbed[1])


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    train(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-7"]
    assert list((tmp_path / engine.LOGS).glob("events*")), "TensorBoard's"


def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: tuple[Outcome, dict[str, Tensor]]
) -> None:
    save, count = torch.save, iter(range(100))

    def full(*arguments: Any, **options: Any) -> None:
        if next(count) >= 6:
            raise RuntimeError("PytorchStreamWriter failed writing file: no space left")
        save(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("torch.save", full)
        with pytest.raises(
            OSError,
            match=r"step 4 cannot be written \(Pytorch.*; the one of step 2 is complete: make sure that the disk",
        ) as error:
            train(tmp_path)
    assert error.value.errno == errno.EIO
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert same(train(tmp_path)[1], undisturbed[1])


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_signal_saves_and_stops(number: int, tmp_path: Path, undisturbed: tuple[Outcome, dict[str, Tensor]]) -> None:
    before = signal.getsignal(number)
    outcome, _ = train(tmp_path, report=lambda step: os.kill(os.getpid(), number) if step.step == 3 else None)
    assert not outcome.finished
    assert len(outcome.curve.loss) == 4, "the step that was being taken is finished"
    assert signal.getsignal(number) == before
    outcome, state = train(tmp_path)
    assert outcome.resumed_from == 4
    assert outcome.finished
    assert same(state, undisturbed[1])


@dataclass(frozen=True)
class Spoiled:
    """A data set with an image that is not a number from a place on."""

    whole: Any
    place: int

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, place: int) -> Any:
        item = self.whole[place]
        value = float("nan") if place >= self.place else 0.0
        return {**item, "pixel_values": item["pixel_values"].float() / 255 + value}


def test_a_loss_that_is_not_a_number_stops_the_training(tmp_path: Path) -> None:
    data = Data.of(Stripes(10), None, SETTINGS)
    spoiled = replace(data, training=Spoiled(data.training, 4 * 6 + 1))
    with pytest.raises(
        DivergedError, match=r"^the loss of step 5 is nan; the checkpoint of step 4 is kept: choose a sm"
    ):
        train(tmp_path, data=spoiled)
    kept = checkpoints.latest(tmp_path)
    assert kept is not None
    assert checkpoints.step_of(kept) == 4
    finite = [bool(value.isfinite().all()) for value in train(tmp_path, data=data)[1].values()]
    assert all(finite)


@dataclass(frozen=True)
class Gone:
    """A data set whose images cannot be read from a place on."""

    whole: Any
    error: type[Exception]

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, place: int) -> Any:
        if place >= 12:
            raise self.error(f"image {place} is gone")
        return self.whole[place]


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError])
def test_an_image_that_is_gone_is_one_line_from_a_process_too(error: type[Exception], tmp_path: Path) -> None:
    data = Data.of(Stripes(10), None, SETTINGS)
    gone = replace(data, training=Gone(data.training, error))
    with pytest.raises(OSError if error is not ValueError else error, match=r"^image 12 is gone$"):
        finetune(model(), gone, SETTINGS, tmp_path, workers=1)


def test_full_memory_of_an_accelerator_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr("bit.finetuning.engine.hyperrule.mix", full)
    with pytest.raises(MemoryError, match=r"^CUDA out of memory\. Tried .*; choose a smaller micro-batch than 3$"):
        train(tmp_path)


def test_an_evaluation_that_is_not_a_number_stops_the_training_before_it_is_saved(tmp_path: Path) -> None:
    data = Data.of(Stripes(10), Stripes(4), SETTINGS)
    spoiled = replace(data, evaluation=Spoiled(data.evaluation, 0))
    with pytest.raises(DivergedError, match=r"^the loss of the evaluation after step \d+ is nan"):
        finetune(model(), spoiled, replace(SETTINGS, evaluate_every=2, save_every=2), tmp_path)
    assert checkpoints.latest(tmp_path) is None
    assert train(tmp_path, data=data)[0].finished


def test_weights_that_are_not_numbers_are_not_saved(tmp_path: Path) -> None:
    trained, settings = model(), replace(SETTINGS, save_every=1)
    trained.classifier[1].bias.register_hook(lambda gradient: gradient * float("nan"))
    data = Data.of(Stripes(10), None, settings)
    with pytest.raises(DivergedError, match=r"^weights are not finite after step 1: choose a smaller learning rate$"):
        finetune(trained, data, settings, tmp_path)
    assert checkpoints.latest(tmp_path) is None


def test_micro_batches_change_rounding_alone(tmp_path: Path) -> None:
    losses = []
    for size in (6, 2):
        settings = replace(SETTINGS, micro_batch=size, mixup=0.0, save_every=0, evaluate_every=0)
        data = Data.of(Stripes(10), None, settings)
        losses.append(finetune(model().double(), data, settings, tmp_path / str(size)).curve.loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-11)


def test_bfloat16_changes_the_convolutions_alone(
    tmp_path: Path, undisturbed: tuple[Outcome, dict[str, Tensor]]
) -> None:
    outcome, state = train(tmp_path, replace(SETTINGS, precision="bf16"))
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert outcome.curve.loss == pytest.approx(undisturbed[0].curve.loss, rel=0.3)
    assert outcome.curve.loss != undisturbed[0].curve.loss
