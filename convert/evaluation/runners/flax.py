"""`bit.flax`, compiled by JAX."""

from __future__ import annotations

import flax
import jax

import bit.flax
from convert.checkpoints.checkpoint import Checkpoint
from convert.evaluation.libraries import Loaded


def load(checkpoint: Checkpoint) -> Loaded:
    """Return the network of a folder."""
    model, parameters = bit.flax.load(checkpoint.file.path.parent)
    logits = jax.jit(lambda parameters, pixels: model.apply({"params": parameters}, pixels)[0])
    version = f"Flax {flax.__version__}, JAX {jax.__version__}"
    return Loaded(version, lambda pixels: logits(parameters, pixels), model.config.ws_eps)
