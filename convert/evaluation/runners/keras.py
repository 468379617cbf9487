"""`bit.keras`, compiled by TensorFlow as `Model.predict` does."""

from __future__ import annotations

import keras
import tensorflow as tf

import bit.keras
from convert.checkpoints.checkpoint import Checkpoint
from convert.evaluation.libraries import Loaded


def load(checkpoint: Checkpoint) -> Loaded:
    """Return the network of a folder."""
    model = bit.keras.load(checkpoint.file.path.parent)
    version = f"Keras {keras.__version__}, TensorFlow {tf.__version__}"
    return Loaded(version, model.predict_on_batch, model.config.ws_eps)
