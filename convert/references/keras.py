"""`bit.keras` as a reference, fed from an opened checkpoint of any layout."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bit.keras import GroupNorm, Head, RootBlock, StandardizedConv, Unit, max_pool
from convert.checkpoints.checkpoint import Checkpoint
from convert.layouts.google import GOOGLE
from convert.network.parameters import parameters
from convert.network.runner import Batches, Implementation, by_channels

WEIGHTS: dict[Any, tuple[str, ...]] = {
    GroupNorm: ("gamma", "beta"),
    StandardizedConv: ("kernel",),
}
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
        self._items = {_path(GOOGLE.key(item.place)): item for item in parameters(checkpoint.config)}

    def stem(self, images: Batches) -> tuple[Batches, Batches]:
        convolved = self._each(partial(RootBlock, self._config), images)
        return _arrays(convolved), _arrays({name: max_pool(x) for name, x in convolved.items()})

    def unit(self, stage: int, layer: int, x: Batches) -> Batches:
        return _arrays(self._each(partial(Unit, self._config, stage, layer), x, f"block{stage + 1}/"))

    def pooled(self, x: Batches) -> tuple[Batches, Batches]:
        normalized = self._each(partial(GroupNorm, self._config.num_groups), x)
        activated = {name: tf.nn.relu(value) for name, value in normalized.items()}
        pooled = {name: tf.reduce_mean(value, axis=(1, 2)) for name, value in activated.items()}
        return _arrays(activated), _arrays(pooled)

    def logits(self, features: Batches) -> Batches:
        """Compute some classes at a time, each group by a head of that many outputs."""
        count, size, logits = self._config.num_labels, self._config.hidden_sizes[-1], []
        for classes in by_channels(count, 4 * count * size):
            head = Head(self._config.replace(num_labels=len(range(count)[classes])))
            head(np.zeros((1, size), self.dtype))  # the first call makes the weights
            for weight in head.weights:
                item = self._items[weight.path]
                weight.assign(self._checkpoint.weights(item.name, classes, dtype=self.dtype))
            logits.append(_arrays({name: head(np.asarray(x, self.dtype)) for name, x in features.items()}))
        return {name: np.concatenate([values[name] for values in logits], axis=1) for name in features}

    def _each(self, make: Callable[[], Any], x: Batches, prefix: str = "") -> dict[str, Any]:
        """Run a new layer on each input; it and the layers inside are given their weights as they are called."""
        with _weights_on_call(lambda inner, attribute: self._weight(f"{prefix}{inner.path}/{attribute}")):
            layer = make()
            return {name: layer(tf.convert_to_tensor(np.asarray(value, self.dtype))) for name, value in x.items()}

    def _weight(self, path: str) -> Any:
        """Return a parameter by path; zeros while Keras only infers shapes, in a graph that would keep values."""
        item = self._items[path]
        if not tf.executing_eagerly():
            return tf.zeros(item.shape, self.dtype)
        return self._checkpoint.weights(item.name, dtype=self.dtype)


@contextlib.contextmanager
def _weights_on_call(weight: Callable[[Any, str], Any]) -> Iterator[None]:
    """A context in which layers have weights only while they are called: those that `weight` returns.

    A large kernel is used some filters at a time.
    """
    original = {kind: (kind.build, kind.call) for kind in WEIGHTS}

    def build(layer: Any, shape: Any) -> None:
        """Make no weights."""

    def call(layer: Any, x: Any) -> Any:
        weights = {attribute: weight(layer, attribute) for attribute in WEIGHTS[type(layer)]}
        results = []
        for piece in _by_channels(weights):
            for attribute, value in piece.items():
                setattr(layer, attribute, tf.convert_to_tensor(value))
            results.append(original[type(layer)][1](layer, x))
            for attribute in piece:
                delattr(layer, attribute)
            gc.collect()  # Keras leaves them in reference cycles
        return results[0] if len(results) == 1 else tf.concat(results, axis=-1)

    for kind in WEIGHTS:
        kind.build, kind.call = build, call
    try:
        yield
    finally:
        for kind, methods in original.items():
            kind.build, kind.call = methods


def _by_channels(weights: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the weights of some output channels, their last axis, at a time."""
    nbytes = sum(math.prod(value.shape) * tf.as_dtype(value.dtype).size for value in weights.values())
    for channels in by_channels(next(iter(weights.values())).shape[-1], nbytes):
        yield {attribute: value[..., channels] for attribute, value in weights.items()}


def _path(key: str) -> str:
    """Return the path in Keras of a parameter with this name in Google's npz."""
    return key.removeprefix("resnet/").replace("head/conv2d", "head/dense")


def _arrays(values: dict[str, Any]) -> Batches:
    return {name: np.asarray(value) for name, value in values.items()}
