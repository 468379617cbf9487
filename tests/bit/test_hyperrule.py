"""BiT-HyperRule is Google's, number by number, and the loop that its pieces make is theirs."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.training import RECORDED, RecordedImages, RecordedMixup, network, recorded_errors, settings_of
from torch.nn import functional
from torchvision.transforms import v2

from bit import hyperrule
from bit.hyperrule import Mixup, Resolution, Schedule, learning_rate, mixup_alpha, resolution, schedule
from bit.image_processing import BitImageProcessorPil
from convert.references.training import FOLDER, TrainingRecording

SIZES = st.integers(1, 2_000_000)

SUPPORTS = {
    1: (100, 200, 300, 400, 500),
    19_999: (100, 200, 300, 400, 500),
    20_000: (500, 3000, 6000, 9000, 10_000),
    499_999: (500, 3000, 6000, 9000, 10_000),
    500_000: (500, 6000, 12_000, 18_000, 20_000),
}
"""The steps of Google's rule by the number of images (`bit_hyperrule.py`, lines 40 to 46)."""


@pytest.mark.parametrize("count", SUPPORTS)
def test_the_steps_are_googles(count: int) -> None:
    rule = schedule(count)
    assert (rule.warmup, *rule.boundaries, rule.total) == SUPPORTS[count]


@given(SIZES, st.integers(0, 25_000), st.floats(1e-5, 1))
def test_the_rate_is_zero_at_first_then_linear_and_divided_after_each_boundary(
    count: int, step: int, base: float
) -> None:
    rule, rate = schedule(count), learning_rate(step, count, base)
    if step >= rule.total:
        assert rate is None
    elif step < rule.warmup:
        assert rate == base * step / rule.warmup
    else:
        passed = sum(boundary < step for boundary in rule.boundaries)
        assert rate == pytest.approx(base / 10**passed, rel=1e-14)


@pytest.mark.parametrize("count", SUPPORTS)
def test_a_boundary_itself_has_the_rate_before_it(count: int) -> None:
    assert learning_rate(0, count) == 0
    for number, boundary in enumerate(schedule(count).boundaries):
        assert learning_rate(boundary, count) == pytest.approx(0.003 / 10**number)
        assert learning_rate(boundary + 1, count) == pytest.approx(0.003 / 10 ** (number + 1))
    assert learning_rate(schedule(count).total - 1, count) == pytest.approx(3e-6)
    assert learning_rate(schedule(count).total, count) is None


@given(SIZES, st.integers(1, 8192))
def test_scaling_keeps_the_images_and_multiplies_the_rate(count: int, batch: int) -> None:
    rule, scaled = schedule(count), schedule(count, batch=batch, batch_scaling=True)
    assert schedule(count, batch=batch) == rule, "not asked for"
    assert abs(scaled.total * batch - rule.total * 512) <= max(batch, 512) / 2 + 1
    assert scaled.factor == batch / 512
    assert scaled.warmup / scaled.total == pytest.approx(rule.warmup / rule.total, abs=1 / scaled.total)
    last = scaled.total - 1
    if last >= scaled.warmup:
        passed = sum(boundary < last for boundary in scaled.boundaries)
        assert learning_rate(last, count, batch=batch, batch_scaling=True) == pytest.approx(
            0.003 * batch / 512 / 10**passed
        )


@given(SIZES, st.integers(1, 30_000))
def test_a_schedule_of_any_length_begins_with_zero_and_never_rises_after_the_warmup(count: int, total: int) -> None:
    rule = schedule(count).scaled(total)
    assert rule.total == total
    assert rule.rate(0) == 0
    places = sorted({0, rule.warmup, *rule.boundaries, *(b + 1 for b in rule.boundaries), total - 1} - {total})
    rates = [rule.rate(step) for step in places if rule.warmup <= step < total]
    assert all(before >= after for before, after in itertools.pairwise(rates))  # type: ignore[operator]
    assert rule.rate(total) is None


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_area_decides_the_resolution(height: int, width: int) -> None:
    expected = (160, 128) if height * width < 96 * 96 else (512, 480)
    assert resolution((height, width)) == resolution((width, height)) == expected


@pytest.mark.parametrize(("count", "alpha"), [(1, 0.0), (19_999, 0.0), (20_000, 0.1), (10**6, 0.1)])
def test_mixup_begins_at_twenty_thousand_images(count: int, alpha: float) -> None:
    assert mixup_alpha(count) == alpha


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: schedule(0),
        lambda: schedule(10, batch=0),
        lambda: learning_rate(-1, 10),
        lambda: resolution((0, 5)),
        lambda: mixup_alpha(0),
        lambda: Schedule(100, (50,), 200),
        lambda: schedule(10).scaled(0),
    ],
)
def test_impossible_numbers_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        wrong()  # type: ignore[operator]


@given(st.floats(0.01, 10), st.integers(0, 2**32 - 1), st.integers(0, 20_000), st.integers(1, 64))
def test_mixup_is_a_function_of_seed_and_step(alpha: float, seed: int, step: int, count: int) -> None:
    mixup = Mixup(alpha, seed)
    assert 0 <= mixup.ratio(step) <= 1
    assert mixup.ratio(step) == Mixup(alpha, seed).ratio(step)
    partners = mixup.partners(step, 3, count)
    assert sorted(partners.tolist()) == list(range(count))
    assert torch.equal(partners, Mixup(alpha, seed).partners(step, 3, count))


