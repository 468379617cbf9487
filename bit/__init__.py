"""BiT (Big Transfer) models: the interface of transformers, the function of google-research.

Importing this package imports no framework; `bit.flax` and `bit.keras` are separate modules. Where
transformers is installed, the models of PyTorch are also transformers' (`bit.transformers`); those of
`bit.model` are the same networks without it.
"""

from __future__ import annotations

import importlib
import re
from importlib import metadata
from typing import TYPE_CHECKING, Any

from bit.config import BitConfig

if TYPE_CHECKING:
    from bit.image_processing import BitImageProcessor, BitImageProcessorPil
    from bit.model import BitBackbone, BitForImageClassification, BitModel

__version__ = "0.1.0"

__all__ = [
    "BitBackbone",
    "BitConfig",
    "BitForImageClassification",
    "BitImageProcessor",
    "BitImageProcessorPil",
    "BitModel",
]


TRANSFORMERS = (5, 23)
"""The oldest transformers whose models and configurations `bit.transformers` was tried with."""


def __getattr__(name: str) -> Any:
    """Import a class when it is first used: PyTorch (and transformers) for models, NumPy for image processors."""
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    models = "bit.transformers" if _has_transformers() else "bit.model"
    return getattr(importlib.import_module("bit.image_processing" if "Processor" in name else models), name)


def _has_transformers() -> bool:
    """Tell whether transformers is installed and new enough, without importing it."""
    try:
        version = re.match(r"(\d+)\.(\d+)", metadata.version("transformers"))
    except metadata.PackageNotFoundError:
        return False
    return version is not None and (int(version[1]), int(version[2])) >= TRANSFORMERS
