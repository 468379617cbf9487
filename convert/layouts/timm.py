"""timm (models/resnetv2.py, `ResNetV2`); the head is a 1×1 convolution."""

from collections.abc import Mapping
from typing import Any

from bit.config import CONFIG_NAME, PUBLISHED, BitConfig
from bit.files import short
from convert.layouts.layout import Export, Layout, Row
from convert.layouts.transformers import VERSION
from convert.published.catalogue import evaluation, timm_architecture
from convert.published.preprocessing import evaluated_by

MODELS = {architecture: timm_architecture(architecture) for architecture in PUBLISHED}
"""timm's model names; timm has none for other architectures."""
OTHER_MODEL = "resnetv2"

WS_EPS = "ws_eps"


def _caveat(config: BitConfig) -> str | None:
    if config.architecture in MODELS:
        return None
    return (
        f"timm.create_model has no model for {config.architecture}; build timm.models.resnetv2.ResNetV2 with "
        "stem_type='fixed' and these sizes, then load model.safetensors"
    )


def _companions(config: BitConfig, dtype: str, name: str, profile: str) -> dict[str, dict[str, Any]]:
    """Return `config.json` as timm's `save_config_for_hf` writes it."""
    tag, how = evaluation(name).tag, evaluated_by(profile, name)
    return {
        CONFIG_NAME: {
            "architecture": MODELS.get(config.architecture, OTHER_MODEL),
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
            # For this project: timm does not read problem_type, and has a fixed epsilon.
            **({"problem_type": config.problem_type} if config.problem_type else {}),
            WS_EPS: config.ws_eps,
        }
    }


def _stated(config: BitConfig, values: Mapping[str, Any]) -> BitConfig:
    # Earlier versions of timm say `resnetv2_50x1_bitm`; for other sizes than the published ones any entry is the base.
    known, name = MODELS.get(config.architecture, OTHER_MODEL), values.get("architecture")
    if "architecture" in values and not str(name).startswith(known):
        raise ValueError(f"architecture is {short(values['architecture'])}, expected {known} for these tensors")
    if values.get("num_classes", config.num_labels) != config.num_labels:
        raise ValueError(f"num_classes is {short(values['num_classes'])}, but the head has {config.num_labels} classes")
    stated = {"ws_eps": values.get(WS_EPS, config.ws_eps), "problem_type": values.get("problem_type")}
    if (labels := values.get("label_names")) is not None:
        if not isinstance(labels, list) or len(labels) != config.num_labels:
            raise ValueError(f"label_names must be a list of the head's {config.num_labels} classes")
        stated["id2label"] = dict(enumerate(labels))
    return config.replace(**stated)


_UNIT = "stages.{stage}.blocks.{layer}."

TIMM = Layout(
    name="timm",
    ws_eps=1e-8,
    rows={
        "stem/kernel": Row("stem.conv.weight", "oihw"),
        "unit/norm{n}/scale": Row(_UNIT + "norm{n}.weight", "c"),
        "unit/norm{n}/bias": Row(_UNIT + "norm{n}.bias", "c"),
        "unit/conv{n}/kernel": Row(_UNIT + "conv{n}.weight", "oihw"),
        "unit/projection/kernel": Row(_UNIT + "downsample.conv.weight", "oihw"),
        "norm/scale": Row("norm.weight", "c"),
        "norm/bias": Row("norm.bias", "c"),
        "head/kernel": Row("head.fc.weight", "nc11"),
        "head/bias": Row("head.fc.bias", "n"),
    },
    export=Export(
        library="timm",
        container="safetensors",
        loading='import timm\nmodel = timm.create_model("local-dir:{folder}", pretrained=True)',
        classify="settings = timm.data.resolve_model_data_config(model)\n"
        "transform = timm.data.create_transform(**settings, is_training=False)\n"
        "with torch.inference_mode():\n"
        "    output = model.eval()(transform(image)[None])",
        labels='model.pretrained_cfg.get("label_names")',
        framework="torch",
        install="timm pillow",
        caveat=_caveat,
        companions=_companions,
        profile="timm",
        stated=_stated,
        saved_by_library=lambda values: VERSION in values or (bool(values) and WS_EPS not in values),
    ),
)
