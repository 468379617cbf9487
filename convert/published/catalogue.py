"""The checkpoints that google-research published (big_transfer, README and `models.py`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from bit.config import PUBLISHED
from bit.image_processing import PROFILES
from convert.errors import CheckpointError, did_you_mean

BUCKET = "https://storage.googleapis.com/bit_models"

ILSVRC, IMAGENET_21K, CIFAR_10, VTAB = "ILSVRC-2012", "ImageNet-21k", "CIFAR-10", "VTAB-1k"

VTAB_CLASSES = {
    "caltech101": 102,
    "diabetic_retinopathy": 5,
    "dtd": 47,
    "oxford_flowers102": 102,
    "oxford_iiit_pet": 37,
    "resisc45": 45,
    "sun397": 397,
    "cifar100": 100,
    "eurosat": 10,
    "patch_camelyon": 2,
    "smallnorb-elevation": 9,
    "svhn": 10,
    "dsprites-orientation": 16,
    "smallnorb-azimuth": 18,
    "clevr-distance": 6,
    "clevr-count": 8,
    "dmlab": 6,
    "kitti-distance": 4,
    "dsprites-xpos": 16,
}
"""Number of classes of each VTAB-1k task that models were fine-tuned on, in three runs each
(google-research/task_adaptation, `data/` and `scripts/run_all_tasks.sh`)."""

SMALL = (CIFAR_10, "cifar100", "svhn", "eurosat", "dsprites-orientation", "dsprites-xpos")
"""Tasks with images of fewer than 96×96 pixels: 32×32 or 64×64 (TensorFlow Datasets)."""

TOP_1 = {"R50x1": 80.39, "R50x3": 83.98, "R101x1": 82.33, "R101x3": 84.43, "R152x2": 84.47, "R152x4": 84.94}
"""Top-1 accuracy in percent of BiT-M fine-tuned on ILSVRC-2012 (timm, `results-imagenet.csv`)."""

DEFECTS = {
    "BiT-S-R152x2": ("named in big_transfer's code; not confirmed that it can be downloaded",),
    "BiT-S-R50x3.h5": ("holds another network: the stem has 64 channels, not 192 (big_transfer, issue 47)",),
    "BiT-S-R101x1.h5": ("holds another network: the stem has 256 channels, not 64 (big_transfer, issue 47)",),
}

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
    labels: str | None
    """The set in `labels.LABEL_SETS` that names the classes; None if there is none."""
    evaluation: Evaluation = Evaluation()
    """As in timm (`resnetv2.py`) where timm has these weights, else at Google's resolution for the task."""
    accuracies: tuple[Accuracy, ...] = ()
    defects: tuple[str, ...] = ()
    """Known defects of the file."""
    citation: str = BIT
    """BibTeX."""
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

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "url": self.url, "problem_type": self.problem_type}


def _by_timm(value: float, resolution: int) -> Accuracy:
    return Accuracy(value, ILSVRC, resolution, "timm, `results-imagenet.csv`")


def _by_paper(value: float, resolution: int) -> Accuracy:
    return Accuracy(value, ILSVRC, resolution, "arXiv 2106.05237")


DISTILLED = (
    (
        "R50x1_224",
        (ILSVRC,),
        Evaluation(224, 0.875, "bicubic", "goog_distilled_in1k"),
        (_by_paper(82.8, 224), _by_timm(82.82, 224)),
    ),
    ("R50x1_160", (ILSVRC,), Evaluation(160, 0.875, "bicubic"), (_by_paper(80.5, 160),)),
    (
        "R152x2_T_224",
        (IMAGENET_21K, ILSVRC),
        Evaluation(224, 0.875, "bicubic", "goog_teacher_in21k_ft_in1k"),
        (_by_timm(82.92, 224),),
    ),
    (
        "R152x2_T_384",
        (IMAGENET_21K, ILSVRC),
        Evaluation(384, 1.0, "bicubic", "goog_teacher_in21k_ft_in1k_384"),
        (_by_timm(83.86, 384),),
    ),
)
"""Name, data, evaluation and accuracies of two students and their teachers."""


@cache
def published() -> dict[str, Published]:
    """Return every published checkpoint by name: `.npz` files without the ending, `.h5` files with it."""
    return {item.name: item for item in (*_pretrained(), *_fine_tuned(), *_vtab(), *_distilled())}


def find(name: str) -> Published | None:
    """Return the published checkpoint with that name, or with that name in timm."""
    items = published()
    return items.get(name) or next((item for item in items.values() if item.timm_name == name), None)


def select(
    name: str | None = None,
    architecture: str | None = None,
    data: str | None = None,
    task: str | None = None,
    classes: int | None = None,
) -> list[Published]:
    """Return the checkpoints that match every given filter, regardless of case.

    `name` is a part of the name, or a pattern for all of it if it contains `*`, `?` or `[…]`; the other
    filters ignore punctuation. Raises `CheckpointError` with suggestions if nothing matches.
    """
    chosen = list(published().values())
    filters = {"name": name, "architecture": architecture, "data": data, "task": task, "classes": classes}
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
                address, defects = name if ending else f"{name}.npz", DEFECTS.get(name, ())
                yield Published(name, address, architecture, (data,), data, classes, labels, how, defects=defects)


def _fine_tuned() -> Iterator[Published]:
    for architecture in PUBLISHED:
        name, size = f"BiT-M-{architecture}-ILSVRC2012", 480 if architecture == "R152x4" else 448
        how, top_1 = Evaluation(size, 1.0, tag="goog_in21k_ft_in1k"), (_by_timm(TOP_1[architecture], size),)
        data = (IMAGENET_21K, ILSVRC)
        yield Published(name, f"{name}.npz", architecture, data, ILSVRC, 1000, "ilsvrc2012", how, top_1)
    name, data = "BiT-M-R50x1-CIFAR10", (IMAGENET_21K, CIFAR_10)
    top_1 = (Accuracy(97.64, CIFAR_10, 128, "big_transfer, `colabs/big_transfer_pytorch.ipynb`"),)
    yield Published(name, f"{name}.npz", "R50x1", data, CIFAR_10, 10, None, Evaluation(128, 1.0), top_1)


def _vtab() -> Iterator[Published]:
    for architecture in ("R50x1", "R101x1", "R50x3", "R101x3", "R152x4"):
        for run in range(3):
            for task, classes in VTAB_CLASSES.items():
                name, how = f"BiT-M-{architecture}-run{run}-{task}", Evaluation(google_size(task), 1.0)
                yield Published(name, f"vtab/{name}.npz", architecture, (IMAGENET_21K, VTAB), task, classes, None, how)


def _distilled() -> Iterator[Published]:
    for name, data, how, top_1 in DISTILLED:
        place = (f"distill/{name}.npz", name.split("_")[0])
        yield Published(name, *place, data, ILSVRC, 1000, "ilsvrc2012", how, top_1, citation=DISTILLATION)
