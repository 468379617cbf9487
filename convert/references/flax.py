"""`bit.flax` as a reference, fed from an opened checkpoint of any layout; layers hold no weights between runs."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bit.flax import GroupNorm, StandardizedConv, Stem, Unit, max_pool
from convert.checkpoints.checkpoint import Checkpoint
from convert.layouts.flax import FLAX
from convert.network.parameters import ALL, parameters, unit_name
from convert.network.runner import Batches, Implementation, by_channels

LAYERS = (StandardizedConv, GroupNorm, nn.Dense)
"""The layers that have parameters."""


def load(checkpoint: Checkpoint, dtype: str) -> Implementation:
    """Return the network with the checkpoint's weights, in `float32` or `float64`, on the CPU."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", dtype == "float64")
    jax.config.update("jax_default_matmul_precision", "highest")
    return _Flax(checkpoint, dtype)


class _Flax:
    name = "bit.flax (JAX)"

    def __init__(self, checkpoint: Checkpoint, dtype: str) -> None:
        self.dtype, self._checkpoint, self._config = dtype, checkpoint, checkpoint.config
        self.about = {"version": f"JAX {jax.__version__}", "device": "CPU", "TF32": "off"}
        self._items = {FLAX.key(item.place): item for item in parameters(checkpoint.config)}

    def stem(self, images: Batches) -> tuple[Batches, Batches]:
        convolved = self._each(Stem(self._config), images, "root_block")
        return convolved, {name: np.asarray(max_pool(jnp.asarray(x))) for name, x in convolved.items()}

    def unit(self, stage: int, layer: int, x: Batches) -> Batches:
        if layer == 0:  # the shapes of the stage before do not come again
            jax.clear_caches()
        return self._each(Unit(self._config, stage, layer == 0), x, unit_name(stage, layer))

    def pooled(self, x: Batches) -> tuple[Batches, Batches]:
        normalized = self._each(GroupNorm(self._config.num_groups), x, "norm-pre-head")
        activated = {name: np.maximum(value, 0) for name, value in normalized.items()}
        return activated, {name: np.asarray(jnp.mean(value, axis=(1, 2))) for name, value in activated.items()}

    def logits(self, features: Batches) -> Batches:
        """Compute some classes at a time, each group by a layer of that many outputs."""
        count, logits = self._config.num_labels, []
        for classes in by_channels(count, 8 * count * self._config.hidden_sizes[-1]):
            head = nn.Dense(len(range(count)[classes]), precision=jax.lax.Precision.HIGHEST)
            logits.append(self._each(head, features, "conv_head", classes))
        return {name: np.concatenate([values[name] for values in logits], axis=1) for name in features}

    def _each(self, module: nn.Module, x: Batches, path: str, channels: slice = ALL) -> Batches:
        """Run the module on each input; layers are given their weights as they run."""

        def intercept(call: Callable[..., Any], arguments: Any, options: Any, context: Any) -> Any:
            layer = context.module
            if "params" in layer.variables or not isinstance(layer, LAYERS):
                return call(*arguments, **options)
            weights = self._weights("/".join((path, *layer.path)), channels)
            result = _compiled(layer.clone(parent=None, name=None))(weights, *arguments)
            return jax.block_until_ready(result)  # before the next layer's weights are read

        with nn.intercept_methods(intercept):
            return {name: np.asarray(module.apply({}, np.asarray(value, self.dtype))) for name, value in x.items()}

    def _weights(self, layer: str, channels: slice) -> dict[str, jax.Array]:
        """Return the parameters of one layer by the layer's names for them."""
        weights = {}
        for key, item in self._items.items():
            path, _, name = key.rpartition("/")
            if path == layer:
                axes = FLAX.axes(item.place)
                value = self._checkpoint.weights(item.name, channels, axes=axes, dtype=self.dtype)
                weights[name] = jax.device_put(value)
                del value
        jax.block_until_ready(weights)
        gc.collect(0)  # only then does JAX free the arrays that it has copied
        return weights


@cache
def _compiled(layer: nn.Module) -> Callable[..., Any]:
    """Return the layer compiled: it takes a third of the time of single operations."""
    return jax.jit(lambda params, x: layer.apply({"params": params}, x))
