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
from convert.network.runner import Batches, Implementation, Taps, by_channels
from convert.network.taps import unit_place

WEIGHTS: dict[Any, tuple[str, ...]] = {
    GroupNorm: ("gamma", "beta"),
    StandardizedConv: ("kernel",),
}
"""The layers that have weights, and what they call them."""


def load(checkpoint: Checkpoint, dtype: str) -> Implementation:
    """The network with the checkpoint's weights, in `float32`, on the CPU."""
    tf.config.set_visible_devices([], "GPU")
    tf.config.experimental.enable_tensor_float_32_execution(False)
    keras.config.set_floatx(dtype)
    gc.freeze()  # so that what there is by now need not be searched after every layer
    return _Keras(checkpoint, dtype)


class _Keras:
    name = "bit.keras (TensorFlow)"

    def __init__(self, checkpoint: Checkpoint, dtype: str) -> None:
        self.dtype, self._checkpoint = dtype, checkpoint
        version = f"TensorFlow {tf.__version__}, Keras {keras.__version__}"
        self.about = {"version": version, "device": "CPU", "TF32": "off"}
        known = parameters(checkpoint.config)
        self._names = {_name(GOOGLE.key(item.place)): item.name for item in known}
        self._shapes = {item.name: item.shape for item in known}

    def run(self, part: str, inputs: Batches) -> Taps:
        """The taps of a part, see `Implementation.run`."""
        x = {name: tf.convert_to_tensor(np.asarray(value, self.dtype)) for name, value in inputs.items()}
        config = self._checkpoint.config
        if part == "root_block":
            x = self._each(partial(RootBlock, config), x)
            yield "root_block/conv", _arrays(x)
            yield part, _arrays({name: max_pool(value) for name, value in x.items()})
        elif part == "pooled":
            normed = self._each(partial(GroupNorm, config.num_groups), x)
            x = {name: tf.nn.relu(value) for name, value in normed.items()}
            yield "pre_head", _arrays(x)
            yield part, _arrays({name: tf.reduce_mean(value, axis=(1, 2)) for name, value in x.items()})
        elif part == "logits":
            yield part, self._logits(x)
        else:
            stage, layer = unit_place(part)
            yield part, _arrays(self._each(partial(Unit, config, stage, layer), x, f"block{stage + 1}/"))

    def _each(self, make: Callable[[], Any], x: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        """What a layer makes of each input; it and those inside are given their weights as they are called."""
        with _on_call(lambda inner, attribute: self._weight(f"{prefix}{inner.path}/{attribute}")):
            layer = make()
            return {name: layer(value) for name, value in x.items()}

    def _logits(self, x: dict[str, Any]) -> Batches:
        """Of some classes at a time, each by a head for these."""
        config = self._checkpoint.config
        found: dict[str, list[Any]] = {name: [] for name in x}
        for classes in by_channels(config.num_labels, 4 * config.num_labels * config.hidden_sizes[-1]):
            head = Head(config.replace(num_labels=len(range(config.num_labels)[classes])))
            head(next(iter(x.values())))  # is built by its first call
            for weight in head.weights:
                weight.assign(self._checkpoint.weights(self._names[weight.path], classes, dtype=self.dtype))
            for name, value in x.items():
                found[name].append(np.asarray(head(value)))
        return {name: np.concatenate(logits, axis=1) for name, logits in found.items()}

    def _weight(self, path: str) -> Any:
        """A parameter by its path; zeros while Keras only finds out shapes, in a graph that would keep the values."""
        name = self._names[path]
        if not tf.executing_eagerly():
            return tf.zeros(self._shapes[name], self.dtype)
        return self._checkpoint.weights(name, dtype=self.dtype)


@contextlib.contextmanager
def _on_call(weight: Callable[[Any, str], Any]) -> Iterator[None]:
    """Layers that are made within have no weights but while they are called: what `weight` gives, of
    a large kernel some filters at a time."""
    kept = {kind: (kind.build, kind.call) for kind in WEIGHTS}

    def bare(layer: Any, shape: Any) -> None:
        """Nothing is made of its own."""

    def called(layer: Any, x: Any) -> Any:
        weights = {attribute: weight(layer, attribute) for attribute in WEIGHTS[type(layer)]}
        results = []
        for piece in _in_parts(weights):
            for attribute, value in piece.items():
                setattr(layer, attribute, tf.convert_to_tensor(value))
            results.append(kept[type(layer)][1](layer, x))
            for attribute in piece:
                delattr(layer, attribute)
            gc.collect()  # Keras leaves them in cycles
        return results[0] if len(results) == 1 else tf.concat(results, axis=-1)

    for kind in WEIGHTS:
        kind.build, kind.call = bare, called
    try:
        yield
    finally:
        for kind, (build, call) in kept.items():
            kind.build, kind.call = build, call


def _in_parts(weights: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The weights of some output channels at a time, which are their last axis."""
    nbytes = sum(math.prod(value.shape) * tf.as_dtype(value.dtype).size for value in weights.values())
    for channels in by_channels(next(iter(weights.values())).shape[-1], nbytes):
        yield {attribute: value[..., channels] for attribute, value in weights.items()}


def _name(key: str) -> str:
    """Google's name in TF2 from that in its npz."""
    return key.removeprefix("resnet/").replace("head/conv2d", "head/dense")


def _arrays(values: dict[str, Any]) -> Batches:
    return {name: np.asarray(value) for name, value in values.items()}
