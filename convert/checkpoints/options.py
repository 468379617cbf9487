"""What a conversion changes beyond names and the order of axes: nothing, unless it is asked for."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from bit.config import BitConfig
from bit.image_processing import PROFILES
from convert.errors import CheckpointError
from convert.layouts.layout import Layout
from convert.network.dtypes import BY_NAME, DType
from convert.network.parameters import Place


@dataclass(frozen=True)
class ConversionOptions:
    """Raises `CheckpointError` for values that mean nothing."""

    head: str = "keep"
    """`keep`, `drop`, or `new:N`: zeros for N classes, as BiT fine-tunes from (arXiv 1912.11370, section 3.3)."""
    dtype: str | None = None
    """What every weight is rounded to; None keeps each as it is."""
    ws_eps: str = "keep"
    """`compensate` scales kernels so that a library with another epsilon computes the same function."""
    profile: str | None = None
    """Whose way to prepare images is written, one of `PROFILES`; None: the layout's own."""

    def __post_init__(self) -> None:
        if self.head not in ("keep", "drop") and not re.fullmatch(r"new:[1-9][0-9]{0,6}", self.head):
            raise CheckpointError(f"the head {self.head!r} is none: keep, drop, or new:N for N classes")
        if self.dtype is not None and self.dtype not in BY_NAME:
            raise CheckpointError(f"the dtype {self.dtype!r} is none of {', '.join(BY_NAME)}")
        if self.ws_eps not in ("keep", "compensate"):
            raise CheckpointError(f"ws_eps is {self.ws_eps!r}: keep or compensate")
        if self.profile is not None and self.profile not in PROFILES:
            raise CheckpointError(f"the profile {self.profile!r} is none of {', '.join(PROFILES)}")

    @property
    def new_head(self) -> bool:
        return self.head.startswith("new:")

    def check(self, layout: Layout) -> None:
        """Raise `CheckpointError` for what the layout cannot be written with."""
        if layout.folded and self.dtype not in (None, "float32"):
            raise CheckpointError(f"{layout.name} is written in float32; leave --dtype out")
        if layout.profile is None and self.profile is not None:
            raise CheckpointError(f"{layout.name} says nothing of how images are prepared; leave --profile out")

    def config(self, source: BitConfig, layout: Layout) -> BitConfig:
        """What a network of `source` is when it was written in `layout` with these changes."""
        config = source
        if self.head != "keep":
            classes = int(self.head.removeprefix("new:")) if self.new_head else 0
            config = config.replace(num_labels=classes, id2label=None, problem_type=None)
        if self.ws_eps == "compensate" and not layout.folded:
            config = config.replace(ws_eps=layout.ws_eps)
        return config

    def profile_of(self, layout: Layout) -> str:
        """Whose way to prepare images is written; nothing for a layout that has no place for it."""
        return self.profile or layout.profile or ""

    def dtype_of(self, source: DType, layout: Layout) -> DType:
        if layout.folded:
            return BY_NAME["float32"]
        return BY_NAME[self.dtype] if self.dtype is not None else source

    def scale(self, place: Place, source: BitConfig, layout: Layout) -> float:
        """By what a parameter is multiplied.

        (s·w − s·m) / √(s²·v + ε) = (w − m) / √(v + ε/s²), so s = √(ε / ε of the source) gives the
        source's function with the layout's ε.
        """
        if self.ws_eps == "keep" or layout.folded or not is_standardized(place):
            return 1.0
        if not source.ws_eps:
            raise CheckpointError("weights for an epsilon of 0 cannot be compensated; leave --ws-eps out")
        return math.sqrt(layout.ws_eps / source.ws_eps)


UNCHANGED = ConversionOptions()


def is_standardized(place: Place) -> bool:
    """Whether the parameter is a kernel under weight standardization: all are but the head's."""
    return place.kind.endswith("/kernel") and not place.kind.startswith("head/")
