"""BiT (Big Transfer) in PyTorch, with the interface of transformers and the function of google-research."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bit.config import BitConfig

if TYPE_CHECKING:
    from bit.model import BitBackbone, BitForImageClassification, BitModel

__all__ = ["BitBackbone", "BitConfig", "BitForImageClassification", "BitModel"]


def __getattr__(name: str) -> Any:
    """Import PyTorch when a model is asked for, not before."""
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module("bit.model"), name)
