"""The libraries that run checkpoints for an evaluation, as a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.references.registry import Library

Pixels = NDArray[np.float32]
"""Prepared images `[N, H, W, C]`."""


@dataclass(frozen=True)
class Runner(Library):
    """A library that runs checkpoints of some layouts, as its users run them.

    It is the module of that name in `runners`, with `_` for `-`, where `load(checkpoint)` returns a `Loaded` network;
    it imports the framework, in a process of its own.
    """

    shown: str
    """Name for people to read."""
    layouts: tuple[str, ...]

    def module(self) -> ModuleType:
        """Import the module, and with it the framework."""
        return import_module(f"convert.evaluation.runners.{self.name.replace('-', '_')}")


@dataclass(frozen=True)
class Loaded:
    """A network as its library loads it."""

    version: str
    """Versions of the libraries that compute."""
    compute: Callable[[Pixels], Any]
    """Returns logits `[N, classes]` of images `[N, H, W, 3]`, float32."""
    ws_eps: float | None
    """Epsilon with which kernels are standardized; None if they are in the file, and no epsilon is stated."""
    prepare: Callable[[Any], Pixels] | None = None
    """The library's own pipeline: returns pixels `[H, W, 3]` of a PIL image. None if it has none."""
    note: str | None = None
    """A remark on how it was loaded."""


RUNNERS = (
    Runner("transformers", ("torch", "transformers"), "transformers", "transformers", ("transformers",)),
    Runner("timm", ("torch", "timm"), "timm", "timm", ("timm",)),
    Runner("flax", ("jax", "flax"), "jax", "bit.flax (JAX)", ("flax",)),
    Runner("keras", ("tensorflow", "keras"), "tensorflow", "bit.keras (TensorFlow)", ("keras",)),
    Runner("keras-saved", ("tensorflow", "keras"), "tensorflow", "Keras (TensorFlow)", ("keras-saved",)),
    Runner("onnxruntime", ("onnx", "onnxruntime"), "onnx", "ONNX Runtime", ("onnx",)),
    # Google's code is not a package, and needs versions of TensorFlow and Python that are no longer made.
    Runner("pytorch", ("torch",), "torch", "bit (PyTorch)", ("google", "google-tf2")),
)


def runner_of(layout: str) -> Runner | None:
    """Return the library that runs checkpoints of a layout; None if there is none."""
    return next((runner for runner in RUNNERS if layout in runner.layouts), None)
