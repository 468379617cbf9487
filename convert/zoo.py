"""The checkpoints that google-research published, as data (big_transfer, README and `models.py`)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bit.config import PUBLISHED

BUCKET = "https://storage.googleapis.com/bit_models"

TASKS = tuple(
    """
    caltech101 diabetic_retinopathy dtd oxford_flowers102 oxford_iiit_pet resisc45 sun397 cifar100 eurosat
    patch_camelyon smallnorb-elevation svhn dsprites-orientation smallnorb-azimuth clevr-distance clevr-count
    dmlab kitti-distance dsprites-xpos
    """.split()
)
"""The tasks of VTAB-1k that models were fine-tuned on, three runs each."""


def published() -> dict[str, str]:
    """The name of every published `.npz` checkpoint, with its address below the bucket."""
    names = [f"BiT-{data}-{architecture}" for data in "SM" for architecture in PUBLISHED]
    names += [f"BiT-M-{architecture}-ILSVRC2012" for architecture in PUBLISHED]
    names.append("BiT-M-R50x1-CIFAR10")
    addresses = {name: f"{name}.npz" for name in names}
    for architecture in ("R50x1", "R101x1", "R50x3", "R101x3", "R152x4"):
        for run in range(3):
            for task in TASKS:
                name = f"BiT-M-{architecture}-run{run}-{task}"
                addresses[name] = f"vtab/{name}.npz"
    for name in ("R50x1_224", "R50x1_160", "R152x2_T_224", "R152x2_T_384"):
        addresses[name] = f"distill/{name}.npz"
    return addresses


@dataclass(frozen=True)
class Evaluation:
    """How timm evaluates a checkpoint: the image's short edge resized to `size / crop_pct`, then cropped."""

    size: int = 224
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    tag: str | None = None
    """What timm calls these weights, behind the name of the architecture and a point."""


EVALUATIONS = {
    r"R50x1_224": Evaluation(224, 0.875, "bicubic", "goog_distilled_in1k"),
    r"R50x1_160": Evaluation(160, 0.875, "bicubic"),
    r"R152x2_T_224": Evaluation(224, 0.875, "bicubic", "goog_teacher_in21k_ft_in1k"),
    r"R152x2_T_384": Evaluation(384, 1.0, "bicubic", "goog_teacher_in21k_ft_in1k_384"),
    r"BiT-M-R152x4-ILSVRC2012": Evaluation(480, 1.0, "bilinear", "goog_in21k_ft_in1k"),
    r"BiT-M-R\d+x\d-ILSVRC2012": Evaluation(448, 1.0, "bilinear", "goog_in21k_ft_in1k"),
    r"BiT-M-R\d+x\d": Evaluation(224, 0.875, "bilinear", "goog_in21k"),
    r"BiT-M-R50x1-CIFAR10": Evaluation(128, 1.0, "bilinear"),
}
"""By a pattern of the name. Sources: timm, `resnetv2.py`; of R50x1_160 the resolution in Beyer et al.
(arXiv 2106.05237); of CIFAR-10 Google's own (big_transfer, `bit_hyperrule.py`)."""


def evaluation(name: str) -> Evaluation:
    """How the checkpoint of that name is evaluated; timm's default for those that nobody published."""
    return next((found for pattern, found in EVALUATIONS.items() if re.fullmatch(pattern, name)), Evaluation())
