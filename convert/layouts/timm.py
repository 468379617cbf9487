"""timm (models/resnetv2.py, `ResNetV2`); the head is a 1×1 convolution."""

from collections.abc import Mapping
from typing import Any

from bit.config import CONFIG_NAME, PUBLISHED, BitConfig
from convert.layouts.layout import Layout, Row
from convert.published.catalogue import evaluation
from convert.published.preprocessing import evaluated_by

# timm's own entries exist for the published architectures alone.
MODELS = {architecture: f"resnetv2_{architecture[1:]}_bit" for architecture in PUBLISHED}

UNKNOWN = "resnetv2"

WS_EPS = "ws_eps"


def _caveat(config: BitConfig) -> str | None:
    if config.architecture in MODELS:
        return None
    return (
        f"timm.create_model knows no {config.architecture} BiT; build timm.models.resnetv2.ResNetV2 with "
        "stem_type='fixed' and these sizes, then load model.safetensors"
    )


def _companions(config: BitConfig, dtype: str, name: str, profile: str) -> dict[str, dict[str, Any]]:
    """`config.json` as timm's `save_config_for_hf` writes it."""
    tag, how = evaluation(name).tag, evaluated_by(profile, name)
    return {
        CONFIG_NAME: {
            "architecture": MODELS.get(config.architecture, UNKNOWN),
            "num_classes": config.num_labels,
            "num_features": config.hidden_sizes[-1],
            "pretrained_cfg": {
                **({"tag": tag} if tag else {}),
                "num_classes": config.num_labels,
                "input_size": [config.num_channels, how.size, how.size],
                "pool_size": [-(-how.size // 32)] * 2,
                "crop_pct": how.crop_pct,
                **({"crop_mode": "squash"} if how.square else {}),
                "interpolation": how.interpolation,
                "mean": [0.5] * config.num_channels,
                "std": [0.5] * config.num_channels,
                "first_conv": "stem.conv",
                "classifier": "head.fc",
                "license": "apache-2.0",
            },
            **({"label_names": [label for _, label in sorted(config.id2label.items())]} if config.id2label else {}),
            **({"model_args": {"in_chans": config.num_channels}} if config.num_channels != 3 else {}),
            # timm itself fixes the epsilon and does not read this.
            WS_EPS: config.ws_eps,
        }
    }


def _stated(config: BitConfig, values: Mapping[str, Any]) -> BitConfig:
    known = MODELS.get(config.architecture, UNKNOWN)
    if values.get("architecture", known) != known:
        raise ValueError(f"architecture is {values['architecture']!r}, where timm calls a BiT of these arrays {known}")
    if values.get("num_classes", config.num_labels) != config.num_labels:
        raise ValueError(f"it says {values['num_classes']} classes, the head has {config.num_labels}")
    epsilon = values.get(WS_EPS, config.ws_eps)
    if type(epsilon) is not float:
        raise ValueError(f"{WS_EPS} is {epsilon!r}, not a number")
    config = config.replace(ws_eps=epsilon)
    labels = values.get("label_names")
    if labels is None:
        return config
    if not isinstance(labels, list) or len(labels) != config.num_labels:
        raise ValueError(f"label_names must be a list of the head's {config.num_labels} classes")
    return config.replace(id2label=dict(enumerate(labels)))


_UNIT = "stages.{stage}.blocks.{layer}."

TIMM = Layout(
    name="timm",
    library="timm",
    container="safetensors",
    weights_name="model.safetensors",
    ws_eps=1e-8,
    caveat=_caveat,
    companions=_companions,
    profile="timm",
    stated=_stated,
    rows={
        "stem/kernel": Row("stem.conv.weight", "oihw"),
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
        "norm/scale": Row("norm.weight", "c"),
        "norm/bias": Row("norm.bias", "c"),
        "head/kernel": Row("head.fc.weight", "nc11"),
        "head/bias": Row("head.fc.bias", "n"),
    },
)
