"""The checkpoints that google-research published (big_transfer, README and `models.py`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from bit.config import PUBLISHED
from bit.image_processing import PROFILES
from convert.errors import CheckpointError, did_you_mean

BUCKET = "https://storage.googleapis.com/bit_models"

TOP_1_SOURCE = "timm, `results-imagenet.csv`"

ILSVRC, IMAGENET_21K, CIFAR_10, VTAB = "ILSVRC-2012", "ImageNet-21k", "CIFAR-10", "VTAB-1k"

TRANSFORMERS_REPOSITORY = "google/bit-50"
"""The one BiT that Google published in the layout of transformers: R50x1 with the classes of ILSVRC-2012."""

SMALL = (CIFAR_10, "cifar100", "svhn", "eurosat", "dsprites-orientation", "dsprites-xpos")
"""Tasks with images of fewer than 96×96 pixels: 32×32 or 64×64 (TensorFlow Datasets)."""

BIT, DISTILLATION = (
    f"@{entry.strip()}" for entry in Path(__file__).with_name("citations.bib").read_text("utf-8").split("@")[1:]
)
"""The BibTeX entries to cite."""


@dataclass(frozen=True)
class Evaluation:
    """Preparation of images for evaluation: resize to `size / crop_pct`, then crop a square of `size` pixels."""

    size: int = 224
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    tag: str | None = None
    """timm's tag of these weights: the part of the name after the architecture and a dot."""
    square: bool = False
    """True if both edges are resized to `size`, and not only the shorter one."""


@dataclass(frozen=True)
class Accuracy:
    """A published accuracy."""

    value: float
    """In percent."""
    dataset: str
    resolution: int
    """Edge of the network's square input, in pixels."""
    source: str
    metric: str = "top-1"


@dataclass(frozen=True)
class Published:
    """A published checkpoint."""

    name: str
    address: str
    """Path in the bucket."""
    architecture: str
    data: tuple[str, ...]
    """The data sets of the training, in order."""
    task: str
    """The data set of the head's classes."""
    classes: int
    labels: str | None = None
    """The set in `labels.LABEL_SETS` that names the classes; None if there is none."""
    evaluation: Evaluation = Evaluation()
    """As in timm (`resnetv2.py`) where timm has these weights, else at Google's resolution for the task."""
    accuracies: tuple[Accuracy, ...] = ()
    defects: tuple[str, ...] = ()
    """Known defects of the file."""
    license: str = "apache-2.0"

    @property
    def url(self) -> str:
        return f"{BUCKET}/{self.address}"

    @property
    def timm_name(self) -> str | None:
        """timm's name of the same weights; None if timm has none. The `.h5` files are not known to be equal."""
        tag = self.evaluation.tag
        return f"{timm_architecture(self.architecture)}.{tag}" if tag and not self.name.endswith(".h5") else None

    @property
    def problem_type(self) -> str | None:
        """The loss of the training: a sigmoid for each class of ImageNet-21k (big_transfer, issue 26), else None."""
        return "multi_label_classification" if self.task == IMAGENET_21K else None

    @property
    def citation(self) -> str:
        """BibTeX of the paper."""
        return DISTILLATION if self.address.startswith("distill/") else BIT

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "url": self.url, "problem_type": self.problem_type, "citation": self.citation}


@dataclass(frozen=True)
class Facts:
    """The content of `catalogue.toml`: what follows from no rule."""

    vtab_classes: dict[str, int]
    """Number of classes of each VTAB-1k task that models were fine-tuned on, in three runs each."""
    top_1: dict[str, float]
    """Top-1 accuracy in percent of BiT-M fine-tuned on ILSVRC-2012, by architecture."""
    defects: dict[str, tuple[str, ...]]
    """Known defects by the name of a checkpoint."""
    checkpoints: list[Published]


FACTS = msgspec.toml.decode(Path(__file__).with_name("catalogue.toml").read_bytes(), type=Facts)


@cache
def published() -> dict[str, Published]:
    """Return every published checkpoint by name: `.npz` files without the ending, `.h5` files with it."""
    return {item.name: item for item in (*_pretrained(), *_fine_tuned(), *_vtab(), *FACTS.checkpoints)}


def find(name: str) -> Published | None:
    """Return the published checkpoint with that name, or with that name in timm, with or without `timm/`."""
    items, name = published(), name.removeprefix("timm/")
    return items.get(name) or next((item for item in items.values() if item.timm_name == name), None)


