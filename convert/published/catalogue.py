"""The checkpoints that google-research published, as data (big_transfer, README and `models.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from bit.config import PUBLISHED
from bit.image_processing import PROFILES

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
"""The tasks of VTAB-1k that models were fine-tuned on, three runs each, and their classes (google-research/
task_adaptation, `data/` and `scripts/run_all_tasks.sh`)."""

SMALL = (CIFAR_10, "cifar100", "svhn", "eurosat", "dsprites-orientation", "dsprites-xpos")
"""Tasks whose images have fewer than 96×96 pixels: 32×32 or 64×64 (TensorFlow Datasets)."""

TOP_1 = {"R50x1": 80.39, "R50x3": 83.98, "R101x1": 82.33, "R101x3": 84.43, "R152x2": 84.47, "R152x4": 84.94}
"""Of BiT-M fine-tuned on ILSVRC-2012, in percent (timm, `results-imagenet.csv`)."""

DEFECTS = {
    "BiT-S-R152x2": ("big_transfer names it in its code; nobody confirmed that it can be downloaded",),
    "BiT-S-R50x3.h5": ("holds another network: its stem has 64 channels, not 192 (big_transfer, issue 47)",),
    "BiT-S-R101x1.h5": ("holds another network: its stem has 256 channels, not 64 (big_transfer, issue 47)",),
}

BIT = """\
@inproceedings{kolesnikov2020big,
  title = {Big Transfer (BiT): General Visual Representation Learning},
  author = {Kolesnikov, Alexander and Beyer, Lucas and Zhai, Xiaohua and Puigcerver, Joan and Yung, Jessica and
            Gelly, Sylvain and Houlsby, Neil},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year = {2020},
  eprint = {1912.11370},
  archivePrefix = {arXiv}
}"""

DISTILLATION = """\
@inproceedings{beyer2022knowledge,
  title = {Knowledge distillation: A good teacher is patient and consistent},
  author = {Beyer, Lucas and Zhai, Xiaohua and Royer, Am{\\'e}lie and Markeeva, Larisa and Anil, Rohan and
            Kolesnikov, Alexander},
  booktitle = {Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2022},
  eprint = {2106.05237},
  archivePrefix = {arXiv}
}"""


@dataclass(frozen=True)
class Evaluation:
    """What images are made into: resized to `size / crop_pct`, then cropped to a square of `size` pixels."""

    size: int = 224
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    tag: str | None = None
    """What timm calls these weights, behind the name of the architecture and a point."""
    square: bool = False
    """Whether both edges are resized, and not the short one alone."""


@dataclass(frozen=True)
class Accuracy:
    value: float
    """In percent."""
    dataset: str
    resolution: int
    """Of the square that the network sees, in pixels."""
    source: str
    metric: str = "top-1"


@dataclass(frozen=True)
class Published:
    name: str
    address: str
    """Below the bucket."""
    architecture: str
    data: tuple[str, ...]
    """What it was trained on, in that order."""
    task: str
    """What its head tells apart."""
    classes: int
    labels: str | None
    """The set in `labels` that names the classes, if one does."""
    evaluation: Evaluation = Evaluation()
    """timm's (`resnetv2.py`) where timm has these weights, else of the resolution that Google has for the task."""
    accuracies: tuple[Accuracy, ...] = ()
    defects: tuple[str, ...] = ()
    """What is known to be wrong with the file."""
    citation: str = BIT
    """BibTeX."""
    license: str = "apache-2.0"

    @property
    def url(self) -> str:
        return f"{BUCKET}/{self.address}"

    @property
    def problem_type(self) -> str | None:
        """Which loss trained it: a sigmoid for each class of ImageNet-21k (big_transfer, issue 26), else a softmax."""
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
"""Two students and their teachers."""


@cache
def published() -> dict[str, Published]:
    """Every published checkpoint by its name: that of the `.npz` file, and of an `.h5` file with its ending."""
    return {item.name: item for item in (*_pretrained(), *_fine_tuned(), *_vtab(), *_distilled())}


def evaluation(name: str) -> Evaluation:
    """How the checkpoint of that name is evaluated; timm's default for those that nobody published."""
    found = published().get(name)
    return found.evaluation if found is not None else Evaluation()


def google_size(task: str | None = None) -> int:
    """The edge in pixels of the square that Google's rule has for the images of a task."""
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
        yield Published(
            name,
            f"distill/{name}.npz",
            name.split("_")[0],
            data,
            ILSVRC,
            1000,
            "ilsvrc2012",
            how,
            top_1,
            citation=DISTILLATION,
        )
