"""The architecture of a BiT network, as a value.

BiT is a pre-activation ResNet with group normalization and weight standardization
(Kolesnikov et al., "Big Transfer", arXiv 1912.11370, section 3 and appendix A).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DEPTHS = {14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Units per stage by the number of weighted layers. 50, 101 and 152 are published."""

PUBLISHED = ("R50x1", "R50x3", "R101x1", "R101x3", "R152x2", "R152x4")

CONFIG_NAME = "config.json"

CHOICES: Mapping[str, tuple[Any, ...]] = {
    "layer_type": ("preactivation", "bottleneck"),
    "global_padding": (None, "SAME", "VALID"),
    "hidden_act": ("relu", "gelu", "silu", "swish", "tanh", "sigmoid", "leaky_relu", "mish"),
    "output_stride": (4, 8, 16, 32),
    "problem_type": (None, "regression", "single_label_classification", "multi_label_classification"),
}
"""What fields that are no numbers may be."""


@dataclasses.dataclass(frozen=True)
class BitConfig:
    """Sizes and constants of a BiT network; field names are those of transformers' `BitConfig`.

    Raises `ValueError` on construction when the fields do not describe a network.
    """

    num_channels: int = 3
    embedding_size: int = 64
    """Channels of the stem: 64 times the width."""
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    """Output channels of each stage."""
    depths: tuple[int, ...] = (3, 4, 6, 3)
    """Units in each stage."""
    layer_type: str = "preactivation"
    """`preactivation`, BiT's own, or `bottleneck`, which normalizes after each convolution (ViT-hybrid)."""
    hidden_act: str = "relu"
    global_padding: str | None = None
    """None: half the kernel on each side; `SAME`: as TensorFlow pads; `VALID`: not at all."""
    num_groups: int = 32
    """Groups of every group normalization (big_transfer, `GroupNorm(32, …)`)."""
    drop_path_rate: float = 0.0
    """Probability of skipping the last unit in training; those before it grow up to that linearly."""
    embedding_dynamic_padding: bool = False
    """Pad the stem's pooling further, as TensorFlow's `SAME` does."""
    output_stride: int = 32
    """By how much the network shrinks an image; stages beyond dilate instead of striding."""
    width_factor: int = 1
    """Multiplies `embedding_size` and `hidden_sizes`, and is 1 afterwards."""
    ws_eps: float = 1e-10
    """Added to each filter's variance in weight standardization (big_transfer, `StdConv2d`)."""
    num_labels: int = 1000
    """Classes of the head; 0: there is none."""
    id2label: Mapping[int, str] | None = None
    problem_type: str | None = None
    """Which loss; None: by the labels, as transformers chooses."""
    out_features: tuple[str, ...] | None = None
    """What a backbone gives out, of `stage_names` and in their order; None: the last."""
    out_indices: tuple[int, ...] | None = None
    """The same by index; negative ones count from the end."""

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        factor = self.width_factor
        if type(factor) is not int or factor < 1:
            raise ValueError(f"width_factor is {factor!r}; a whole number from 1 is wanted")
        set_field(self, "embedding_size", self.embedding_size * factor)
        set_field(self, "hidden_sizes", tuple(size * factor for size in self.hidden_sizes))
        set_field(self, "width_factor", 1)
        set_field(self, "depths", tuple(self.depths))
        if isinstance(self.global_padding, str):
            set_field(self, "global_padding", self.global_padding.upper())
        self._check_sizes()
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(f"{field} is {getattr(self, field)!r}; one of {choices} is wanted")
        if self.id2label is not None and (
            sorted(self.id2label) != list(range(self.num_labels))
            or not all(isinstance(label, str) for label in self.id2label.values())
        ):
            raise ValueError(f"id2label must give each of the classes 0 to {self.num_labels - 1} a name")
        features = _aligned_features(self.stage_names, self.out_features, self.out_indices)
        set_field(self, "out_features", features)
        set_field(self, "out_indices", tuple(self.stage_names.index(name) for name in features))

    def _check_sizes(self) -> None:
        if len(self.depths) != len(self.hidden_sizes) or not self.depths:
            raise ValueError(f"depths {self.depths} and hidden_sizes {self.hidden_sizes} must have one entry per stage")
        sizes = (*self.depths, *self.hidden_sizes, self.num_channels, self.embedding_size, self.num_groups)
        if min(sizes) < 1 or self.num_labels < 0:
            raise ValueError("depths, sizes, channels and groups must all be at least 1, num_labels not negative")
        if any(size % 8 for size in self.hidden_sizes):
            raise ValueError(f"hidden_sizes {self.hidden_sizes} must be multiples of 8")
        if not 0 <= self.drop_path_rate < 1 or self.ws_eps < 0:
            raise ValueError("drop_path_rate must be from 0 to below 1, ws_eps not negative")
        for channels in (self.embedding_size, *self.hidden_sizes, *map(self.bottleneck_size, range(self.num_stages))):
            if channels % self.num_groups:
                raise ValueError(f"{channels} channels cannot be divided into {self.num_groups} groups")

    @property
    def num_stages(self) -> int:
        return len(self.depths)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """What a backbone can give out: `stem`, then `stage1` and so on."""
        return ("stem", *(f"stage{stage + 1}" for stage in range(self.num_stages)))

    @property
    def label2id(self) -> dict[str, int]:
        return {label: index for index, label in (self.id2label or {}).items()}

    def bottleneck_size(self, stage: int) -> int:
        """Channels between the 1×1 convolutions of a unit: a quarter of its output (section 3).

        To a multiple of 8, as transformers rounds, which changes no published network.
        """
        quarter = self.hidden_sizes[stage] // 4
        rounded = max(8, (quarter + 4) // 8 * 8)
        return rounded if rounded >= 0.9 * self.hidden_sizes[stage] / 4 else rounded + 8

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
        return cls(depths=DEPTHS[int(match[1])], width_factor=int(match[2]), **fields)

    def replace(self, **fields: Any) -> BitConfig:
        """This configuration with other values; what they make meaningless is left out.

        Another `num_labels` forgets the labels' names; `out_features` and `out_indices` forget each
        other, and other `depths` both.
        """
        dependent: dict[str, Any] = {}
        if fields.get("num_labels", self.num_labels) != self.num_labels:
            dependent["id2label"] = None
        if fields.get("id2label"):
            dependent["num_labels"] = len(fields["id2label"])
        if fields.keys() & {"out_features", "out_indices", "depths"}:
            dependent |= {"out_features": None, "out_indices": None}
        return dataclasses.replace(self, **(dependent | fields))

    def to_dict(self) -> dict[str, Any]:
        """The content of a `config.json` that transformers reads; the width is always expanded."""
        values = {
            field.name: list(value) if isinstance(value := getattr(self, field.name), tuple) else value
            for field in dataclasses.fields(self)
            if field.name not in ("num_labels", "id2label")
        }
        if self.id2label is None:
            values["num_labels"] = self.num_labels
        else:
            values["id2label"] = {str(index): label for index, label in sorted(self.id2label.items())}
            values["label2id"] = self.label2id
        return {"model_type": "bit", **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BitConfig:
        """The inverse of `to_dict`. Raises `ValueError` for another kind of model or a damaged one."""
        if values.get("model_type", "bit") != "bit":
            raise ValueError(f"model_type is {values['model_type']!r}, not 'bit'")
        fields = {field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values}
        try:
            if values.get("id2label"):
                labels = {int(index): label for index, label in values["id2label"].items()}
                # The names that transformers makes up where there are none.
                made_up = all(label == f"LABEL_{index}" for index, label in labels.items())
                fields |= {"id2label": None if made_up else labels, "num_labels": len(labels)}
            return cls(**fields)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"a field is of the wrong type ({error})") from None

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> BitConfig:
        """Read `config.json` of `folder`. Raises `FileNotFoundError` or `ValueError`."""
        return cls.from_dict(read_json(Path(folder) / CONFIG_NAME))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` to `folder`."""
        (Path(folder) / CONFIG_NAME).write_text(json.dumps(self.to_dict(), indent=2) + "\n", "utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `ValueError` if there is none."""
    values = json.loads(path.read_text("utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object")
    return values


def _aligned_features(
    names: Sequence[str], features: Sequence[str] | None, indices: Sequence[int] | None
) -> tuple[str, ...]:
    """The names that either selects, checked against each other and the order of the stages."""
    if features is None and indices is None:
        return (names[-1],)
    if indices is not None:
        if any(not -len(names) <= index < len(names) for index in indices):
            raise ValueError(f"out_indices are {list(indices)}; there are {len(names)} stages, {', '.join(names)}")
        selected = tuple(names[index] for index in indices)
        if features is not None and tuple(features) != selected:
            raise ValueError(f"out_features {list(features)} and out_indices {list(indices)} do not say the same")
    else:
        selected = tuple(features or ())
    if list(selected) != [name for name in names if name in selected]:
        raise ValueError(f"out_features are {list(selected)}; some of {', '.join(names)} in that order are wanted")
    return selected
