"""What a training reads is a function of the seed and the place; the rule chooses the settings."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bit import hyperrule
from bit.finetuning.data import Collator, EvaluationImages, Order, TrainingImages, in_range
from bit.finetuning.settings import Settings, Wishes, around, choose
from bit.hyperrule import Mixup, Resolution, Schedule

SETTINGS = Settings(Schedule(1, (), 3), Resolution(10, 8), batch=4, micro_batch=2, mixup=0.1, seed=1)


class Noise:
    """Seven images of noise."""

    labels = (0, 1, 2, 0, 1, 2, 0)

    def __len__(self) -> int:
        return 7

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, (9, 13, 3), dtype=np.uint8))


@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 5))
def test_every_image_is_used_once_in_a_round(count: int, micro_batch: int, seed: int) -> None:
    order = Order(count, micro_batch, seed)
    rounds = [[order.index(turn * count + offset) for offset in range(count)] for turn in range(3)]
    if count >= micro_batch:
        assert all(sorted(found) == list(range(count)) for found in rounds)
    else:
        assert all(0 <= index < count for found in rounds for index in found)
    assert rounds == [[Order(count, micro_batch, seed).index(t * count + i) for i in range(count)] for t in range(3)]


def test_too_few_images_are_drawn_with_replacement() -> None:
    drawn = Counter(Order(3, 8, 0).index(place) for place in range(3000))
    assert all(900 < number < 1100 for number in drawn.values())


def test_a_place_has_the_same_image_in_whatever_order_it_is_asked_for() -> None:
    forwards, backwards = TrainingImages(Noise(), SETTINGS), TrainingImages(Noise(), SETTINGS)
    torch.manual_seed(0)
    one = [forwards[place] for place in range(len(forwards))]
    state = torch.random.get_rng_state()
    other = [backwards[place] for place in reversed(range(len(backwards)))][::-1]
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is left alone"
    assert len(one) == 12
    for first, second in zip(one, other, strict=True):
        assert torch.equal(first.pop("pixel_values"), second.pop("pixel_values"))
        assert first == second
    third = TrainingImages(Noise(), replace(SETTINGS, seed=2))
    assert any(not torch.equal(forwards[place]["pixel_values"], third[place]["pixel_values"]) for place in range(12))


def test_pixels_are_those_of_the_transforms_of_the_rule() -> None:
    item = TrainingImages(Noise(), SETTINGS)[5]
    pixels = in_range(item["pixel_values"][None], torch.float32)[0]
    image = Noise().open(Order(7, 2, 1).index(5))
    whole = hyperrule.to_range()(hyperrule.resize(10)(image))
    squares = [whole[:, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    assert any(torch.equal(pixels, square) or torch.equal(pixels, square.flip(2)) for square in squares)
    evaluated = EvaluationImages(Noise(), SETTINGS)
    expected = hyperrule.evaluation_transform(SETTINGS.resolution)(Noise().open(3))
    assert torch.equal(in_range(evaluated[3]["pixel_values"], torch.float32), expected)
    assert [evaluated[index]["label"] for index in range(len(evaluated))] == list(Noise.labels)


def test_a_step_has_one_ratio_and_each_micro_batch_its_partners() -> None:
    images, collate = TrainingImages(Noise(), SETTINGS), Collator(Mixup(0.1, 1), 4, 2)
    found = [collate([images[place] for place in range(start, start + 2)]) for start in range(0, 12, 2)]
    ratios = [batch["ratio"].item() for batch in found]
    assert ratios[0::2] == ratios[1::2] == [Mixup(0.1, 1).ratio(step) for step in range(3)]
    assert [batch["partners"].tolist() for batch in found] == [
        Mixup(0.1, 1).partners(step, number, 2).tolist() for step in range(3) for number in range(2)
    ]
    assert "ratio" not in Collator(Mixup(0), 4, 2)([images[0], images[1]])


def test_the_rule_chooses_by_the_number_and_the_size_of_the_images() -> None:
    small, large = choose(1000, [(32, 32)] * 3), choose(25_000, [(500, 375), (32, 32), (400, 400)])
    assert (small.steps, small.resolution, small.mixup, small.batch, small.base_lr) == (
        500,
        (160, 128),
        0.0,
        512,
        0.003,
    )
    assert (large.steps, large.resolution, large.mixup) == (10_000, (512, 480), 0.1)
    assert large.batch % large.micro_batch == 0
    assert large.micro_batch < small.micro_batch < 512
    assert choose(25_000, [(500, 375)], 4).micro_batch < large.micro_batch
    assert choose(25_000, [(500, 375)], accelerator=True).micro_batch > large.micro_batch
    assert small.evaluate_every == small.save_every == 50


def test_wishes_replace_the_rule() -> None:
    wishes = Wishes(steps=50, batch=64, micro_batch=16, base_lr=0.1, size=32, mixup=0.2, flip=False, seed=4)
    found = choose(1000, [(500, 500)], wishes=replace(wishes, precision="bf16", evaluate_every=7, save_every=9))
    assert (found.schedule.warmup, found.schedule.boundaries, found.steps) == (10, (20, 30, 40), 50)
    assert (found.batch, found.micro_batch, found.split, found.base_lr) == (64, 16, 4, 0.1)
    assert found.resolution == (40, 32)
    assert (found.mixup, found.flip, found.seed, found.precision) == (0.2, False, 4, "bf16")
    assert (found.evaluate_every, found.save_every) == (7, 9)
    scaled = choose(1000, [(500, 500)], wishes=Wishes(batch=256, batch_scaling=True))
    assert (scaled.steps, scaled.schedule.factor) == (1000, 0.5)
    assert Wishes(batch=8).or_else(Wishes(batch=16, size=32)) == Wishes(batch=8, size=32)
    assert choose(1000, [(64, 64)], wishes=Wishes(base_lr=1e6)).base_lr == 1e6, "the loss shows what comes of it"
    assert around(128) == hyperrule.resolution((32, 32))
    assert around(480) == hyperrule.resolution((480, 480))


@pytest.mark.parametrize(
    "wishes",
    [
        Wishes(batch=10, micro_batch=3),
        Wishes(base_lr=-1.0),
        Wishes(base_lr=float("nan")),
        Wishes(base_lr=float("inf")),
        Wishes(mixup=-0.1),
        Wishes(size=5000),
        Wishes(steps=0),
        Wishes(batch=-4),
        Wishes(precision="fp8"),  # type: ignore[arg-type]
        Wishes(seed=-1),
    ],
)
def test_wishes_that_cannot_be_are_refused_in_one_line(wishes: Wishes) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        choose(1000, [(64, 64)], wishes=wishes)
