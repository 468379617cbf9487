"""`bit.flax` as a reference, fed from an opened checkpoint of any layout; its layers hold no weights between runs."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from bit.flax import GroupNorm, StandardizedConv, Stem, Unit, max_pool
from convert.checkpoints.checkpoint import Checkpoint
from convert.layouts.flax import FLAX
from convert.network.parameters import ALL, parameters
from convert.network.runner import Batches, Implementation, Taps, by_channels
from convert.network.taps import unit_place

LAYERS = (StandardizedConv, GroupNorm, nn.Dense)
"""Those that have parameters."""


def load(checkpoint: Checkpoint, dtype: str) -> Implementation:
    """The network with the checkpoint's weights, in `float32` or `float64`, on the CPU."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", dtype == "float64")
    jax.config.update("jax_default_matmul_precision", "highest")
    return _Flax(checkpoint, dtype)


class _Flax:
    name = "bit.flax (JAX)"

    def __init__(self, checkpoint: Checkpoint, dtype: str) -> None:
        self.dtype, self._checkpoint = dtype, checkpoint
        self.about = {"version": f"JAX {jax.__version__}", "device": "CPU", "TF32": "off"}
        self._names = {FLAX.key(item.place): item.name for item in parameters(checkpoint.config)}

    def run(self, part: str, inputs: Batches) -> Taps:
        """The taps of a part, see `Implementation.run`."""
        x = {name: np.asarray(value, self.dtype) for name, value in inputs.items()}
        config = self._checkpoint.config
        if part == "root_block":
            x = self._each(Stem(config), x, part)
            yield "root_block/conv", x
            yield part, {name: np.asarray(max_pool(jnp.asarray(value))) for name, value in x.items()}
        elif part == "pooled":
            normed = self._each(GroupNorm(config.num_groups), x, "norm-pre-head")
            x = {name: np.maximum(value, 0) for name, value in normed.items()}
            yield "pre_head", x
            yield part, {name: np.asarray(jnp.mean(value, axis=(1, 2))) for name, value in x.items()}
        elif part == "logits":
            yield part, self._logits(x)
        else:
            stage, layer = unit_place(part)
            if layer == 0:  # the shapes of the stage before do not come again
                jax.clear_caches()
            yield part, self._each(Unit(config, stage, layer == 0), x, part)

    def _logits(self, x: Batches) -> Batches:
        """Of some classes at a time, each by a layer for these."""
        count, features = self._checkpoint.config.num_labels, self._checkpoint.config.hidden_sizes[-1]
        found: dict[str, list[Any]] = {name: [] for name in x}
        for classes in by_channels(count, 8 * count * features):
            head = nn.Dense(len(range(count)[classes]), precision=jax.lax.Precision.HIGHEST)
            for name, logits in self._each(head, x, "conv_head", classes).items():
                found[name].append(logits)
        return {name: np.concatenate(logits, axis=1) for name, logits in found.items()}

    def _each(self, module: nn.Module, x: Batches, path: str, channels: slice = ALL) -> dict[str, Any]:
        """The module's result for each input; its layers are given their weights as they run."""

        def intercept(call: Callable[..., Any], arguments: Any, options: Any, context: Any) -> Any:
            layer = context.module
            if "params" in layer.variables or not isinstance(layer, LAYERS):
                return call(*arguments, **options)
            result = _compiled(layer.clone(parent=None, name=None))(
                self._weights(path, layer.path, channels), *arguments
            )
            return jax.block_until_ready(result)  # before the next layer's weights are read

        with nn.intercept_methods(intercept):
            return {name: np.asarray(module.apply({}, value)) for name, value in x.items()}

    def _weights(self, part: str, inside: tuple[str, ...], channels: slice) -> dict[str, jax.Array]:
        """The parameters of one layer by the names that it has for them."""
        path = "/".join((part, *inside))
        keys = [key for key in self._names if key.rpartition("/")[0] == path]
        found = {key.rpartition("/")[2]: jax.device_put(self._read(self._names[key], channels)) for key in keys}
        jax.block_until_ready(found)
        gc.collect(0)  # only then does JAX let go of the arrays that it has copied
        return found

    def _read(self, name: str, channels: slice) -> NDArray[np.generic]:
        axes = FLAX.axes(self._checkpoint.place(name))
        return self._checkpoint.weights(name, channels, axes=axes, dtype=self.dtype)


@cache
def _compiled(layer: nn.Module) -> Callable[..., Any]:
    """Compiled: a third of the time of its operations one by one."""
    return jax.jit(lambda params, x: layer.apply({"params": params}, x))
