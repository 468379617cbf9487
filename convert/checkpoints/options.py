"""The options of a conversion that change values; without them only names and axes change."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from bit.config import BitConfig
from bit.image_processing import PROFILES
from convert.errors import UsageError, did_you_mean
from convert.files.base import shown
from convert.files.sharded import check_size
from convert.layouts.layout import Layout
from convert.network.dtypes import BY_NAME, DType
from convert.network.parameters import Place

HEAD = re.compile(r"keep|drop|new:[1-9][0-9]{0,6}")
"""The values of the option `head`."""
DTYPE_NAMES = {
    **dict.fromkeys(("half", "fp16", "f16"), "float16"),
    **dict.fromkeys(("single", "fp32", "f32"), "float32"),
    **dict.fromkeys(("double", "fp64", "f64"), "float64"),
    "bf16": "bfloat16",
}
"""Names that are not accepted, and the dtypes to suggest instead."""


@dataclass(frozen=True)
class ConversionOptions:
    """Options of one conversion. Raises `UsageError` for invalid values."""

    head: str = "keep"
    """`keep`, `drop`, or `new:N` for a head of N classes filled with zeros, as BiT starts fine-tuning
    (arXiv 1912.11370, section 3.3)."""
    dtype: str | None = None
    """The dtype to round every weight to; None keeps each as it is."""
    ws_eps: str = "keep"
    """`compensate` scales kernels so that a library with another epsilon computes the same function."""
    profile: str | None = None
    """The preprocessing to state, one of `PROFILES`; None for the layout's default."""
    labels: tuple[str, ...] | None = None
    """The names of the classes, in order; None keeps those of the source."""

    def __post_init__(self) -> None:
        if not HEAD.fullmatch(self.head):
            head = shown(self.head)
            near = did_you_mean(head, ("keep", "drop"))
            raise UsageError(f"invalid head {head!r}: use keep, drop, or new:N for N classes{near}")
        choices: dict[str, Collection[str]] = {"dtype": BY_NAME, "ws_eps": ("keep", "compensate"), "profile": PROFILES}
        for option, names in choices.items():
            value = getattr(self, option)
            if value is not None and value not in names:
                value = shown(value)
                other = DTYPE_NAMES.get(value.lower())
                near = f"; did you mean {other}?" if other in names else did_you_mean(value, names)
                raise UsageError(f"invalid {option} {value!r}: choose from {', '.join(names)}{near}")

    @property
    def new_head(self) -> bool:
        return self.head.startswith("new:")

    def for_layout(self, layout: Layout, max_shard_size: str | None = None) -> ConversionOptions:
        """Return the options with the layout's default profile. Raises `UsageError` for unsupported options."""
        if layout.folded and self.dtype not in (None, "float32"):
            raise UsageError(f"{layout.name} is always written in float32; leave --dtype out")
        if layout.export.profile is None and self.profile is not None:
            raise UsageError(f"{layout.name} does not state how images are prepared; leave --profile out")
        if max_shard_size is not None and not layout.export.shards:
            raise UsageError(f"{layout.name} is read from one file; leave --max-shard-size out")
        if max_shard_size is not None:
            check_size(max_shard_size)
        return replace(self, profile=self.profile or layout.export.profile)

    def config(self, source: BitConfig, layout: Layout) -> BitConfig:
        """Return the configuration of the converted network, for a source with the configuration `source`."""
        if self.head != "keep":
            classes = int(self.head.removeprefix("new:")) if self.new_head else 0
            source = source.replace(num_labels=classes, id2label=None, problem_type=None)
        return source.replace(ws_eps=layout.ws_eps) if self.ws_eps == "compensate" and not layout.folded else source

    def dtype_of(self, source: DType, layout: Layout) -> DType:
        """Return the dtype in which a tensor is written."""
        if layout.folded:
            return BY_NAME["float32"]
        return BY_NAME[self.dtype] if self.dtype is not None else source

    def scale(self, place: Place, source: BitConfig, layout: Layout) -> float:
        """Return the factor by which a parameter is multiplied.

        (s·w − s·m) / √(s²·v + ε) = (w − m) / √(v + ε/s²), so s = √(ε / ε of the source) gives the
        source's function with the layout's ε: 10 from Google's code to timm and transformers, 1/10 from there.
        """
        if self.ws_eps == "keep" or layout.folded or not is_standardized(place):
            return 1.0
        return math.sqrt(layout.ws_eps / source.ws_eps)


def is_standardized(place: Place) -> bool:
    """Return whether the parameter is a kernel under weight standardization: every kernel except the head's."""
    return place.kind.endswith("/kernel") and not place.kind.startswith("head/")


UNCHANGED = ConversionOptions()
