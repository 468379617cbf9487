"""The implementations that a checkpoint can be held to, beside the definition."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convert.checkpoints.checkpoint import Checkpoint
    from convert.network.runner import Implementation

SOURCE, CONVERTED = "source", "written"
"""The two sides of a conversion."""


@dataclass(frozen=True)
class Reference:
    """One of them, as data: it is imported when it is loaded, and that in a process of its own."""

    name: str
    """Also of its module in this folder."""
    dtypes: tuple[str, ...]
    needs: tuple[str, ...]
    """The packages that it imports."""
    extra: str
    """Which of the project's extras installs them."""
    sides: tuple[str, ...]
    """Whose weights it runs: of both `each` stands for either, otherwise the first that it can read."""
    each: bool = False
    layouts: tuple[str, ...] = ()
    """Those that it reads by itself; where none is named, it is fed from any whose kernels are weights."""

    @property
    def missing(self) -> str | None:
        """The package for want of which it cannot run."""
        return next((package for package in self.needs if find_spec(package) is None), None)

    def reads(self, checkpoint: Checkpoint) -> bool:
        layout = checkpoint.layout
        if not self.layouts:
            return not layout.folded
        if layout.name not in self.layouts or layout.folded:
            return layout.name in self.layouts
        plain = all(layout.key(place) == key for place, key in checkpoint.keys.items())
        if layout.name == "google":  # whose npz NumPy alone reads, and timm for RGB
            fits = checkpoint.dtype != "bfloat16" and checkpoint.config.num_channels == 3
            return plain and fits and checkpoint.file.container == "npz"
        described = (checkpoint.file.path.parent / "config.json").is_file() and not checkpoint.notes
        return plain and described and checkpoint.file.container == "safetensors"

    def module(self) -> ModuleType:
        """The module with its `load`, imported with its framework."""
        return import_module(f"convert.references.{self.name}")

    def load(self, checkpoint: Checkpoint, dtype: str) -> Implementation:
        """The network of the checkpoint. Raises what its library raises."""
        implementation: Implementation = self.module().load(checkpoint, dtype)
        return implementation


BOTH, F32 = ("float64", "float32"), ("float32",)

REFERENCES = {
    reference.name: reference
    for reference in (
        Reference("pytorch", BOTH, ("torch",), "torch", (CONVERTED,)),
        Reference("flax", BOTH, ("jax", "flax"), "jax", (SOURCE, CONVERTED)),
        Reference("keras", F32, ("tensorflow", "keras"), "tensorflow", (SOURCE, CONVERTED)),
        Reference("timm", BOTH, ("torch", "timm"), "timm", (SOURCE, CONVERTED), True, ("google", "timm")),
        Reference(
            "transformers",
            BOTH,
            ("torch", "transformers"),
            "transformers",
            (SOURCE, CONVERTED),
            True,
            ("transformers",),
        ),
        Reference("onnxruntime", F32, ("onnx", "onnxruntime"), "onnx", (CONVERTED,), False, ("onnx",)),
    )
}
