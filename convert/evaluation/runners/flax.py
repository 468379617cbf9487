"""`bit.flax`, compiled by JAX."""

from __future__ import annotations

import flax
import jax
from flax import nnx

import bit.flax
from convert.checkpoints.checkpoint import Checkpoint
from convert.evaluation.libraries import Loaded


def load(checkpoint: Checkpoint) -> Loaded:
    """Return the network of a folder."""
    model = bit.flax.load(checkpoint.file.path.parent)
    graph, state = nnx.split(model)
    logits = jax.jit(lambda state, pixels: nnx.merge(graph, state)(pixels))
    version = f"Flax {flax.__version__}, JAX {jax.__version__}"
    return Loaded(version, lambda pixels: logits(state, pixels), model.config.ws_eps)
