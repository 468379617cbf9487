"""`bit.flax` as a reference, fed from an opened checkpoint of any layout; its layers hold no weights between runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bit.flax import GroupNorm, StandardizedConv, Stem, Unit, max_pool
from convert.checkpoint import Checkpoint
from convert.implementation import Batches, Implementation, Taps
from convert.layouts.flax import FLAX
from convert.parameters import parameters
from convert.taps import unit_place

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
            head = nn.Dense(config.num_labels, precision=jax.lax.Precision.HIGHEST)
            yield part, self._each(head, x, "conv_head")
        else:
            stage, layer = unit_place(part)
            yield part, self._each(Unit(config, stage, layer == 0), x, part)

    def _each(self, module: nn.Module, x: Batches, path: str) -> dict[str, Any]:
        """The module's result for each input; its layers are given their weights as they run."""

        def intercept(call: Callable[..., Any], arguments: Any, options: Any, context: Any) -> Any:
            layer = context.module
            if "params" in layer.variables or not isinstance(layer, LAYERS):
                return call(*arguments, **options)
            return _compiled(layer.clone(parent=None, name=None))(self._weights(path, layer.path), *arguments)

        with nn.intercept_methods(intercept):
            return {name: np.asarray(module.apply({}, value)) for name, value in x.items()}

    def _weights(self, part: str, inside: tuple[str, ...]) -> dict[str, jax.Array]:
        """The parameters of one layer by the names that it has for them."""
        path, found = "/".join((part, *inside)), {}
        for key in (key for key in self._names if key.rpartition("/")[0] == path):
            place = self._checkpoint.place(self._names[key])
            values = self._checkpoint.weights(self._names[key], FLAX.axes(place)).astype(self.dtype, copy=False)
            found[key.rpartition("/")[2]] = jnp.array(values)
        return found


@cache
def _compiled(layer: nn.Module) -> Callable[..., Any]:
    """Compiled: a third of the time of its operations one by one."""
    return jax.jit(lambda params, x: layer.apply({"params": params}, x))
