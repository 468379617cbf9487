"""`bit.keras` as a reference, fed from an opened checkpoint of any layout."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from bit.keras import GroupNorm, Head, RootBlock, StandardizedConv, Unit, max_pool
from convert.checkpoints.checkpoint import Checkpoint
from convert.layouts.google import GOOGLE
from convert.network.parameters import Parameter, parameters
from convert.network.runner import Batches, Implementation, by_channels, compute, run_each
from convert.network.taps import Part

WEIGHTS: dict[Any, tuple[str, ...]] = {GroupNorm: ("gamma", "beta"), StandardizedConv: ("kernel",)}
"""The layers that have weights, and their attributes for them."""


def load(checkpoint: Checkpoint, dtype: str) -> Implementation:
    """Return the network with the checkpoint's weights, in `float32`, on the CPU."""
    tf.config.set_visible_devices([], "GPU")
    tf.config.experimental.enable_tensor_float_32_execution(False)
    keras.config.set_floatx(dtype)
    gc.freeze()  # so that existing objects are not searched after every layer
    return _Keras(checkpoint, dtype)


class _Keras:
    name = "bit.keras (TensorFlow)"

    def __init__(self, checkpoint: Checkpoint, dtype: str) -> None:
        self.dtype, self._checkpoint, self._config = dtype, checkpoint, checkpoint.config
        version = f"TensorFlow {tf.__version__}, Keras {keras.__version__}"
        self.about = {"version": version, "device": "CPU", "TF32": "off"}
        names = {GOOGLE.key(item.place).removeprefix("resnet/"): item for item in parameters(checkpoint.config)}
        self._items = {name.replace("head/conv2d", "head/dense"): item for name, item in names.items()}
        """The parameters by their paths in Keras."""
        self._layers: dict[type, Any] = {}
        """The layers of the part that runs, made for the first input."""

    def run(self, part: Part, x: Batches) -> list[Batches]:
        self._layers.clear()
        with self._weights_on_call(f"block{part.stage + 1}/" if part.kind == "unit" else ""):
            return run_each(lambda images: compute(self, part, tf.convert_to_tensor(images)), x, self.dtype)

    def stem(self, x: Any) -> list[Any]:
        convolved = self._layer(RootBlock, self._config)(x)
        return [convolved, max_pool(convolved)]

    def unit(self, stage: int, layer: int, x: Any) -> Any:
        return self._layer(Unit, self._config, stage, layer)(x)

    def pooled(self, x: Any) -> list[Any]:
        normalized = tf.nn.relu(self._layer(GroupNorm, self._config.num_groups)(x))
        return [normalized, tf.reduce_mean(normalized, axis=(1, 2))]

    def logits(self, x: Any) -> Any:
        count, logits = self._config.num_labels, []
        for classes in by_channels(count, 4 * count * self._config.hidden_sizes[-1]):
            head = Head(self._config.replace(num_labels=len(range(count)[classes])))
            head(x[:1])  # the first call makes the weights
            for weight in head.weights:
                weight.assign(self._weight(self._items[weight.path], classes))
            logits.append(head(x))
        return tf.concat(logits, axis=-1)

    def _layer(self, kind: type, *arguments: Any) -> Any:
        if kind not in self._layers:
            self._layers[kind] = kind(*arguments)
        return self._layers[kind]

    def _weight(self, item: Parameter, channels: slice) -> Any:
        """Return a parameter; zeros while Keras only infers shapes, in a graph that would keep values."""
        if not tf.executing_eagerly():
            return tf.zeros((*item.shape[:-1], len(range(item.shape[-1])[channels])), self.dtype)
        return tf.convert_to_tensor(self._checkpoint.weights(item.name, channels, dtype=self.dtype))

    @contextlib.contextmanager
    def _weights_on_call(self, prefix: str) -> Iterator[None]:
        """A context in which layers have weights only while they are called; `prefix` is that of their paths.

        A large kernel is used some filters at a time.
        """
        original = {kind: (kind.build, kind.call) for kind in WEIGHTS}

        def build(layer: Any, shape: Any) -> None:
            """Make no weights."""

        def call(layer: Any, x: Any) -> Any:
            items = {name: self._items[f"{prefix}{layer.path}/{name}"] for name in WEIGHTS[type(layer)]}
            shape, results = items[WEIGHTS[type(layer)][0]].shape, []
            for channels in by_channels(shape[-1], 4 * math.prod(shape)):
                for name, item in items.items():
                    setattr(layer, name, self._weight(item, channels))
                results.append(original[type(layer)][1](layer, x))
                for name in items:
                    delattr(layer, name)
                gc.collect()  # Keras leaves them in reference cycles
            return results[0] if len(results) == 1 else tf.concat(results, axis=-1)

        for kind in WEIGHTS:
            kind.build, kind.call = build, call
        try:
            yield
        finally:
            for kind, methods in original.items():
                kind.build, kind.call = methods
