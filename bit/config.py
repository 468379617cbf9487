"""Describe the architecture of a BiT network as a value.

BiT is a pre-activation ResNet with group normalization and weight standardization
(Kolesnikov et al., "Big Transfer", arXiv 1912.11370, section 3 and appendix A).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bit.files import HUB_OPTIONS, load_json, local_folder, short, write_json

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

MAX_STAGES, MAX_UNITS = 8, 1024
"""Most stages, and most units in all of them; R152x4 has 4 and 50. Each further stage may double the padding."""
MAX_LABEL = 1000
"""Most characters in the name of a class; the longest of ImageNet-21k has 175."""

RANGES: Mapping[str, tuple[int, int]] = {
    "num_channels": (1, 1 << 20),
    "embedding_size": (1, 1 << 20),
    "hidden_sizes": (1, 1 << 20),
    "depths": (1, MAX_UNITS),
    "num_groups": (1, 1 << 20),
    "width_factor": (1, 1 << 20),
    "num_labels": (0, 1 << 20),
    "output_stride": (4, 32),
}
"""Least and largest value of each field of whole numbers, so that a hostile `config.json` costs no time or memory.
The widest published stage has 8,192 channels, the largest head 21,843 classes."""

LISTS = ("hidden_sizes", "depths")
"""The fields with one number for each stage."""

CHOICES: Mapping[str, tuple[Any, ...]] = {
    "layer_type": ("preactivation", "bottleneck"),
    "global_padding": (None, "SAME", "VALID"),
    "hidden_act": tuple(ACTIVATIONS),
    "output_stride": (4, 8, 16, 32),
    "problem_type": (None, "regression", "single_label_classification", "multi_label_classification"),
}
"""Allowed values of the fields that are not numbers."""


class _Labelled:
    id2label: Mapping[int, str] | None

    @property
    def label2id(self) -> dict[str, int]:
        """The number of each named class."""
        return {label: index for index, label in (self.id2label or {}).items()}


@dataclasses.dataclass(frozen=True)
class BitConfig(_Labelled):
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
    num_labels: int = None  # type: ignore[assignment]
    """Number of classes; 0 for a network without a head. By default that of the names in `id2label`, else 1000."""
    id2label: Mapping[int, str] | None = None
    """Name of each class, or None if the classes have no names. The numbers may be text, as in JSON."""
    problem_type: str | None = None
    """Selects the loss; None chooses by the type of the labels, as transformers does."""
    out_features: tuple[str, ...] | None = None
    """Feature maps that a backbone returns, a subset of `stage_names` in their order; None for the last."""
    out_indices: tuple[int, ...] | None = None
    """The same feature maps by index; negative ones count from the end."""
    label2id: dataclasses.InitVar[Mapping[str, int] | None] = None
    """The number of each name in `id2label`, which it may be given beside or instead of; afterwards a property."""

    def __post_init__(self, label2id: Mapping[str, int] | None) -> None:
        set_field = object.__setattr__
        names = _named_classes(self.id2label, label2id)
        set_field(self, "id2label", names or None)
        if self.num_labels is None:
            set_field(self, "num_labels", 1000 if names is None else len(names))
        self._check_values()
        factor = self.width_factor
        set_field(self, "embedding_size", self.embedding_size * factor)
        set_field(self, "hidden_sizes", tuple(size * factor for size in self.hidden_sizes))
        set_field(self, "width_factor", 1)
        set_field(self, "depths", tuple(self.depths))
        self._check_sizes()
        if isinstance(self.global_padding, str):
            set_field(self, "global_padding", self.global_padding.upper())
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(f"{field} is {short(getattr(self, field))}; expected one of {choices}")
        if self.id2label is not None:
            _check_labels(self.id2label, self.num_labels)
        features = _aligned_features(self.stage_names, self.out_features, self.out_indices)
        set_field(self, "out_features", features)
        set_field(self, "out_indices", tuple(self.stage_names.index(name) for name in features))

    def _check_values(self) -> None:
        """Check the type and the range of every field by itself, before anything is computed from it."""
        for field in LISTS:
            value = getattr(self, field)
            if not isinstance(value, list | tuple) or not 1 <= len(value) <= MAX_STAGES:
                raise ValueError(
                    f"{field} is {short(value)}; expected one entry per stage, for 1 to {MAX_STAGES} stages"
                )
        for field, (least, most) in RANGES.items():
            value = getattr(self, field)
            for number in value if field in LISTS else (value,):
                if type(number) is not int or not least <= number <= most:
                    raise ValueError(f"{field} is {short(value)}; expected a whole number from {least} to {most}")
        if type(self.drop_path_rate) not in (int, float) or not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate is {short(self.drop_path_rate)}; expected a number from 0 to below 1")
        if type(self.ws_eps) is not float or not 0 < self.ws_eps < 1:
            raise ValueError(f"ws_eps is {short(self.ws_eps)}; expected a number between 0 and 1, such as 1e-10")
        if type(self.embedding_dynamic_padding) is not bool:
            raise ValueError(
                f"embedding_dynamic_padding is {short(self.embedding_dynamic_padding)}; expected true or false"
            )

    def _check_sizes(self) -> None:
        if len(self.depths) != len(self.hidden_sizes):
            raise ValueError(f"depths {self.depths} and hidden_sizes {self.hidden_sizes} must have one entry per stage")
        if sum(self.depths) > MAX_UNITS:
            raise ValueError(f"depths {self.depths} are {sum(self.depths)} units; at most {MAX_UNITS} are accepted")
        most = RANGES["hidden_sizes"][1]
        for channels in (self.embedding_size, *self.hidden_sizes):
            if channels > most:
                raise ValueError(
                    f"embedding_size and hidden_sizes reach {channels} channels; at most {most} are accepted"
                )
        if any(size % 8 for size in self.hidden_sizes):
            raise ValueError(f"hidden_sizes {self.hidden_sizes} must be multiples of 8")
        for channels in (self.embedding_size, *self.hidden_sizes, *map(self.bottleneck_size, range(len(self.depths)))):
            if channels % self.num_groups:
                raise ValueError(f"{channels} channels cannot be divided into {self.num_groups} groups")

    @property
    def smallest_image(self) -> int:
        """Least height and width of an image, in pixels.

        Every layer has a border, except that with `SAME` the pooling of the stem has none: it needs 3 pixels, half as
        many as the image has.
        """
        return 5 if self.global_padding == "SAME" and not self.embedding_dynamic_padding else 1

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the feature maps: `stem`, then `stage1` and so on."""
        return ("stem", *(f"stage{stage + 1}" for stage in range(len(self.depths))))

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
            raise ValueError(
                f"{short(architecture)} is not a BiT architecture; expected one of {known}, then x and the width"
            )
        return cls(depths=DEPTHS[int(match[1])], width_factor=int(match[2]), **fields)

    def replace(self, **fields: Any) -> BitConfig:
        """Return this configuration with other values; values that depend on the old ones are reset.

        Another `num_labels` resets `id2label`, and other names reset `num_labels`; `out_features`,
        `out_indices` and `depths` reset the feature maps that are not given. Raises `ValueError` for
        fields that do not exist or do not describe a network.
        """
        known = [field.name for field in dataclasses.fields(self)]
        if unknown := fields.keys() - {*known, "label2id"}:
            raise ValueError(f"BitConfig has no field {short(min(unknown))}; expected some of {', '.join(known)}")
        dependent: dict[str, Any] = {"label2id": None}
        if fields.get("num_labels", self.num_labels) != self.num_labels:
            dependent["id2label"] = None
        if fields.get("id2label") is not None or fields.get("label2id") is not None:
            dependent |= {"id2label": None, "num_labels": None}
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
            raise ValueError(f"model_type is {short(values['model_type'])}; expected 'bit'")
        fields = {field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values}
        if fields.get("id2label") is not None:
            labels = _numbered("id2label", fields["id2label"])
            # transformers makes these names up if there are none.
            made_up = all(label == f"LABEL_{index}" for index, label in labels.items())
            fields |= {"id2label": None if made_up else labels, "num_labels": len(labels)}
        return cls(**fields)

    @classmethod
    def from_pretrained(cls, name: str | Path, **fields: Any) -> BitConfig:
        """Read `config.json` of a folder or of a Hub repository, `owner/name`; `fields` replace fields, see `replace`.

        `revision`, `cache_dir`, `token`, `local_files_only`, `force_download` and `subfolder` choose
        among a repository's files, as everywhere. Raises `OSError`, or `ValueError` if it is invalid.
        """
        source = {key: fields.pop(key) for key in HUB_OPTIONS if key in fields}
        config = load_json(local_folder(name, (CONFIG_NAME,), **source) / CONFIG_NAME, cls.from_dict)
        return config.replace(**fields) if fields else config

    @classmethod
    def from_value(cls, config: Any, ws_eps: float = 1e-10) -> BitConfig:
        """Return the value of a configuration of this package or of transformers.

        `ws_eps` is taken if the latter has none: its class has no such field, but keeps that of a
        `config.json`. Not transformers' own 1e-8, because the weights that Google published were trained
        with 1e-10. Raises `ValueError` for anything else.
        """
        if isinstance(config, BitConfig):
            return config
        if not callable(getattr(config, "to_dict", None)):
            raise ValueError(f"config is {short(config)}; expected a BitConfig of bit or of transformers")
        return cls.from_dict({"ws_eps": ws_eps, **config.to_dict()})

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` to an existing `folder`."""
        write_json(Path(folder) / CONFIG_NAME, self.to_dict())


# `label2id` is an argument of the constructor, whose default hides the property.
del BitConfig.label2id


def _numbered(field: str, names: Any) -> dict[int, Any]:
    """Return labels by number; JSON has the numbers as text. Raises `ValueError` for another kind of value."""
    if not isinstance(names, Mapping):
        raise ValueError(f"{field} is {short(names)}; expected an object with a name for each class")
    for index in names:
        if type(index) is not int and not (isinstance(index, str) and re.fullmatch("0|[1-9][0-9]{0,6}", index)):
            raise ValueError(f"{field} names a class {short(index)}; expected a number")
    numbered = {int(index): label for index, label in names.items()}
    if len(numbered) != len(names):
        raise ValueError(f"{field} names a class twice")
    return numbered


def _named_classes(id2label: Any, label2id: Any) -> dict[int, Any] | None:
    """Return the names by number that both mappings give. Raises `ValueError` if they contradict each other."""
    names = None if id2label is None else _numbered("id2label", id2label)
    if label2id is None:
        return names
    if not isinstance(label2id, Mapping):
        raise ValueError(f"label2id is {short(label2id)}; expected an object with the number of each class")
    try:
        swapped = _numbered("label2id", {number: label for label, number in label2id.items()})
    except TypeError:
        raise ValueError(f"label2id is {short(label2id)}; expected the number of each class") from None
    # Classes may share a name, of which label2id then knows one number.
    if names is None:
        return swapped
    if label2id.keys() != set(names.values()) or any(names.get(index) != label for index, label in swapped.items()):
        raise ValueError("id2label and label2id name different classes; give one of them, or both for the same classes")
    return names


def _check_labels(id2label: Any, count: int) -> None:
    """Raise `ValueError` unless each class has a name."""
    if not isinstance(id2label, Mapping) or id2label.keys() != set(range(count)):
        raise ValueError(f"id2label must give each of the classes 0 to {count - 1} a name")
    for index, label in id2label.items():
        if not isinstance(label, str) or len(label) > MAX_LABEL:
            raise ValueError(f"id2label[{index}] is {short(label)}; expected text of at most {MAX_LABEL} characters")


def _aligned_features(
    names: Sequence[str], features: Sequence[str] | None, indices: Sequence[int] | None
) -> tuple[str, ...]:
    """Return the selected stage names. Raises `ValueError` unless both selections agree and are in order."""
    for field, kind, values in (("out_features", str, features), ("out_indices", int, indices)):
        valid = values is None or (isinstance(values, list | tuple) and all(type(value) is kind for value in values))
        if not valid:
            raise ValueError(
                f"{field} is {short(values)}; expected a list of {'names' if kind is str else 'numbers'} of stages"
            )
    if features is None and indices is None:
        return (names[-1],)
    if any(not -len(names) <= index < len(names) for index in indices or ()):
        raise ValueError(
            f"out_indices are {short(list(indices or ()))}; there are {len(names)} stages, {', '.join(names)}"
        )
    selected = tuple(features or ()) if indices is None else tuple(names[index] for index in indices)
    if features is not None and tuple(features) != selected:
        raise ValueError(
            f"out_features {short(list(features))} and out_indices {short(list(indices or ()))} select different stages"
        )
    if list(selected) != [name for name in names if name in selected]:
        raise ValueError(
            f"out_features are {short(list(selected))}; expected some of {', '.join(names)}, in that order"
        )
    return selected
