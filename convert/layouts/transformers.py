"""transformers (models/bit/modeling_bit.py, `BitForImageClassification`); the head is a Linear."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from bit.config import CONFIG_NAME, BitConfig
from bit.image_processing import PREPROCESSOR_NAME
from convert.layouts.layout import Export, Layout, Row
from convert.published.preprocessing import preprocessor


def _companions(config: BitConfig, dtype: str, name: str, profile: str) -> dict[str, dict[str, Any]]:
    """Return the configuration and the preprocessing."""
    return {
        CONFIG_NAME: {
            "architectures": ["BitForImageClassification" if config.num_labels else "BitModel"],
            **config.to_dict(),
            "dtype": dtype,
        },
        PREPROCESSOR_NAME: preprocessor(profile, name),
    }


NOT_COMPARED = {"drop_path_rate", "problem_type", "out_features", "out_indices", "id2label", "num_labels", "ws_eps"}
"""Fields that the tensors do not imply; all but `ws_eps` leave the function of a trained network unchanged."""


def stated(config: BitConfig, values: Mapping[str, Any]) -> BitConfig:
    """Return the configuration with what a `config.json` of transformers adds; see `Export.stated`."""
    found = BitConfig.from_dict(values)
    for field in dataclasses.fields(BitConfig):
        value, implied = getattr(found, field.name), getattr(config, field.name)
        if field.name not in NOT_COMPARED and value != implied:
            raise ValueError(f"{field.name} is {value!r}, expected {implied!r} for these tensors")
    if ("id2label" in values or "num_labels" in values) and found.num_labels != config.num_labels:
        raise ValueError(f"{CONFIG_NAME} has {found.num_labels} classes, but the head has {config.num_labels}")
    return config.replace(id2label=found.id2label, problem_type=found.problem_type, ws_eps=found.ws_eps)


VERSION = "transformers_version"
"""Only transformers writes it. Other entries, such as `ws_eps`, it keeps from the `config.json` that it has read."""

_UNIT = "bit.encoder.stages.{stage}.layers.{layer}."

TRANSFORMERS = Layout(
    name="transformers",
    ws_eps=1e-8,
    spellings={r"^(?=(embedder|encoder|norm)\.)": "bit."},  # as `BitModel`, the network without a head, is saved
    rows={
        "stem/kernel": Row("bit.embedder.convolution.weight", "oihw"),
        "unit/norm{n}/scale": Row(_UNIT + "norm{n}.weight", "c"),
        "unit/norm{n}/bias": Row(_UNIT + "norm{n}.bias", "c"),
        "unit/conv{n}/kernel": Row(_UNIT + "conv{n}.weight", "oihw"),
        "unit/projection/kernel": Row(_UNIT + "downsample.conv.weight", "oihw"),
        "norm/scale": Row("bit.norm.weight", "c"),
        "norm/bias": Row("bit.norm.bias", "c"),
        "head/kernel": Row("classifier.1.weight", "nc"),
        "head/bias": Row("classifier.1.bias", "n"),
    },
    export=Export(
        library="transformers",
        container="safetensors",
        loading='from transformers import {model}\nmodel = {model}.from_pretrained("{folder}"{dtype})',
        models=("BitForImageClassification", "BitModel"),
        classify="from transformers import AutoImageProcessor\n"
        'processor = AutoImageProcessor.from_pretrained("{folder}")\n'
        "with torch.inference_mode():\n"
        '    output = model(**processor(image, return_tensors="pt")).{output}',
        labels="model.config.id2label",
        framework="torch",
        install="transformers torch torchvision pillow",
        companions=_companions,
        profile="google",
        stated=stated,
        saved_by_library=lambda values: VERSION in values,
        shards=True,
    ),
)
