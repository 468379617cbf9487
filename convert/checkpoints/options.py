"""The options of a conversion that change values; without them only names and axes change."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from bit.config import BitConfig
from bit.files import short
from bit.image_processing import PROFILES
from convert.checkpoints.labels import fault_of
from convert.errors import UsageError, did_you_mean
from convert.files.base import shown
from convert.files.sharded import check_size
from convert.layouts.layout import Layout
from convert.network.dtypes import BY_NAME, DType
from convert.network.parameters import Place
from convert.published.preprocessing import is_profile

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
    """The preprocessing to state, see `preprocessing.is_profile`; None for the source's own size or the layout's
    default."""
    labels: tuple[str, ...] | None = None
    """The names of the classes, in order; None keeps those of the source."""

    def __post_init__(self) -> None:
        if not HEAD.fullmatch(self.head):
            head = shown(self.head)
            near = did_you_mean(head, ("keep", "drop"))
            raise UsageError(f"invalid head {head!r}: use keep, drop, or new:N for N classes{near}")
        if self.labels is not None and (fault := fault_of(self.labels)) is not None:
            raise UsageError("invalid labels, class {}: {}".format(*fault))
        choices: dict[str, Collection[str]] = {"dtype": BY_NAME, "ws_eps": ("keep", "compensate")}
        if self.profile is not None and not is_profile(self.profile):
            choices["profile"] = (*PROFILES, "google:SIZE")
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

    @property
    def words(self) -> dict[str, str]:
        """The value of each option, for messages."""
        words = {name: getattr(self, name) or "unchanged" for name in ("head", "dtype", "ws_eps", "profile")}
        return words | {"labels": "unchanged" if self.labels is None else f"{short(self.labels[0])} and so on"}

    def for_layout(
        self, layout: Layout, max_shard_size: str | None = None, profile: str | None = None
    ) -> ConversionOptions:
        """Return the options with a profile: that of the source if it has its own, else the layout's default.

        Raises `UsageError` for unsupported options.
        """
        if layout.folded and self.dtype not in (None, "float32"):
            raise UsageError(f"{layout.name} is always written in float32; leave --dtype out")
        if layout.export.profile is None and self.profile is not None:
            raise UsageError(f"{layout.name} does not state how images are prepared; leave --profile out")
        if self.labels is not None and not layout.export.labelled:
            raise UsageError(f"{layout.name} does not store class names; leave --labels out")
        if max_shard_size is not None and not layout.export.shards:
            raise UsageError(f"{layout.name} is read from one file; leave --max-shard-size out")
        if max_shard_size is not None:
            check_size(max_shard_size)
        default = layout.export.profile
        return replace(self, profile=self.profile or (default and profile) or default)

    def classes(self, source: BitConfig) -> int:
        """Return the number of classes of the converted network."""
        if self.head == "keep":
            return source.num_labels
        return int(self.head.removeprefix("new:")) if self.new_head else 0

    def config(self, source: BitConfig, layout: Layout) -> BitConfig:
        """Return the configuration of the converted network, for a source with the configuration `source`."""
        if self.head != "keep":
            source = source.replace(num_labels=self.classes(source), id2label=None, problem_type=None)
        if self.labels is not None:
            if len(self.labels) != source.num_labels:
                raise UsageError(f"{len(self.labels)} labels do not fit a head of {source.num_labels} classes")
            source = source.replace(id2label=dict(enumerate(self.labels)))
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


def check_labels(options: ConversionOptions, source: BitConfig, file: Path | None, replaces: bool) -> None:
    """Check that the labels, read from `file`, fit the head, and replace those of the source only if asked to.

    Raises `UsageError`, which names the file.
    """
    names, classes = options.labels, options.classes(source)
    if names is None or file is None:
        if replaces:
            raise UsageError("--replace-labels needs --labels, the file with the new names")
        return
    if not classes:
        raise UsageError(f"{file} names classes, but the converted network has no head; leave out --labels")
    if len(names) != classes:
        wanted, last = "1 class" if classes == 1 else f"{classes} classes", min(len(names), classes)
        where = f"ends after name {last}"
        if len(names) > classes:
            where = f"has one too many in name {last + 1}, {short(names[last])}"
        raise UsageError(f"{file} holds {len(names)} names, but the head has {wanted}: it {where}")
    kept = source.id2label if options.head == "keep" else None
    if kept is not None and tuple(kept[index] for index in range(classes)) != names and not replaces:
        raise UsageError(
            f"the head has class names already, such as {short(kept[0])}: leave out --labels {file}, or replace them "
            "with --replace-labels"
        )


def is_standardized(place: Place) -> bool:
    """Return whether the parameter is a kernel under weight standardization: every kernel except the head's."""
    return place.kind.endswith("/kernel") and not place.kind.startswith("head/")


UNCHANGED = ConversionOptions()
