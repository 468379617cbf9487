"""The reference implementations that a checkpoint can be compared with, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convert.checkpoints.checkpoint import Checkpoint
    from convert.layouts.layout import Layout

SOURCE, CONVERTED = "source", "converted"
"""The two sides of a conversion."""

FOREIGN_GRAPH = "the graph is not the one that bit convert writes"
"""The reason why ONNX Runtime and Keras do not run a graph: another could run without end."""


@dataclass(frozen=True)
class Library:
    """A library that may be installed."""

    name: str
    """Name of the library, and of the module that runs it, which has `_` for `-`."""
    needs: tuple[str, ...]
    """Packages that it imports."""
    extra: str
    """The extra of this project that installs them."""

    @property
    def missing(self) -> str | None:
        """First required package that is not installed, or None."""
        return next((package for package in self.needs if find_spec(package) is None), None)

    @property
    def install(self) -> str:
        """Command that installs the packages."""
        return f"pip install -e '.[{self.extra}]'"


@dataclass(frozen=True)
class Reference(Library):
    """A reference implementation; loading it imports the framework, in a process of the reference's own.

    It is the module of that name in this folder, which has `_` for `-`.
    """

    dtypes: tuple[str, ...] = ("float64", "float32")
    """Dtypes in which it runs."""
    sides: tuple[str, ...] = (SOURCE, CONVERTED)
    """Sides that it may run, in order of preference."""
    layouts: tuple[str, ...] = ()
    """Layouts that it reads by itself, on every side. Without any it is fed from a checkpoint of every layout
    that is not folded, on the first side only."""

    def reads(self, checkpoint: Checkpoint) -> bool:
        """Return whether it can run this checkpoint."""
        layout = checkpoint.layout
        if not self.layouts:
            return not layout.folded
        if layout.name not in self.layouts or layout.folded:
            return layout.name in self.layouts
        plain = all(layout.key(place) == key for place, key in checkpoint.keys.items())
        if layout.name == "google":  # timm's loader reads the npz with NumPy alone, and only for RGB
            fits = checkpoint.dtype != "bfloat16" and checkpoint.config.num_channels == 3
            return plain and fits and checkpoint.file.container == "npz"
        described = (checkpoint.file.path.parent / "config.json").is_file() and not checkpoint.notes
        return plain and described and checkpoint.file.container == "safetensors"

    def module(self) -> ModuleType:
        """Import the module, and with it the framework; `load(checkpoint, dtype)` there returns the network."""
        return import_module(f"convert.references.{self.name.replace('-', '_')}")


FLOAT32 = ("float32",)

REFERENCES = {
    reference.name: reference
    for reference in (
        Reference("pytorch", ("torch",), "torch", sides=(CONVERTED,)),
        Reference("flax", ("jax", "flax"), "jax"),
        Reference("keras", ("tensorflow", "keras"), "tensorflow", FLOAT32),
        Reference("timm", ("torch", "timm"), "timm", layouts=("google", "timm")),
        Reference("transformers", ("torch", "transformers"), "transformers", layouts=("transformers",)),
        Reference("onnxruntime", ("onnx", "onnxruntime"), "onnx", FLOAT32, (CONVERTED,), ("onnx",)),
        Reference("keras-saved", ("tensorflow", "keras"), "tensorflow", sides=(CONVERTED,), layouts=("keras-saved",)),
    )
}

IMPLEMENTATIONS = {
    "pytorch": "bit (PyTorch)",
    "flax": "bit.flax (JAX)",
    "keras": "bit.keras (TensorFlow)",
    "timm": "timm",
    "transformers": "transformers",
    "onnxruntime": "ONNX Runtime",
    "keras-saved": "Keras (TensorFlow)",
}
"""Names of the implementations in reports, by the name of the reference; each module in this folder states the same."""


def own_reference(layout: Layout) -> str | None:
    """Return the reference that alone runs files of a folded layout; None for other layouts.

    It belongs to every verification: nothing else runs the graph that such a file holds.
    """
    found = (name for name, reference in REFERENCES.items() if layout.folded and layout.name in reference.layouts)
    return next(found, None)
