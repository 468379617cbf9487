"""Keras as a reference: it loads a converted `.keras` file by itself, and runs it part by part."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import keras
import tensorflow as tf

from bit.config import BitConfig
from convert.checkpoints.checkpoint import Checkpoint
from convert.conversion.keras_model import is_written_here
from convert.errors import CheckpointError
from convert.network.runner import Batches, Implementation, run_each
from convert.network.taps import Part, parts
from convert.references.registry import FOREIGN_GRAPH

TAPS = {"root_block_conv": "root_block/conv"}
"""Taps by the names of layers that differ from them; Keras allows no `/` there."""


def load(checkpoint: Checkpoint, dtype: str) -> Implementation:
    """Return the model as `keras.saving.load_model` loads it, on the CPU; in `float64` with that dtype policy.

    Raises `CheckpointError` for a model that `bit convert` does not write: it is not loaded.
    """
    if not is_written_here(checkpoint):
        raise CheckpointError(FOREIGN_GRAPH)
    tf.config.set_visible_devices([], "GPU")
    tf.config.experimental.enable_tensor_float_32_execution(False)
    model = keras.saving.load_model(checkpoint.file.path, compile=False)
    return _Saved(model if dtype == "float32" else _in_dtype(model, dtype), dtype, checkpoint.config)


class _Saved:
    name = "Keras (TensorFlow)"

    def __init__(self, model: Any, dtype: str, config: BitConfig) -> None:
        self.dtype = dtype
        version = f"TensorFlow {tf.__version__}, Keras {keras.__version__}"
        self.about = {"version": version, "device": "CPU", "TF32": "off"}
        self._layers = list(_in_order(model))
        names = [tap for tap, _ in self._layers]
        ends = [0, *(names.index(part.name) + 1 for part in parts(config))]
        self._slices = {part.name: slice(*pair) for part, pair in zip(parts(config), pairwise(ends), strict=True)}

    def run(self, part: Part, x: Batches) -> list[Batches]:
        """Run the layers after the part before up to the last of this one, in the model's own order."""

        def taps(images: Any) -> list[Any]:
            values, found = tf.convert_to_tensor(images), []
            for tap, layer in self._layers[self._slices[part.name]]:
                values = layer(values)
                if tap in part.taps:
                    found.append(values)
            return found

        return run_each(taps, x, self.dtype)


def _in_order(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the layers of a model, and the units of its stages, each with the tap that it would give."""
    for layer in model.layers[1:]:  # the first is the input
        if isinstance(layer, keras.Model):
            for unit in layer.layers[1:]:
                yield f"{layer.name}/{unit.name}", unit
        else:
            yield TAPS.get(layer.name, layer.name), layer


def _in_dtype(model: Any, dtype: str) -> Any:
    """Return the loaded model with another dtype policy and the same weights."""
    description = json.dumps(keras.saving.serialize_keras_object(model)).replace('"float32"', f'"{dtype}"')
    found = keras.saving.deserialize_keras_object(json.loads(description), safe_mode=True)
    found.set_weights(model.get_weights())
    return found
