"""transformers (models/bit/modeling_bit.py, `BitForImageClassification`); the head is a Linear."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from bit.config import CONFIG_NAME, BitConfig
from bit.image_processing import PREPROCESSOR_NAME
from convert.layouts.layout import Layout, Row
from convert.published.preprocessing import preprocessor


def _companions(config: BitConfig, dtype: str, name: str, profile: str) -> dict[str, dict[str, Any]]:
    """The configuration, and how images are prepared."""
    return {
        CONFIG_NAME: {
            "architectures": ["BitForImageClassification" if config.num_labels else "BitModel"],
            **config.to_dict(),
            "dtype": dtype,
        },
        PREPROCESSOR_NAME: preprocessor(profile, name),
    }


# What says nothing about the function that a trained network computes.
END_TO_END = {"drop_path_rate", "problem_type", "out_features", "out_indices", "id2label", "num_labels", "ws_eps"}


def stated(config: BitConfig, values: Mapping[str, Any]) -> BitConfig:
    """What a `config.json` of transformers adds to what the arrays imply, see `Layout.stated`."""
    told = BitConfig.from_dict(values)
    for field in dataclasses.fields(BitConfig):
        found, implied = getattr(told, field.name), getattr(config, field.name)
        if field.name not in END_TO_END and found != implied:
            raise ValueError(f"{field.name} is {found!r}, where a BiT of these arrays has {implied!r}")
    if ("id2label" in values or "num_labels" in values) and told.num_labels != config.num_labels:
        raise ValueError(f"it says {told.num_labels} classes, the head has {config.num_labels}")
    return config.replace(id2label=told.id2label, problem_type=told.problem_type, ws_eps=told.ws_eps)


_UNIT = "bit.encoder.stages.{stage}.layers.{layer}."

TRANSFORMERS = Layout(
    name="transformers",
    library="transformers",
    container="safetensors",
    weights_name="model.safetensors",
    shards=True,
    ws_eps=1e-8,
    companions=_companions,
    profile="google",
    stated=stated,
    rows={
        "stem/kernel": Row("bit.embedder.convolution.weight", "oihw"),
        "unit/norm1/scale": Row(_UNIT + "norm1.weight", "c"),
        "unit/norm1/bias": Row(_UNIT + "norm1.bias", "c"),
        "unit/conv1/kernel": Row(_UNIT + "conv1.weight", "oihw"),
        "unit/norm2/scale": Row(_UNIT + "norm2.weight", "c"),
        "unit/norm2/bias": Row(_UNIT + "norm2.bias", "c"),
        "unit/conv2/kernel": Row(_UNIT + "conv2.weight", "oihw"),
        "unit/norm3/scale": Row(_UNIT + "norm3.weight", "c"),
        "unit/norm3/bias": Row(_UNIT + "norm3.bias", "c"),
        "unit/conv3/kernel": Row(_UNIT + "conv3.weight", "oihw"),
        "unit/projection/kernel": Row(_UNIT + "downsample.conv.weight", "oihw"),
        "norm/scale": Row("bit.norm.weight", "c"),
        "norm/bias": Row("bit.norm.bias", "c"),
        "head/kernel": Row("classifier.1.weight", "nc"),
        "head/bias": Row("classifier.1.bias", "n"),
    },
)
