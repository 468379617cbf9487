"""Images for a training, each a function of the seed and of the place in the training, and images for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from bit import hyperrule
from bit.finetuning.settings import Settings

if TYPE_CHECKING:
    from PIL import Image

MEMORY_BYTES = 1 << 30
"""Prepared images are kept in memory if all of them take no more."""
ORDER, AUGMENTATION = 0, 3
"""Numbers that keep the streams of random numbers apart; those of `hyperrule.Mixup` are 1 and 2."""

Item = dict[str, Any]


class Images(Protocol):
    """Images with labels, such as `bit.image_folder.LabelledImages`."""

    @property
    def labels(self) -> Sequence[int]: ...

    def __len__(self) -> int: ...

    def open(self, index: int) -> Image.Image: ...


class Mixing(Protocol):
    """The random choices of mixup, see `hyperrule.Mixup`."""

    @property
    def alpha(self) -> float: ...

    def ratio(self, step: int) -> float: ...

    def partners(self, step: int, micro_batch: int, count: int) -> Tensor: ...


@dataclass(frozen=True)
class Order:
    """The order in which images are used: all of them, shuffled, then all of them again.

    Fewer images than a micro-batch are drawn with replacement instead, as in Google's code (`bit_pytorch/train.py`,
    lines 93 to 105). Unlike there, a micro-batch may hold the last images of one round and the first of the next, so
    that all have the same size.
    """

    count: int
    """Number of images."""
    micro_batch: int
    seed: int

    def index(self, place: int) -> int:
        """Return the image at a place of the training, counted from 0 over all batches."""
        if self.count < self.micro_batch:
            return int(np.random.default_rng([self.seed, ORDER, place]).integers(self.count))
        turn, offset = divmod(place, self.count)
        return int(_shuffled(self.count, self.seed, turn)[offset])


@lru_cache(maxsize=2)
def _shuffled(count: int, seed: int, turn: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, ORDER, turn]).permutation(count)


class Prepared(Dataset[Tensor]):
    """Images as 8-bit tensors `[3, size, size]`, kept in memory if they take at most `MEMORY_BYTES`."""

    def __init__(self, images: Images, size: int) -> None:
        self.images, self._resize = images, hyperrule.resize(size)
        self._kept: list[Tensor | None] | None = [None] * len(images) if self.fits(len(images), size) else None

    @staticmethod
    def fits(count: int, size: int) -> bool:
        """Return whether this many images are kept in memory."""
        return 3 * count * size * size <= MEMORY_BYTES

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        from torchvision.transforms.v2.functional import pil_to_tensor

        if self._kept is not None and (kept := self._kept[index]) is not None:
            return kept
        found: Tensor = pil_to_tensor(self._resize(self.images.open(index)))
        if self._kept is not None:
            self._kept[index] = found
        return found


class TrainingImages(Dataset[Item]):
    """Every image of a training in the order of use: place 0 is the first of step 0.

    An item holds `pixel_values` as 8-bit `[3, crop, crop]`, the `label` and the `place`. Any process may make any
    item, which depends on the seed and the place alone.
    """

    def __init__(self, images: Images, settings: Settings) -> None:
        self._prepared = Prepared(images, settings.resolution.precrop)
        self._augment = hyperrule.augment(settings.resolution.crop, settings.flip)
        self._order = Order(len(images), settings.micro_batch, settings.seed)
        self._labels, self._seed, self._length = images.labels, settings.seed, settings.steps * settings.batch

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: int) -> Item:
        index = self._order.index(place)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_number(self._seed, AUGMENTATION, place))
            pixels = self._augment(self._prepared[index])
        return {"pixel_values": pixels, "label": self._labels[index], "place": place}


class EvaluationImages(Dataset[Item]):
    """Every image once, as `hyperrule.evaluation_transform` prepares it but in 8 bits."""

    def __init__(self, images: Images, settings: Settings) -> None:
        self._prepared, self._labels = Prepared(images, settings.resolution.crop), images.labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Item:
        return {"pixel_values": self._prepared[index], "label": self._labels[index]}


def _number(*words: int) -> int:
    """Return one number for several, the same on every machine."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


@dataclass(frozen=True)
class Collator:
    """Puts items together as a micro-batch: `pixel_values` `[N, 3, H, W]`, `labels` `[N]`.

    Items of a training with mixup come with `ratio`, the λ of the step as a float64 scalar, and `partners` `[N]`.
    """

    mixup: Mixing
    batch: int
    """Images of a step, in all processes together."""
    micro_batch: int

    def __call__(self, items: Sequence[Item]) -> dict[str, Tensor]:
        found = {
            "pixel_values": torch.stack([item["pixel_values"] for item in items]),
            "labels": torch.tensor([item["label"] for item in items]),
        }
        if "place" in items[0] and self.mixup.alpha > 0:
            step, offset = divmod(items[0]["place"], self.batch)
            found["ratio"] = torch.tensor(self.mixup.ratio(step), dtype=torch.float64)
            found["partners"] = self.mixup.partners(step, offset // self.micro_batch, len(items))
        return found


def in_range(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 8-bit pixels in [-1, 1], as `hyperrule.to_range` does; others as they are. `dtype` is the network's.

    On a processor the channels come last in memory, with which a step of R50x1 takes 4 % less of its time.
    """
    if pixels.dtype == torch.uint8:
        pixels = hyperrule.to_range()(pixels)
    layout = torch.channels_last if pixels.device.type == "cpu" and pixels.dim() == 4 else torch.preserve_format
    return pixels.to(dtype, memory_format=layout)
