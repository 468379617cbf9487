"""Describe the architecture of a BiT network as a value.

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
WEIGHTS_NAME = "model.safetensors"

NORM_EPS = 1e-5
"""Added to the variance in every group normalization (big_transfer, `nn.GroupNorm`'s default)."""

ACTIVATIONS = {
    "relu": "ReLU",
    "gelu": "GELU",
    "silu": "SiLU",
    "swish": "SiLU",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "leaky_relu": "LeakyReLU",
    "mish": "Mish",
}
"""Classes of `torch.nn` by the values of `hidden_act`."""

CHOICES: Mapping[str, tuple[Any, ...]] = {
    "layer_type": ("preactivation", "bottleneck"),
    "global_padding": (None, "SAME", "VALID"),
    "hidden_act": tuple(ACTIVATIONS),
    "output_stride": (4, 8, 16, 32),
    "problem_type": (None, "regression", "single_label_classification", "multi_label_classification"),
}
"""Allowed values of the fields that are not numbers."""


@dataclasses.dataclass(frozen=True)
class BitConfig:
    """Sizes and constants of a BiT network; field names are those of transformers' `BitConfig`.

    Raises `ValueError` on construction when the fields do not describe a network.
    """

    num_channels: int = 3
    embedding_size: int = 64
    """Output channels of the stem: 64 times the width."""
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    """Output channels of each stage."""
    depths: tuple[int, ...] = (3, 4, 6, 3)
    """Units in each stage."""
    layer_type: str = "preactivation"
    """`preactivation` for BiT; `bottleneck` normalizes after each convolution, as ViT-hybrid does."""
    hidden_act: str = "relu"
    global_padding: str | None = None
    """None pads by half the kernel on each side, `SAME` as TensorFlow does, `VALID` not at all."""
    num_groups: int = 32
    """Number of groups in every group normalization (big_transfer, `GroupNorm(32, …)`)."""
    drop_path_rate: float = 0.0
    """Probability of skipping the last unit in training, in [0, 1); it rises linearly from 0 at the first unit."""
    embedding_dynamic_padding: bool = False
    """Pad the input of the stem's max-pool further, as TensorFlow's `SAME` does."""
    output_stride: int = 32
    """Ratio of the image's size to that of the last feature map; further stages dilate instead of striding."""
    width_factor: int = 1
    """Factor by which the constructor multiplies `embedding_size` and `hidden_sizes`; 1 in the finished value."""
    ws_eps: float = 1e-10
    """Added to each filter's variance in weight standardization (big_transfer, `StdConv2d`)."""
    num_labels: int = 1000
    """Number of classes; 0 for a network without a head."""
    id2label: Mapping[int, str] | None = None
    """Name of each class, or None if the classes have no names."""
    problem_type: str | None = None
    """Selects the loss; None chooses by the type of the labels, as transformers does."""
    out_features: tuple[str, ...] | None = None
    """Feature maps that a backbone returns, a subset of `stage_names` in their order; None for the last."""
    out_indices: tuple[int, ...] | None = None
    """The same feature maps by index; negative ones count from the end."""

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        factor = self.width_factor
        if type(factor) is not int or factor < 1:
            raise ValueError(f"width_factor is {factor!r}; expected a whole number of at least 1")
        set_field(self, "embedding_size", self.embedding_size * factor)
        set_field(self, "hidden_sizes", tuple(size * factor for size in self.hidden_sizes))
        set_field(self, "width_factor", 1)
        set_field(self, "depths", tuple(self.depths))
        if isinstance(self.global_padding, str):
            set_field(self, "global_padding", self.global_padding.upper())
        self._check_sizes()
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(f"{field} is {getattr(self, field)!r}; expected one of {choices}")
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
        for channels in (self.embedding_size, *self.hidden_sizes, *map(self.bottleneck_size, range(len(self.depths)))):
            if channels % self.num_groups:
                raise ValueError(f"{channels} channels cannot be divided into {self.num_groups} groups")

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the feature maps: `stem`, then `stage1` and so on."""
        return ("stem", *(f"stage{stage + 1}" for stage in range(len(self.depths))))

    @property
    def label2id(self) -> dict[str, int]:
        return {label: index for index, label in (self.id2label or {}).items()}

    def bottleneck_size(self, stage: int) -> int:
        """Return the channels between the 1×1 convolutions of a unit: a quarter of the unit's output (section 3).

        Rounded to a multiple of 8, as in transformers; published networks need no rounding.
        """
        quarter = self.hidden_sizes[stage] // 4
        rounded = max(8, (quarter + 4) // 8 * 8)
        return rounded if rounded >= 0.9 * self.hidden_sizes[stage] / 4 else rounded + 8

    @property
    def architecture(self) -> str:
        """`R50x1` and the like if the sizes follow that pattern, else the sizes in words."""
        width, remainder = divmod(self.embedding_size, 64)
        layers = 2 + 3 * sum(self.depths)
        doubling = tuple(4 * self.embedding_size << stage for stage in range(len(self.depths)))
        if DEPTHS.get(layers) == self.depths and not remainder and self.hidden_sizes == doubling:
            return f"R{layers}x{width}"
        units, sizes = "-".join(map(str, self.depths)), "-".join(map(str, self.hidden_sizes))
        return f"units {units}, widths {self.embedding_size}-{sizes}"

    @classmethod
    def from_architecture(cls, architecture: str, **fields: Any) -> BitConfig:
        """Return the configuration of `R50x1`, `R101x3`, …; `fields` are further fields, such as `num_labels`.

        Raises `ValueError` for an unknown architecture.
        """
        match = re.fullmatch(r"R(\d+)x([1-9]\d?)", architecture)
        if match is None or int(match[1]) not in DEPTHS:
            known = ", ".join(f"R{layers}" for layers in DEPTHS)
            raise ValueError(f"{architecture} is not a BiT architecture; expected one of {known}, then x and the width")
        return cls(depths=DEPTHS[int(match[1])], width_factor=int(match[2]), **fields)

    def replace(self, **fields: Any) -> BitConfig:
        """Return this configuration with other values; values that depend on the old ones are reset.

        Another `num_labels` resets `id2label`; `out_features`, `out_indices` and `depths` reset the
        feature maps that are not given.
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
        """Return the content of a `config.json` that transformers reads, with the width factor applied."""
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
        """Return the configuration that `to_dict` gave. Raises `ValueError` for another model or invalid fields."""
        if values.get("model_type", "bit") != "bit":
            raise ValueError(f"model_type is {values['model_type']!r}; expected 'bit'")
        fields = {field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values}
        try:
            if values.get("id2label"):
                labels = {int(index): label for index, label in values["id2label"].items()}
                # transformers makes these names up if there are none.
                made_up = all(label == f"LABEL_{index}" for index, label in labels.items())
                fields |= {"id2label": None if made_up else labels, "num_labels": len(labels)}
            return cls(**fields)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"a field has the wrong type ({error})") from None

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> BitConfig:
        """Read `config.json` from `folder`. Raises `FileNotFoundError`, or `ValueError` if it is invalid."""
        return cls.from_dict(read_json(Path(folder) / CONFIG_NAME))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` to an existing `folder`."""
        write_json(Path(folder) / CONFIG_NAME, self.to_dict())


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises `ValueError` if it holds anything else."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(values).__name__}")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object to a JSON file, indented by two spaces."""
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def _aligned_features(
    names: Sequence[str], features: Sequence[str] | None, indices: Sequence[int] | None
) -> tuple[str, ...]:
    """Return the selected stage names. Raises `ValueError` unless both selections agree and are in order."""
    if features is None and indices is None:
        return (names[-1],)
    if any(not -len(names) <= index < len(names) for index in indices or ()):
        raise ValueError(f"out_indices are {list(indices or ())}; there are {len(names)} stages, {', '.join(names)}")
    selected = tuple(features or ()) if indices is None else tuple(names[index] for index in indices)
    if features is not None and tuple(features) != selected:
        raise ValueError(f"out_features {list(features)} and out_indices {list(indices or ())} select different stages")
    if list(selected) != [name for name in names if name in selected]:
        raise ValueError(f"out_features are {list(selected)}; expected some of {', '.join(names)}, in that order")
    return selected
