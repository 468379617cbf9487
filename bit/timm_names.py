"""Read the names and the `config.json` of timm (`models/resnetv2.py`), which stores the same arrays as transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bit.config import PUBLISHED, BitConfig
from bit.files import short

NAMES = (
    ("stem.conv.", "bit.embedder.convolution."),
    ("stages.", "bit.encoder.stages."),
    ("norm.", "bit.norm."),
    ("head.fc.", "classifier.1."),
)
"""The start of a name in timm, and of the same array's name in transformers."""
UNIT = re.compile(r"stages\.([0-9]{1,9})\.blocks\.([0-9]{1,9})\.")


def to_transformers(key: str) -> str:
    """Return the name that transformers gives to the array `key` of timm; other names are left as they are."""
    for timm, transformers in NAMES:
        if key.startswith(timm):
            return transformers + key.removeprefix(timm).replace(".blocks.", ".layers.")
    return key


def to_timm(key: str) -> str:
    """Return the name that timm gives to the array `key` of transformers; other names are left as they are."""
    for timm, transformers in NAMES:
        if key.startswith(transformers):
            return timm + key.removeprefix(transformers).replace(".layers.", ".blocks.")
    return key


def timm_to_transformers(
    values: Mapping[str, Any], stored: Mapping[str, Tensor]
) -> tuple[BitConfig, dict[str, Tensor]]:
    """Return the configuration and the state dict under the names of transformers.

    `values` is the content of timm's `config.json`; sizes are read from the shapes of the arrays in
    `stored`. Raises `ValueError` if an array that gives a size is missing or misshapen, or if
    `values` contradict the arrays.
    """
    config = _sizes(stored)
    known = f"resnetv2_{config.architecture[1:]}_bit" if config.architecture in PUBLISHED else "resnetv2"
    for field, implied in (("architecture", known), ("num_classes", config.num_labels)):
        if values.get(field, implied) != implied:
            raise ValueError(f"config.json says {field} {short(values[field])}, but the arrays imply {implied!r}")
    # timm itself does not read ws_eps and problem_type.
    config = config.replace(ws_eps=values.get("ws_eps", config.ws_eps), problem_type=values.get("problem_type"))
    labels = values.get("label_names")
    if labels is not None:
        if not isinstance(labels, list) or len(labels) != config.num_labels:
            raise ValueError(f"label_names in config.json must list the names of the {config.num_labels} classes")
        config = config.replace(id2label=dict(enumerate(labels)))
    state = {to_transformers(key): value for key, value in stored.items()}
    if "head.fc.weight" in stored:  # a 1×1 convolution in timm
        state["classifier.1.weight"] = stored["head.fc.weight"].flatten(1)
    if len(state) != len(stored):
        raise ValueError("the file holds a tensor twice, under timm's name and under that of transformers")
    return config, state


def _sizes(stored: Mapping[str, Tensor]) -> BitConfig:
    """Return the configuration that the shapes of the arrays imply."""
    depths: dict[int, int] = {}
    for match in filter(None, map(UNIT.match, stored)):
        stage, layer = int(match[1]), int(match[2])
        depths[stage] = max(depths.get(stage, 0), layer + 1)
    stages = range(max(depths, default=0) + 1)
    if stages[-1] + sum(depths.values()) > len(stored):
        raise ValueError(
            f"the names count {len(stages)} stages and {sum(depths.values())} units, but there are only "
            f"{len(stored)} arrays"
        )
    needed = ["stem.conv.weight", *(f"stages.{stage}.blocks.0.conv3.weight" for stage in stages)]
    needed += ["head.fc.weight"] if stored.keys() & {"head.fc.weight", "head.fc.bias"} else []
    for key in needed:
        if key not in stored:
            raise ValueError(f"missing {key}")
        shape = list(stored[key].shape)
        if len(shape) != 4 or (key.startswith("head") and shape[2:] != [1, 1]):
            raise ValueError(f"misshapen {key}, {shape} instead of [output channels, input channels, height, width]")
    return BitConfig(
        num_channels=stored["stem.conv.weight"].shape[1],
        embedding_size=len(stored["stem.conv.weight"]),
        hidden_sizes=tuple(len(stored[f"stages.{stage}.blocks.0.conv3.weight"]) for stage in stages),
        depths=tuple(depths[stage] for stage in stages),
        num_labels=len(stored["head.fc.weight"]) if "head.fc.weight" in stored else 0,
    )
