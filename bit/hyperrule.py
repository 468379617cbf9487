"""BiT-HyperRule: how Google fine-tunes BiT, as small pieces for any training loop.

The rule chooses schedule, resolution and mixup by the size of the data set and of its images, and nothing else
(Kolesnikov et al., "Big Transfer", arXiv 1912.11370, section 3.3). Lines are those of google-research/big_transfer at
commit 140de6e. Images are `[N, C, H, W]` with values in [-1, 1]. Importing this module imports no framework.

    rule = hyperrule.schedule(len(images))
    optimizer = hyperrule.optimizer(model.parameters())
    scheduler = hyperrule.scheduler(optimizer, rule)
    mixup = hyperrule.Mixup(hyperrule.mixup_alpha(len(images)), seed=0)
    for step in range(rule.total):
        for number, (x, y) in enumerate(micro_batches(step)):  # of each batch of 512 images
            ratio, partners = mixup.ratio(step), mixup.partners(step, number, len(x))
            logits = model(hyperrule.mix(x, ratio, partners)).logits
            (hyperrule.mixed_cross_entropy(logits, y, ratio, partners) / split).backward()
        optimizer.step(), scheduler.step(), optimizer.zero_grad()
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torchvision.transforms import v2

BASE_LR = 0.003
"""Learning rate after the warm-up, for a batch of 512 images (`bit_hyperrule.py`, line 49)."""
BATCH = 512
"""Images in a batch (`bit_common.py`, line 46)."""
MOMENTUM = 0.9
"""Momentum of SGD (`bit_pytorch/train.py`, line 181)."""
SMALL_AREA = 96 * 96
"""Images of fewer pixels count as small (`bit_hyperrule.py`, line 18)."""
SMALL, LARGE = 20_000, 500_000
"""A data set with fewer images than the first is small, with as many as the second or more it is large
(`bit_hyperrule.py`, lines 41 and 43)."""


class Resolution(NamedTuple):
    """Edges of squares, in pixels."""

    precrop: int
    """Every training image is resized to this."""
    crop: int
    """A random square of this size is cut from it; images are evaluated at this size."""


@dataclass(frozen=True)
class Schedule:
    """The learning rate through a training. Raises `ValueError` unless the steps are in order."""

    warmup: int
    """The step at which the rate is full for the first time."""
    boundaries: tuple[int, ...]
    """The steps after each of which the rate is divided by 10."""
    total: int
    """Number of steps."""
    factor: float = 1.0
    """Multiplies the base rate."""

    def __post_init__(self) -> None:
        steps = (1, self.warmup, *self.boundaries, self.total)
        if list(steps) != sorted(steps):
            raise ValueError(f"steps must be in order and at least 1: {', '.join(map(str, steps[1:]))}")

    def rate(self, step: int, base_lr: float = BASE_LR) -> float | None:
        """Return the learning rate of a step, counted from 0; None after the last one. See `learning_rate`."""
        if step < 0:
            raise ValueError(f"step is {step}; steps are counted from 0")
        if step >= self.total:
            return None
        rate = base_lr * self.factor
        if step < self.warmup:
            return rate * step / self.warmup
        for boundary in self.boundaries:
            if boundary < step:
                rate /= 10
        return rate

    def scaled(self, total: int) -> Schedule:
        """Return this schedule in another number of steps, with warm-up and boundaries at the same parts of it."""
        if total < 1:
            raise ValueError(f"a training has at least 1 step, not {total}")
        warmup, *boundaries = (
            min(max(round(step * total / self.total), 1), total) for step in (self.warmup, *self.boundaries)
        )
        return Schedule(warmup, tuple(boundaries), total, self.factor)


def schedule(dataset_size: int, *, batch: int = BATCH, batch_scaling: bool = False) -> Schedule:
    """Return warm-up, boundaries and number of steps for a number of training images.

    `bit_hyperrule.py`, lines 40 to 46. The steps stay as they are for another `batch` than 512, as in Google's code,
    unless `batch_scaling`: then the rate is multiplied by batch / 512 and every number of steps by 512 / batch.
    Raises `ValueError` for numbers below 1.
    """
    if dataset_size < 1 or batch < 1:
        raise ValueError(f"a data set and a batch have at least 1 image; these have {dataset_size} and {batch}")
    if dataset_size < SMALL:
        rule = Schedule(100, (200, 300, 400), 500)
    elif dataset_size < LARGE:
        rule = Schedule(500, (3000, 6000, 9000), 10_000)
    else:
        rule = Schedule(500, (6000, 12_000, 18_000), 20_000)
    if not batch_scaling:
        return rule
    longer = rule.scaled(max(round(rule.total * BATCH / batch), 1))
    return Schedule(longer.warmup, longer.boundaries, longer.total, batch / BATCH)


def learning_rate(
    step: int, dataset_size: int, base_lr: float = BASE_LR, *, batch: int = BATCH, batch_scaling: bool = False
) -> float | None:
    """Return the learning rate of a step, counted from 0; None from the end of the training on.

    `bit_hyperrule.py`, lines 49 to 63. The rate rises linearly from 0 at step 0. It is divided by 10 after each
    boundary, not at it: step 200 of a small data set has the full rate, step 201 a tenth. See `schedule` for `batch`.
    """
    return schedule(dataset_size, batch=batch, batch_scaling=batch_scaling).rate(step, base_lr)


def resolution(size: tuple[int, int]) -> Resolution:
    """Return the resolution for images of a height and a width: (160, 128) or (512, 480), by the area.

    `bit_hyperrule.py`, lines 15 to 18. Raises `ValueError` for an image without pixels.
    """
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"an image of {height}×{width} has no pixels")
    return Resolution(160, 128) if height * width < SMALL_AREA else Resolution(512, 480)


def mixup_alpha(dataset_size: int) -> float:
    """Return both parameters of the Beta distribution of mixup's λ; 0 for no mixup.

    `bit_hyperrule.py`, lines 36 and 37.
    """
    if dataset_size < 1:
        raise ValueError(f"a data set has at least 1 image, not {dataset_size}")
    return 0.0 if dataset_size < SMALL else 0.1


def resize(size: int) -> v2.Transform:
    """Return the transform to a square, bilinear and antialiased: `bit_pytorch/train.py`, lines 53 and 60.

    As there, a PIL image is resized by Pillow.
    """
    from torchvision.transforms import v2

    return v2.Resize((size, size), v2.InterpolationMode.BILINEAR, antialias=True)


def augment(crop: int, flip: bool = True) -> v2.Transform:
    """Return a random crop and, with `flip`, a random horizontal flip: `bit_pytorch/train.py`, lines 54 and 55."""
    from torchvision.transforms import v2

    return v2.Compose([v2.RandomCrop((crop, crop)), *([v2.RandomHorizontalFlip()] if flip else [])])


def to_range() -> v2.Transform:
    """Return the transform of a PIL image or an 8-bit tensor to float32 in [-1, 1].

    `bit_pytorch/train.py`, lines 56 and 57.
    """
    import torch
    from torchvision.transforms import v2

    half = [0.5, 0.5, 0.5]
    return v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(half, half)])


def train_transform(size: Resolution | tuple[int, int], flip: bool = True) -> v2.Transform:
    """Return the transform of a training image, a PIL image or an 8-bit tensor `[3, H, W]`, to `[3, crop, crop]`.

    `size` is what `resolution` returns. Resized to precrop × precrop, a random square, flipped or not, in [-1, 1]:
    `bit_pytorch/train.py`, lines 52 to 58. Draws from PyTorch's global generator.
    """
    from torchvision.transforms import v2

    precrop, crop = size
    return v2.Compose([resize(precrop), augment(crop, flip), to_range()])


def evaluation_transform(size: Resolution | tuple[int, int] | int) -> v2.Transform:
    """Return the transform of an image for evaluation: the whole of it as crop × crop, in [-1, 1].

    `size` is what `resolution` returns, or the crop alone. `bit_pytorch/train.py`, lines 59 to 63.
    """
    from torchvision.transforms import v2

    return v2.Compose([resize(size if isinstance(size, int) else size[1]), to_range()])


@dataclass(frozen=True)
class Mixup:
    """The random choices of mixup (Zhang et al., arXiv 1710.09412), each a function of the seed and the step.

    One λ an optimizer step, also if gradients are accumulated over several micro-batches, and a permutation for each
    micro-batch: `bit_pytorch/train.py`, lines 147, 209 and 260.
    """

    alpha: float
    """Both parameters of λ's Beta distribution; 0 for no mixup."""
    seed: int = 0

    def ratio(self, step: int) -> float:
        """Return λ, the share of each image in its mixture, in [0, 1]; 1 without mixup."""
        import numpy as np

        return (
            float(np.random.default_rng([self.seed, 1, step]).beta(self.alpha, self.alpha)) if self.alpha > 0 else 1.0
        )

    def partners(self, step: int, micro_batch: int, count: int) -> Tensor:
        """Return the index of the image that each of `count` images of a micro-batch is mixed with, `[count]`."""
        import numpy as np
        import torch

        if self.alpha <= 0:
            return torch.arange(count)
        return torch.from_numpy(np.random.default_rng([self.seed, 2, step, micro_batch]).permutation(count))


