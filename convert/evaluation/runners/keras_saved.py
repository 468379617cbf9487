"""Keras: a `.keras` file as `keras.saving.load_model` loads it, compiled by TensorFlow as `Model.predict` does."""

from __future__ import annotations

import keras
import tensorflow as tf

from convert.checkpoints.checkpoint import Checkpoint
from convert.conversion.keras_model import is_written_here
from convert.errors import CheckpointError
from convert.evaluation.libraries import Loaded
from convert.references.registry import FOREIGN_GRAPH


def load(checkpoint: Checkpoint) -> Loaded:
    """Return the model. Raises `CheckpointError` for one that `bit convert` does not write: it is not loaded."""
    if not is_written_here(checkpoint):
        raise CheckpointError(FOREIGN_GRAPH)
    model = keras.saving.load_model(checkpoint.file.path, compile=False)
    # The kernels are standardized in the file; the manifest beside it states with which epsilon.
    epsilon = checkpoint.config.ws_eps if checkpoint.states_ws_eps else None
    version = f"Keras {keras.__version__}, TensorFlow {tf.__version__}"
    return Loaded(version, model.predict_on_batch, epsilon)
