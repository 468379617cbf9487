"""The settings of a fine-tuning: chosen by BiT-HyperRule, each replaceable."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from bit.hyperrule import BASE_LR, BATCH, Resolution, Schedule, mixup_alpha, resolution, schedule

Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")

MICRO_BATCH_PIXELS = 16 * 224 * 224
"""Most pixels of the images of a micro-batch on a processor, divided by the network's width: R50x1 then takes about
two gigabytes for the activations that the backward pass needs."""
ACCELERATOR_FACTOR = 8
"""As many times more on an accelerator."""
MAX_RATE = 1e30
"""Highest learning rate. It is absurd, but what a rate does shows in the loss, which stops the training."""
MAX_SIZE = 2048
"""Largest edge of a prepared image, in pixels."""
CHECKPOINTS = 10
"""Evaluations, and checkpoints to resume from, in a training."""


@dataclass(frozen=True)
class Settings:
    """One fine-tuning. Raises `ValueError` for settings that do not fit each other."""

    schedule: Schedule
    resolution: Resolution
    batch: int = BATCH
    """Images for each optimizer step, in all processes together."""
    micro_batch: int = BATCH
    """Images that go through the network at once; a divisor of the batch."""
    base_lr: float = BASE_LR
    mixup: float = 0.0
    """Both parameters of the Beta distribution of mixup's λ; 0 for no mixup."""
    flip: bool = True
    """Flip half of the training images horizontally."""
    precision: Precision = "fp32"
    """`bf16` computes convolutions in bfloat16; weights, gradients and updates stay float32."""
    seed: int = 0
    evaluate_every: int = 0
    """Steps between two evaluations; 0 for one at the end."""
    save_every: int = 0
    """Steps between two checkpoints; 0 for one at the end."""

    def __post_init__(self) -> None:
        if self.batch < 1 or self.micro_batch < 1 or self.batch % self.micro_batch:
            raise ValueError(
                f"a batch of {self.batch} images cannot be split into micro-batches of {self.micro_batch}; choose a "
                "divisor of the batch"
            )
        if not 0 < self.base_lr <= MAX_RATE:
            raise ValueError(f"the learning rate is {self.base_lr:g}; expected a positive number such as {BASE_LR}")
        if not 0 <= self.mixup < 1e3:
            raise ValueError(f"mixup is {self.mixup:g}; expected 0 or a positive number such as 0.1")
        precrop, crop = self.resolution
        if not 1 <= crop <= MAX_SIZE:
            raise ValueError(f"the size is {crop} pixels; expected an edge of 1 to {MAX_SIZE}")
        if crop > precrop:
            raise ValueError(f"{crop} pixels cannot be cut from {precrop}; choose a larger size before the crop")
        if self.precision not in PRECISIONS:
            raise ValueError(f"unknown precision {self.precision!r}; choose from {', '.join(PRECISIONS)}")
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"the seed is {self.seed}; expected a number from 0 to {(1 << 32) - 1}")

    @property
    def steps(self) -> int:
        return self.schedule.total

    @property
    def split(self) -> int:
        """Number of micro-batches in a batch, in all processes together."""
        return self.batch // self.micro_batch

    def to_dict(self) -> dict[str, Any]:
        """Return every setting, by name, as JSON holds it."""
        schedule = dataclasses.asdict(self.schedule) | {"boundaries": list(self.schedule.boundaries)}
        return dataclasses.asdict(self) | {"schedule": schedule, "resolution": self.resolution._asdict()}


@dataclass(frozen=True)
class Wishes:
    """Settings that replace those of the rule; None leaves the rule's."""

    steps: int | None = None
    batch: int | None = None
    micro_batch: int | None = None
    base_lr: float | None = None
    size: int | None = None
    """Edge of the square that the network sees, in pixels."""
    mixup: float | None = None
    flip: bool | None = None
    precision: Precision | None = None
    seed: int | None = None
    batch_scaling: bool = False
    """Fit rate and steps to a batch of another size than 512, see `hyperrule.schedule`."""
    evaluate_every: int | None = None
    save_every: int | None = None

    def or_else(self, other: Wishes) -> Wishes:
        """Return these wishes, and those of `other` where there is none."""
        ours = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return dataclasses.replace(other, **{**ours, "batch_scaling": self.batch_scaling or other.batch_scaling})


FROM_SCRATCH_ON_DIGITS = Wishes(size=32, batch=32, flip=False)
"""Settings to train a small network with seeded weights on scikit-learn's digits in about two minutes on two cores.

They are not Google's, whose rule is for pretrained networks and takes minutes a step on a processor: the images are
8×8 pixels, smaller batches bring a random network as far in less time, and digits must not be mirrored.
"""


def choose(
    dataset_size: int,
    sizes: Sequence[tuple[int, int]],
    width: float = 1.0,
    wishes: Wishes | None = None,
    accelerator: bool = False,
) -> Settings:
    """Return the settings of the rule for a number of training images, with `wishes` in the place of some.

    `sizes` are heights and widths of images; the median area decides. `width` is that of the network: 3 for R50x3.
    On an `accelerator` more images go through the network at once. Raises `ValueError` for wishes that do not
    fit each other.
    """
    asked = wishes or Wishes()
    batch = asked.batch or BATCH
    rule = schedule(dataset_size, batch=batch, batch_scaling=asked.batch_scaling)
    rule = rule if asked.steps is None else rule.scaled(asked.steps)
    square = resolution(median_size(sizes)) if asked.size is None else around(asked.size)
    pixels = MICRO_BATCH_PIXELS * (ACCELERATOR_FACTOR if accelerator else 1)
    every = max(1, rule.total // CHECKPOINTS)
    return Settings(
        schedule=rule,
        resolution=square,
        batch=batch,
        micro_batch=asked.micro_batch or largest_divisor(batch, max(1, int(pixels / (square.crop**2 * width)))),
        base_lr=BASE_LR if asked.base_lr is None else asked.base_lr,
        mixup=mixup_alpha(dataset_size) if asked.mixup is None else asked.mixup,
        flip=True if asked.flip is None else asked.flip,
        precision=asked.precision or "fp32",
        seed=asked.seed or 0,
        evaluate_every=every if asked.evaluate_every is None else asked.evaluate_every,
        save_every=every if asked.save_every is None else asked.save_every,
    )


def around(crop: int) -> Resolution:
    """Return the resolution with this crop; the image before it is larger in the proportion of the rule's own sizes.

    160 / 128 up to 128 pixels, 512 / 480 above.
    """
    rule = resolution((1, 1)) if crop <= 128 else resolution((crop, crop))
    return Resolution(round(crop * rule.precrop / rule.crop), crop)


def median_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return a size with the median area. Raises `ValueError` if there is none."""
    if not sizes:
        raise ValueError("there are no images")
    return 1, max(1, round(median(height * width for height, width in sizes)))


def largest_divisor(number: int, most: int) -> int:
    """Return the largest divisor of a number that is at most `most`."""
    return next(divisor for divisor in range(min(number, most), 0, -1) if number % divisor == 0)