def test_steps_and_micro_batches_are_mixed_differently() -> None:
    mixup = Mixup(0.1, 0)
    ratios = [mixup.ratio(step) for step in range(2000)]
    assert len(set(ratios)) > 1000
    assert np.mean(ratios) == pytest.approx(0.5, abs=0.03)
    assert np.var(ratios) == pytest.approx(0.25 / 1.2, abs=0.01), "the variance of Beta(0.1, 0.1)"
    assert not torch.equal(mixup.partners(0, 0, 64), mixup.partners(0, 1, 64))
    assert Mixup(0.1, 1).ratio(0) != mixup.ratio(0)


def test_without_mixup_every_image_stays_as_it_is() -> None:
    mixup, x, labels = Mixup(0), torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 1])
    logits = torch.randn(4, 3)
    ratio, partners = mixup.ratio(5), mixup.partners(5, 0, 4)
    assert torch.equal(hyperrule.mix(x, ratio, partners), x)
    assert hyperrule.mixed_cross_entropy(logits, labels, ratio, partners) == functional.cross_entropy(logits, labels)


def test_the_loss_of_a_mixture_is_the_mixture_of_the_losses() -> None:
    logits, labels, partners = torch.randn(4, 3), torch.tensor([0, 1, 2, 1]), torch.tensor([1, 0, 3, 2])
    targets = 0.3 * functional.one_hot(labels, 3) + 0.7 * functional.one_hot(labels[partners], 3)
    expected = functional.cross_entropy(logits, targets)
    assert hyperrule.mixed_cross_entropy(logits, labels, 0.3, partners).item() == pytest.approx(expected.item())


def picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_training_images_are_random_squares_of_the_resized_image() -> None:
    image, rule = picture(70, 90), Resolution(40, 32)
    whole = v2.functional.pil_to_tensor(image.resize((40, 40), Image.Resampling.BILINEAR)) / 255 * 2 - 1
    squares = {
        square.numpy().tobytes()
        for row in range(9)
        for column in range(9)
        for square in (whole[:, row : row + 32, column : column + 32],)
        for square in (square.contiguous(), square.flip(2).contiguous())
    }
    transform = hyperrule.train_transform(rule)
    torch.manual_seed(0)
    found = [transform(image) for _ in range(40)]
    assert all(x.shape == (3, 32, 32) and x.dtype == torch.float32 for x in found)
    near = [np.frombuffer(square, np.float32).reshape(3, 32, 32) for square in squares]
    assert all(min(np.abs(x.numpy() - square).max() for square in near) < 1e-6 for x in found[:3])
    assert len({x.numpy().tobytes() for x in found}) > 30


def test_evaluation_sees_the_whole_image_as_the_stored_preprocessing_does() -> None:
    image = picture(70, 90)
    processor = BitImageProcessorPil(size={"height": 48, "width": 48})
    expected = processor(image)["pixel_values"][0]
    for size in (Resolution(60, 48), 48):
        found = hyperrule.evaluation_transform(size)(image)
        assert (found.min() >= -1, found.max() <= 1) == (True, True)
        assert np.abs(found.numpy() - expected).max() < 1e-6


def test_the_optimizer_has_momentum_and_no_weight_decay_and_follows_the_schedule() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = hyperrule.optimizer([weight])
    scheduler = hyperrule.scheduler(optimizer, schedule(100))
    (group,) = optimizer.param_groups
    assert (group["momentum"], group["weight_decay"], group["nesterov"], group["dampening"]) == (0.9, 0.0, False, 0)
    rates = []
    for _ in range(500):
        rates.append(group["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([learning_rate(step, 100) for step in range(500)], rel=1e-14)
    assert group["lr"] == 0, "the training is over"


@pytest.mark.parametrize("name", [n if "schedule" in n else pytest.param(n, marks=pytest.mark.long) for n in RECORDED])
def test_a_plain_loop_takes_googles_training_steps(name: str) -> None:
    recording = TrainingRecording.read(FOLDER / f"{name}.safetensors")
    about, settings = recording.about, settings_of(recording.about)
    model, data = network(recording).train(), RecordedImages(recording.about)
    mixup = RecordedMixup(settings.mixup, settings.split)
    optimizer = hyperrule.optimizer(model.parameters(), about["base_lr"])
    scheduler = hyperrule.scheduler(optimizer, settings.schedule)
    losses = []
    for step in range(about["steps"]):
        total = 0.0
        for number in range(settings.split):
            start = (step * settings.split + number) * settings.micro_batch
            items = [data[place] for place in range(start, start + settings.micro_batch)]
            x = torch.stack([item["pixel_values"] for item in items])
            labels = torch.tensor([item["label"] for item in items])
            ratio = mixup.ratio(step) if about["mixup"] else 1.0
            partners = mixup.partners(step, number, len(x))
            loss = hyperrule.mixed_cross_entropy(
                model(hyperrule.mix(x, ratio, partners)).logits, labels, ratio, partners
            )
            (loss / settings.split).backward()
            total += loss.item() / settings.split
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(total)
    errors = recorded_errors(recording, model, losses)
    assert {key: error for key, error in errors.items() if not error < 1e-9} == {}


def test_importing_the_rule_imports_no_framework() -> None:
    code = "import sys, bit.hyperrule; assert not {'torch', 'torchvision', 'numpy', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_rate_is_lost_in_a_whole_schedule() -> None:
    rates = [learning_rate(step, 1797) for step in range(500)]
    assert math.fsum(rate or 0 for rate in rates) == pytest.approx(
        0.003 * (sum(range(100)) / 100 + 101 + 100 / 10 + 100 / 100 + 99 / 1000)
    )