@cache
def converted_repositories() -> frozenset[str]:
    """Return the repositories on the Hub that hold Google's checkpoints, converted by the libraries' authors."""
    names = {f"timm/{item.timm_name}" for item in published().values() if item.timm_name is not None}
    return frozenset({TRANSFORMERS_REPOSITORY, *names})


def zoo(
    pattern: str | None = None,
    *,
    architecture: str | None = None,
    data: str | None = None,
    task: str | None = None,
    classes: int | None = None,
) -> list[Published]:
    """List the checkpoints that Google published, in the order of publication.

    `pattern` is a part of the name, or has `*`, `?` or `[…]` and stands for the whole name. The
    others are an architecture (`R50x1`), a training set (`ImageNet-21k`), the task of the head
    (`caltech101`) and the number of classes; case and punctuation do not count. Raises
    `CheckpointError` with suggestions if nothing matches.
    """
    chosen = list(published().values())
    filters = {"name": pattern, "architecture": architecture, "data": data, "task": task, "classes": classes}
    for field, wanted in filters.items():
        if wanted is None:
            continue
        found = [item for item in chosen if any(_matches(field, str(wanted), text) for text in _texts(item, field))]
        if not found:
            known = {text for item in chosen for text in _texts(item, field)}
            among = f"{len(chosen)} published checkpoints" + (" left" if len(chosen) < len(published()) else "")
            raise CheckpointError(f"none of the {among} has the {field} {wanted}{did_you_mean(str(wanted), known)}")
        chosen = found
    return chosen


def _texts(item: Published, field: str) -> tuple[str, ...]:
    value = getattr(item, field)
    return value if isinstance(value, tuple) else (str(value),)


def _matches(field: str, wanted: str, text: str) -> bool:
    wanted, text = wanted.lower(), text.lower()
    if field != "name":
        return re.sub(r"\W", "", wanted) == re.sub(r"\W", "", text)
    return fnmatchcase(text, wanted) if set(wanted) & set("*?[") else wanted in text


def evaluation(name: str) -> Evaluation:
    """Return how the checkpoint of that name is evaluated; timm's default for others."""
    found = published().get(name)
    return found.evaluation if found is not None else Evaluation()


def timm_architecture(architecture: str) -> str:
    """Return timm's name of a published architecture, such as `resnetv2_50x1_bit` for R50x1."""
    return f"resnetv2_{architecture[1:]}_bit"


def google_size(task: str | None = None) -> int:
    """Return the edge in pixels to which Google's rule resizes the images of a task."""
    return int(PROFILES["google"]["small_size" if task in SMALL else "size"]["height"])


def _pretrained() -> Iterator[Published]:
    for letter, data, classes, labels in (("S", ILSVRC, 1000, "ilsvrc2012"), ("M", IMAGENET_21K, 21843, "imagenet21k")):
        for architecture in PUBLISHED:
            how = Evaluation(tag="goog_in21k") if letter == "M" else Evaluation()
            for ending in ("", ".h5") if architecture != "R152x2" else ("",):
                name = f"BiT-{letter}-{architecture}{ending}"
                address, defects = name if ending else f"{name}.npz", FACTS.defects.get(name, ())
                yield Published(name, address, architecture, (data,), data, classes, labels, how, defects=defects)


def _fine_tuned() -> Iterator[Published]:
    for architecture in PUBLISHED:
        name, size = f"BiT-M-{architecture}-ILSVRC2012", 480 if architecture == "R152x4" else 448
        how, top_1 = (
            Evaluation(size, 1.0, tag="goog_in21k_ft_in1k"),
            Accuracy(FACTS.top_1[architecture], ILSVRC, size, TOP_1_SOURCE),
        )
        data = (IMAGENET_21K, ILSVRC)
        yield Published(name, f"{name}.npz", architecture, data, ILSVRC, 1000, "ilsvrc2012", how, (top_1,))


def _vtab() -> Iterator[Published]:
    for architecture in ("R50x1", "R101x1", "R50x3", "R101x3", "R152x4"):
        for run in range(3):
            for task, classes in FACTS.vtab_classes.items():
                name, how = f"BiT-M-{architecture}-run{run}-{task}", Evaluation(google_size(task), 1.0)
                yield Published(name, f"vtab/{name}.npz", architecture, (IMAGENET_21K, VTAB), task, classes, None, how)