def mix(images: Tensor, ratio: float | Tensor, partners: Tensor) -> Tensor:
    """Return λ times each image plus 1 − λ times that of the partner: `bit_pytorch/train.py`, line 149.

    `images` are `[N, C, H, W]`, `partners` indices `[N]`.
    """
    return ratio * images + (1 - ratio) * images[partners]


def mixed_cross_entropy(logits: Tensor, labels: Tensor, ratio: float | Tensor, partners: Tensor) -> Tensor:
    """Return the mean loss of mixed images, a scalar: `bit_pytorch/train.py`, lines 154 and 155.

    `logits` are `[N, classes]`, `labels` class indices `[N]` of the images before they were mixed.
    """
    from torch.nn import functional

    own, other = functional.cross_entropy(logits, labels), functional.cross_entropy(logits, labels[partners])
    return ratio * own + (1 - ratio) * other


def optimizer(parameters: Iterable[Tensor] | Iterable[dict[str, Any]], base_lr: float = BASE_LR) -> torch.optim.SGD:
    """Return SGD with momentum 0.9 and no weight decay: `bit_pytorch/train.py`, lines 180 and 181."""
    import torch

    return torch.optim.SGD(parameters, lr=base_lr, momentum=MOMENTUM, weight_decay=0.0)


def scheduler(optimizer: torch.optim.Optimizer, schedule: Schedule) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the scheduler that gives each optimizer step the rate of `schedule`; call `step()` after each.

    The base rate is that of the optimizer. After the last step of the schedule the rate is 0.
    """
    import torch

    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.rate(step, 1.0) or 0.0)
