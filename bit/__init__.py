"""BiT (Big Transfer) in PyTorch, with the interface of transformers and the function of google-research."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bit.config import BitConfig

if TYPE_CHECKING:
    from bit.image_processing import BitImageProcessor, BitImageProcessorPil
    from bit.model import BitBackbone, BitForImageClassification, BitModel

MODULES = {
    "BitBackbone": "bit.model",
    "BitForImageClassification": "bit.model",
    "BitImageProcessor": "bit.image_processing",
    "BitImageProcessorPil": "bit.image_processing",
    "BitModel": "bit.model",
}

__all__ = [
    "BitBackbone",
    "BitConfig",
    "BitForImageClassification",
    "BitImageProcessor",
    "BitImageProcessorPil",
    "BitModel",
]


def __getattr__(name: str) -> Any:
    """Import PyTorch when a model is asked for and Pillow when an image is, not before."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(MODULES[name]), name)
