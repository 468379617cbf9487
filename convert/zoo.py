"""The checkpoints that google-research published, as data (big_transfer, README and `models.py`)."""

from __future__ import annotations

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
