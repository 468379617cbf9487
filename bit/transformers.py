"""The models of `bit.model` as models of transformers, for the libraries that ask for such.

Libraries test `isinstance(model, PreTrainedModel)` and do less for other modules: `Trainer` then writes
no `config.json`, so that nothing can load its checkpoints, and accelerate, peft and the pipelines call
methods and assign to attributes of the configuration (`use_cache`) that a frozen value does not have.
To imitate every one of them would need a change for each release of transformers. So the classes here
*are* both: networks of `bit.model`, with its function, names, checks and loading, and subclasses of
`PreTrainedModel`, which saves and pushes them.

`bit` gives these classes where transformers is installed. Importing them takes seconds and 200 MB more
than `bit.model`, which therefore never imports transformers: the reference processes of `bit verify`
and `bit classify` use its classes, and so may everyone who only wants to run a network.
"""

# transformers has annotations, but not on the special methods that its classes inherit.
# mypy: disable-error-code="no-untyped-call, misc, assignment"

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Self

from transformers import BitConfig as TransformersBitConfig
from transformers import PreTrainedModel
from transformers.backbone_utils import BackboneMixin

from bit import config as light
from bit import model as networks
from bit.files import short
from bit.pretrained import PretrainedModel

FREE_FIELDS = ("num_labels", "id2label", "problem_type", "out_features", "out_indices")
"""Fields that may change after a network was built: another head may take the place of the first."""


class BitConfig(TransformersBitConfig):
    """The configuration of a model: transformers' own class, with `ws_eps` and the properties of `bit.BitConfig`.

    Libraries may assign to it; the network stays as it was built. Raises `ValueError` on construction
    when the fields do not describe a network. transformers' own default for the epsilon is 1e-8, and
    is not in its configuration; a configuration that states none gets Google's 1e-10.
    """

    ws_eps: float = 1e-10
    """Added to each filter's variance in weight standardization."""

    def __post_init__(self, **options: Any) -> None:
        if self.id2label is None and self.label2id is not None:
            self.id2label = {number: label for label, number in self.label2id.items()}
        super().__post_init__(**options)
        if self.label2id is None:
            self.id2label = self.id2label  # gives the numbers
        value = self.value
        self.embedding_size, self.width_factor = value.embedding_size, value.width_factor
        # transformers' own BitBackbone adds this list to another.
        self.hidden_sizes, self.depths = list(value.hidden_sizes), value.depths

    def __setattr__(self, name: str, value: Any) -> None:
        """Take the numbers of classes as text, too, as scripts give them; names give `label2id` as well."""
        if name == "id2label" and value is not None:
            value = {int(number): label for number, label in value.items()}
        if name == "label2id" and value is not None:
            value = {label: int(number) for label, number in value.items()}
        super().__setattr__(name, value)
        if name == "id2label" and value is not None:
            super().__setattr__("label2id", {label: number for number, label in value.items()})

    @classmethod
    def from_value(cls, config: Any) -> BitConfig:
        """Return `config`, or a new configuration with the fields of one of `bit` or of transformers.

        Raises `ValueError` for anything else.
        """
        if isinstance(config, BitConfig):
            return config
        value = light.BitConfig.from_value(config)
        kept = {} if config is value else config.to_dict()
        return cls(**{**kept, **value.to_dict()})

    @classmethod
    def from_architecture(cls, architecture: str, **fields: Any) -> BitConfig:
        """Return the configuration of `R50x1`, `R101x3`, …, see `bit.BitConfig.from_architecture`."""
        return cls.from_value(light.BitConfig.from_architecture(architecture, **fields))

    @property
    def value(self) -> light.BitConfig:
        """The same fields as a value, without those that only libraries know."""
        return light.BitConfig.from_value(self)

    @property
    def architecture(self) -> str:
        """`R50x1` and the like, see `bit.BitConfig.architecture`."""
        return self.value.architecture

    @property
    def smallest_image(self) -> int:
        """Least height and width of an image, in pixels."""
        return self.value.smallest_image

    def bottleneck_size(self, stage: int) -> int:
        """Return the channels between the 1×1 convolutions of a unit."""
        return self.value.bottleneck_size(stage)

    def replace(self, **fields: Any) -> BitConfig:
        """Return a configuration with other values, see `bit.BitConfig.replace`."""
        return type(self).from_value(self.value.replace(**fields))

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the content of `config.json`.

        Without the names that transformers makes up for classes that have none, and without
        `transformers_version`, which marks what transformers' own BiT saved, with its epsilon.
        """
        values = super().to_diff_dict()
        values.pop("transformers_version", None)
        if self.value.id2label is None:
            values = {key: values[key] for key in values if key not in ("id2label", "label2id")}
            values["num_labels"] = self.num_labels
        return values

    def __eq__(self, other: object) -> bool:
        """Tell whether both describe the same network and classes."""
        if isinstance(other, BitConfig | light.BitConfig):
            return self.value == light.BitConfig.from_value(other)
        return bool(super().__eq__(other))

    __hash__ = None


class _PreTrainedModel(PretrainedModel, PreTrainedModel):
    config: BitConfig
    config_class = BitConfig
    base_model_prefix = "bit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["Embeddings", "Unit"]

    def __init__(self, config: Any) -> None:
        """Take a configuration of `bit` or of transformers."""
        PreTrainedModel.__init__(self, BitConfig.from_value(config))
        self.network = self.config.value

    def _init_weights(self, module: Any) -> None:
        """Leave the weights as the constructor drew them, which is as transformers draws them."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:  # type: ignore[override]
        """Load a model, see `bit.model.BitModel.from_pretrained`: with the checks of `bit`, not of transformers."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.name_or_path = model.config.name_or_path = str(pretrained_model_name_or_path)
        return loaded

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, is_main_process: bool = True, **options: Any
    ) -> None:
        """Save as transformers does, whose options are accepted (`max_shard_size`, `state_dict`, `push_to_hub`, …).

        Raises `RuntimeError` after `for_inference`, which replaced the weights, and `ValueError` if the
        configuration was changed so that it no longer describes the network.
        """
        self.check_saveable()
        stated = self.config.value
        for name in (field.name for field in dataclasses.fields(stated) if field.name not in FREE_FIELDS):
            if getattr(stated, name) != (built := getattr(self.network, name)):
                raise ValueError(
                    f"model.config.{name} is {short(getattr(stated, name))}, but the network was built with "
                    f"{short(built)}; build or load a model with the other configuration"
                )
        PreTrainedModel.save_pretrained(self, save_directory, is_main_process, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:  # type: ignore[override]
        """Push to the Hub as transformers does. `bit push` does more: it proves the weights and writes a model card."""
        self.check_saveable()
        return PreTrainedModel.push_to_hub(self, repo_id, **options)


class BitModel(networks.BitModel, _PreTrainedModel):
    """The network without a head, see `bit.model.BitModel`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.post_init()


class BitForImageClassification(networks.BitForImageClassification, _PreTrainedModel):
    """The network with a linear head, see `bit.model.BitForImageClassification`."""

    body = BitModel

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.post_init()


class BitBackbone(networks.BitBackbone, BackboneMixin, _PreTrainedModel):
    """The network's feature maps, see `bit.model.BitBackbone`."""

    body = BitModel
    has_attentions = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.num_features = [self.network.embedding_size, *self.network.hidden_sizes]
        self.post_init()
