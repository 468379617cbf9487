"""Describe BiT with standardized kernels as a model of Keras' own layers; it computes what `network.oracle` computes.

A `.keras` file holds this description as JSON, so that `keras.saving.load_model` needs no code of this project, and
writing it needs no Keras. Entries that Keras fills with defaults are left out. Each stage is a model by itself, and in
it each unit: Keras numbers layers of a class in every model from the start, and the file names weights by these numbers
(keras/src/saving/saving_lib.py, `_save_container_state`). Batch size, height and width are free.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from bit.config import NORM_EPS, BitConfig
from convert.checkpoints.checkpoint import Checkpoint
from convert.files.keras import CONFIGURATION_NAME, METADATA_NAME, KerasFile
from convert.network.parameters import STEM_SIZE

INPUT = "pixel_values"
KERAS_VERSION = "3.10.0"
"""The first version of Keras that the description was written for."""
DATE = "1980-01-01@00:00:00"
"""The date that is stated, so that the same weights give the same bytes."""
LAYERS, MODELS = "keras.layers", "keras.src.models.functional"
"""Modules of the classes, as Keras writes them."""

Entry = dict[str, Any]


def network(config: BitConfig) -> dict[str, bytes]:
    """Return the members of a `.keras` file beside the weights.

    The input is `pixel_values`, `[N, H, W, C]` in [-1, 1]; the output is `logits`, `[N, num_labels]`, or `pooled`,
    `[N, C]`, for a network without a head. No weight can be trained until the user changes that: gradients of
    standardized kernels are not those of BiT.
    """
    metadata = {"keras_version": KERAS_VERSION, "date_saved": DATE}
    return {METADATA_NAME: _json(metadata), CONFIGURATION_NAME: _json(model(config))}


def model(config: BitConfig) -> Entry:
    """Return the whole model as Keras serializes it."""
    build = _Builder(INPUT, config.num_channels, config.num_groups)
    x = build.convolution("root_block_conv", INPUT, config.embedding_size, STEM_SIZE, 2)
    # Zeros, not −∞: there is no ReLU before, so they replace negative values at the border.
    x = build.add("ZeroPadding2D", "root_block_padding", x, padding=[[1, 1], [1, 1]], data_format="channels_last")
    x = build.add(
        "MaxPooling2D", "root_block", x, pool_size=[3, 3], strides=[2, 2], padding="valid", data_format="channels_last"
    )
    channels = config.embedding_size
    for stage, size in enumerate(config.hidden_sizes):
        x = build.model(_stage(config, stage, channels), x, size)
        channels = size
    x = build.norm_relu("norm", "pre_head", x)
    x = build.add("GlobalAveragePooling2D", "pooled", x, data_format="channels_last", keepdims=False)
    if config.num_labels:
        x = build.add("Dense", "logits", x, units=config.num_labels, activation="linear", use_bias=True)
    return build.finished("bit", x)


def is_written_here(checkpoint: Checkpoint) -> bool:
    """Return whether all of a `.keras` file but the weights is exactly what `network` makes for them.

    Only such a model may be loaded by Keras: another could run code, run without end, or take all memory.
    """
    assert isinstance(checkpoint.file, KerasFile)
    return checkpoint.file.without_weights() == network(checkpoint.config)


def _stage(config: BitConfig, stage: int, channels: int) -> Entry:
    size, x = config.hidden_sizes[stage], "features"
    build = _Builder(x, channels, config.num_groups)
    for layer in range(config.depths[stage]):
        x = build.model(_unit(config, stage, layer, channels), x, size)
        channels = size
    return build.finished(f"block{stage + 1}", x)


def _unit(config: BitConfig, stage: int, layer: int, channels: int) -> Entry:
    middle, size, x = config.bottleneck_size(stage), config.hidden_sizes[stage], "features"
    stride = 2 if stage and not layer else 1
    build = _Builder(x, channels, config.num_groups)
    activated = build.norm_relu("norm1", "relu1", x)
    y = build.convolution("conv1", activated, middle, 1, 1)
    y = build.convolution("conv2", build.norm_relu("norm2", "relu2", y), middle, 3, stride)
    y = build.convolution("conv3", build.norm_relu("norm3", "relu3", y), size, 1, 1)
    # The shortcut is projected from the activated input, not from the raw one.
    shortcut = x if layer else build.convolution("projection", activated, size, 1, stride)
    return build.finished(f"unit{layer + 1:02d}", build.sum("add", [y, shortcut]))


class _Builder:
    """Adds layers to a model; each method returns the name of the layer that it adds."""

    def __init__(self, name: str, channels: int, groups: int) -> None:
        self.groups, self._input = groups, name
        shape = [None, None, None, channels]
        settings = {"batch_shape": shape, "dtype": "float32", "sparse": False, "name": name}
        entry = {"module": LAYERS, "class_name": "InputLayer", "config": settings, "registered_name": None}
        self.layers: list[Entry] = [{**entry, "name": name, "inbound_nodes": []}]
        self._shapes: dict[str, list[int | None]] = {name: shape}

    def convolution(self, name: str, x: str, filters: int, size: int, stride: int) -> str:
        """Add a convolution without bias, and before it the border of half the kernel, if there is one."""
        if margin := size // 2:
            padding = [[margin, margin], [margin, margin]]
            x = self.add("ZeroPadding2D", f"{name}_padding", x, padding=padding, data_format="channels_last")
        settings = {"filters": filters, "kernel_size": [size, size], "strides": [stride, stride], "padding": "valid"}
        return self.add("Conv2D", name, x, **settings, data_format="channels_last", use_bias=False)

    def norm_relu(self, norm: str, relu: str, x: str) -> str:
        x = self.add("GroupNormalization", norm, x, groups=self.groups, axis=-1, epsilon=NORM_EPS)
        return self.add("ReLU", relu, x)

    def add(self, kind: str, name: str, x: str, **settings: Any) -> str:
        """Add a layer of Keras with one input."""
        entry = {"module": LAYERS, "class_name": kind, "registered_name": None}
        config = {"name": name, "trainable": False, "dtype": "float32", **settings}
        self._append({**entry, "config": config}, name, self._tensor(x))
        self._shapes[name] = self._shape(x, settings)
        return name

    def sum(self, name: str, inputs: Sequence[str]) -> str:
        config = {"name": name, "trainable": False, "dtype": "float32"}
        entry = {"module": LAYERS, "class_name": "Add", "registered_name": None, "config": config}
        self._append(entry, name, [self._tensor(x) for x in inputs])
        self._shapes[name] = self._shapes[inputs[0]]
        return name

    def model(self, entry: Entry, x: str, channels: int) -> str:
        """Add a model as a layer, whose output has `channels`."""
        name: str = entry["config"]["name"]
        self._append(entry, name, self._tensor(x))
        self._shapes[name] = [None, None, None, channels]
        return name

    def finished(self, name: str, output: str) -> Entry:
        """Return the model whose output is that of the layer `output`."""
        config = {
            "name": name,
            "trainable": False,
            "layers": self.layers,
            "input_layers": [self._input, 0, 0],
            "output_layers": [output, 0, 0],
        }
        return {"module": MODELS, "class_name": "Functional", "config": config, "registered_name": "Functional"}

    def _append(self, entry: Entry, name: str, argument: Entry | list[Entry]) -> None:
        self.layers.append({**entry, "name": name, "inbound_nodes": [{"args": [argument], "kwargs": {}}]})

    def _tensor(self, name: str) -> Entry:
        """Return a reference to the output of a layer."""
        config = {"shape": self._shapes[name], "dtype": "float32", "keras_history": [name, 0, 0]}
        return {"class_name": "__keras_tensor__", "config": config}

    def _shape(self, x: str, settings: Entry) -> list[int | None]:
        """Return the shape of the output of a layer with these settings; heights and widths are free."""
        before = self._shapes[x]
        channels = settings.get("filters", settings.get("units", before[-1]))
        flat = "keepdims" in settings or len(before) == 2
        return [None, channels] if flat else [None, None, None, channels]


def _json(values: Entry) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode()
