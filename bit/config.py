"""The architecture of a BiT network, as a value.

BiT is a pre-activation ResNet with group normalization and weight standardization
(Kolesnikov et al., "Big Transfer", arXiv 1912.11370, section 3 and appendix A).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEPTHS = {14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Units per stage by the number of weighted layers. 50, 101 and 152 are published."""

PUBLISHED = ("R50x1", "R50x3", "R101x1", "R101x3", "R152x2", "R152x4")

CONFIG_NAME = "config.json"


@dataclasses.dataclass(frozen=True)
class BitConfig:
    """Sizes and constants of a BiT network; field names are those of transformers' `BitConfig`.

    Raises `ValueError` on construction when the sizes do not describe a network.
    """

    num_channels: int = 3
    embedding_size: int = 64
    """Channels of the stem: 64 times the width."""
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    """Output channels of each stage."""
    depths: tuple[int, ...] = (3, 4, 6, 3)
    """Units in each stage."""
    num_groups: int = 32
    """Groups of every group normalization (big_transfer, `GroupNorm(32, …)`)."""
    ws_eps: float = 1e-10
    """Added to each filter's variance in weight standardization (big_transfer, `StdConv2d`)."""
    num_labels: int = 1000
    id2label: Mapping[int, str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden_sizes", tuple(self.hidden_sizes))
        object.__setattr__(self, "depths", tuple(self.depths))
        if len(self.depths) != len(self.hidden_sizes) or not self.depths:
            raise ValueError(f"depths {self.depths} and hidden_sizes {self.hidden_sizes} must have one entry per stage")
        if min(*self.depths, *self.hidden_sizes, self.num_channels, self.num_groups, self.num_labels) < 1:
            raise ValueError("depths, sizes, channels, groups and labels must all be at least 1")
        for channels in (self.embedding_size, *self.hidden_sizes, *map(self.bottleneck_size, range(self.num_stages))):
            if channels % self.num_groups:
                raise ValueError(f"{channels} channels cannot be divided into {self.num_groups} groups")
        if self.id2label is not None and sorted(self.id2label) != list(range(self.num_labels)):
            raise ValueError(f"id2label must name each of the classes 0 to {self.num_labels - 1}")

    @property
    def num_stages(self) -> int:
        return len(self.depths)

    def bottleneck_size(self, stage: int) -> int:
        """Channels between the 1×1 convolutions of a unit: a quarter of its output (section 3)."""
        return self.hidden_sizes[stage] // 4

    @property
    def architecture(self) -> str:
        """`R50x1` and the like where the sizes follow that pattern, else the sizes in words."""
        width, remainder = divmod(self.embedding_size, 64)
        layers = 2 + 3 * sum(self.depths)
        doubling = tuple(4 * self.embedding_size << stage for stage in range(self.num_stages))
        if DEPTHS.get(layers) == self.depths and not remainder and self.hidden_sizes == doubling:
            return f"R{layers}x{width}"
        units, sizes = "-".join(map(str, self.depths)), "-".join(map(str, self.hidden_sizes))
        return f"units {units}, widths {self.embedding_size}-{sizes}"

    @classmethod
    def from_architecture(cls, architecture: str, **fields: Any) -> BitConfig:
        """The configuration of `R50x1`, `R101x3`, …; `fields` sets the others, `num_labels` say."""
        match = re.fullmatch(r"R(\d+)x([1-9]\d?)", architecture)
        if match is None or int(match[1]) not in DEPTHS:
            known = ", ".join(f"R{layers}" for layers in DEPTHS)
            raise ValueError(f"{architecture} is no BiT architecture: one of {known}, then x and the width")
        depths, stem = DEPTHS[int(match[1])], 64 * int(match[2])
        sizes = tuple(4 * stem << stage for stage in range(len(depths)))
        return cls(embedding_size=stem, hidden_sizes=sizes, depths=depths, **fields)

    def to_dict(self) -> dict[str, Any]:
        """The content of a `config.json` that transformers reads; the width is always expanded."""
        labels: dict[str, Any] = {"num_labels": self.num_labels}
        if self.id2label is not None:
            labels = {
                "id2label": {str(index): label for index, label in sorted(self.id2label.items())},
                "label2id": {label: index for index, label in sorted(self.id2label.items())},
            }
        return {
            "model_type": "bit",
            "num_channels": self.num_channels,
            "embedding_size": self.embedding_size,
            "hidden_sizes": list(self.hidden_sizes),
            "depths": list(self.depths),
            "layer_type": "preactivation",
            "hidden_act": "relu",
            "global_padding": None,
            "num_groups": self.num_groups,
            "drop_path_rate": 0.0,
            "embedding_dynamic_padding": False,
            "output_stride": 32,
            "width_factor": 1,
            "ws_eps": self.ws_eps,
            **labels,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BitConfig:
        """The inverse of `to_dict`. Raises `ValueError` for a network that is not BiT's own."""
        fixed = {"model_type": "bit", "layer_type": "preactivation", "global_padding": None, "width_factor": 1}
        for field, expected in fixed.items():
            if values.get(field, expected) != expected:
                raise ValueError(f"{field} is {values[field]!r}; the BiT networks have {expected!r}")
        fields = {
            field.name: values[field.name]
            for field in dataclasses.fields(cls)
            if field.name in values and field.name != "id2label"
        }
        if values.get("id2label"):
            fields["id2label"] = {int(index): label for index, label in values["id2label"].items()}
            fields["num_labels"] = len(fields["id2label"])
        return cls(**fields)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> BitConfig:
        """Read `config.json` of `folder`. Raises `FileNotFoundError` or `ValueError`."""
        return cls.from_dict(json.loads((Path(folder) / CONFIG_NAME).read_text("utf-8")))
