"""Whole networks of Flax and Keras repeat the recorded training steps of Google's code, with their own gradients."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytest
import torch._dynamo  # noqa: F401 (with TensorFlow's LLVM already loaded, that of its triton aborts)
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

from bit import flax as bit_flax
from bit import keras as bit_keras
from bit.config import BitConfig
from convert.layouts.flax import FLAX
from convert.layouts.google import GOOGLE
from convert.network.axes import Transform
from convert.network.parameters import KINDS, parameters
from convert.network.taps import Array
from convert.references.training import FOLDER, MicroBatch, TrainingRecording, repeat_with
from convert.verification.metrics import relative_l2

every_recording = pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.safetensors")))
pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning"),
]


def failed(name: str, network: Any, tolerance: float) -> dict[str, float]:
    pairs = repeat_with(TrainingRecording.read(FOLDER / f"{name}.safetensors"), network.gradients, network.logits)
    return {name: error for name, pair in pairs.items() if not (error := relative_l2(*pair)) < tolerance}


class InFlax:
    """`nnx.value_and_grad` of the loss of `bit.flax.BiT`."""

    def __init__(self, config: BitConfig) -> None:
        self.items = {FLAX.key(item.place): item for item in parameters(config)}
        graph, _ = nnx.split(nnx.eval_shape(lambda: bit_flax.BiT(config, rngs=nnx.Rngs(0))))

        def loss(model: bit_flax.BiT, x: Any, labels: Any, partners: Any, ratio: Any) -> Any:
            logs = jax.nn.log_softmax(model(x))
            rows = np.arange(len(labels))
            return -(ratio * logs[rows, labels] + (1 - ratio) * logs[rows, partners]).mean()

        def found(params: Any, *batch: Any) -> Any:
            value, gradients = nnx.value_and_grad(loss)(nnx.merge(graph, params), *batch)
            return value, nnx.to_pure_dict(gradients)

        self._found = jax.jit(found)
        self._logits = jax.jit(lambda params, x: nnx.merge(graph, params)(x))

    def gradients(self, values: Mapping[str, Array], batch: MicroBatch) -> tuple[float, dict[str, Array]]:
        given = batch.images, batch.labels, batch.partners, batch.ratio
        loss, gradients = self._found(self._named(values), *given)
        total = {}
        for key, value in flatten_dict(gradients, sep="/").items():
            place = self.items[key].place
            total[place.name] = Transform(FLAX.axes(place), KINDS[place.kind])(np.asarray(value))
        return float(loss), total

    def logits(self, values: Mapping[str, Array], x: Array) -> Array:
        return np.asarray(self._logits(self._named(values), x))

    def _named(self, values: Mapping[str, Array]) -> dict[str, Any]:
        named = {
            key: Transform(item.axes, FLAX.axes(item.place))(values[item.name]) for key, item in self.items.items()
        }
        return unflatten_dict(named, sep="/")


class InKeras:
    """TensorFlow's gradients of the loss of `bit.keras.BiT`."""

    def __init__(self, config: BitConfig, dtype: str) -> None:
        self.model, self.dtype = bit_keras.BiT(config, dtype), dtype
        keys = {GOOGLE.key(item.place).removeprefix("resnet/"): item for item in parameters(config)}
        keys = {f"bit/{key}".replace("head/conv2d", "head/dense"): item for key, item in keys.items()}
        self.names = [keys[weight.path].name for weight in self.model.trainable_weights]

    def gradients(self, values: Mapping[str, Array], batch: MicroBatch) -> tuple[float, dict[str, Array]]:
        self._assign(values)
        with tf.GradientTape() as tape:
            logits = self.model(batch.images)
            first, second = (
                tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
                for labels in (batch.labels, batch.partners)
            )
            loss = batch.ratio * first + (1 - batch.ratio) * second
        found = tape.gradient(loss, [weight.value for weight in self.model.trainable_weights])
        return float(loss), {name: np.asarray(value, np.float64) for name, value in zip(self.names, found, strict=True)}

    def logits(self, values: Mapping[str, Array], x: Array) -> Array:
        self._assign(values)
        return np.asarray(self.model(x), np.float64)

    def _assign(self, values: Mapping[str, Array]) -> None:
        for name, weight in zip(self.names, self.model.trainable_weights, strict=True):
            weight.assign(values[name].reshape(weight.shape))


def recorded(name: str) -> BitConfig:
    return TrainingRecording.read(FOLDER / f"{name}.safetensors").config


@every_recording
def test_flax_repeats_them(name: str) -> None:
    with jax.enable_x64(True):
        assert failed(name, InFlax(recorded(name)), 1e-9) == {}


@every_recording
def test_keras_repeats_them(name: str) -> None:
    assert failed(name, InKeras(recorded(name), "float64"), 1e-9) == {}


def test_keras_repeats_small_steps_in_float32() -> None:
    """Six steps at the full rate make of the rounding of each a difference of up to 3 % in some parameters."""
    assert failed("R14x1-schedule", InKeras(recorded("R14x1-schedule"), "float32"), 1e-4) == {}
