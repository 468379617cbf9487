"""Read a checkpoint in timm's layout: the same arrays under other names (timm, `models/resnetv2.py`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bit.config import BitConfig

RENAMES = (
    (r"stem\.conv\.", "bit.embedder.convolution."),
    (r"stages\.(\d+)\.blocks\.", r"bit.encoder.stages.\1.layers."),
    (r"norm\.", "bit.norm."),
    (r"head\.fc\.", "classifier.1."),
)
"""The start of a name in timm, and of the same array's name in transformers."""
UNIT = re.compile(r"bit\.encoder\.stages\.(\d+)\.layers\.(\d+)\.conv3\.weight")


def timm_to_transformers(
    values: Mapping[str, Any], stored: Mapping[str, Tensor]
) -> tuple[BitConfig, dict[str, Tensor]]:
    """Return the configuration and the state dict under transformers' names.

    `values` is the content of timm's `config.json`; sizes are read from the shapes of the arrays.
    Raises `ValueError` where an array from which they are read is missing or misshapen.
    """
    state = {_rename(key): value for key, value in stored.items()}
    if "classifier.1.weight" in state:  # a 1×1 convolution in timm
        state["classifier.1.weight"] = state["classifier.1.weight"].flatten(1)
    return _config(values, state), state


def _rename(key: str) -> str:
    for pattern, start in RENAMES:
        renamed, count = re.subn(rf"^{pattern}", start, key)
        if count:
            return renamed
    return key


def _config(values: Mapping[str, Any], state: Mapping[str, Tensor]) -> BitConfig:
    depths: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for key, value in state.items():
        if match := UNIT.fullmatch(key):
            stage = int(match[1])
            depths[stage] = max(depths.get(stage, 0), int(match[2]) + 1)
            sizes[stage] = len(value)
    stem, head = state.get("bit.embedder.convolution.weight"), state.get("classifier.1.weight")
    if stem is None or sorted(depths) != list(range(len(depths))):
        raise ValueError("missing stem.conv.weight or a stage")
    labels = values.get("label_names")
    config = BitConfig(
        num_channels=stem.shape[1],
        embedding_size=stem.shape[0],
        hidden_sizes=tuple(sizes[stage] for stage in sorted(sizes)),
        depths=tuple(depths[stage] for stage in sorted(depths)),
        num_labels=0 if head is None else len(head),
    )
    if "ws_eps" in values:  # written by `bit convert`; timm itself does not read it
        config = config.replace(ws_eps=values["ws_eps"])
    return config if labels is None else config.replace(id2label=dict(enumerate(labels)))
