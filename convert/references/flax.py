"""`bit.flax` as a reference, fed from an opened checkpoint of any layout; layers hold no weights between runs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from bit.flax import GroupNorm, StandardizedConv, Stem, Unit, max_pool
from convert.checkpoints.checkpoint import Checkpoint
from convert.layouts.flax import FLAX
from convert.network.axes import Transform
from convert.network.gradients import Differentiable, PartGradients
from convert.network.parameters import ALL, KINDS, Place, parameters, unit_name
from convert.network.runner import Batches, by_channels, compute, run_each
from convert.network.taps import Part

LAYERS = (StandardizedConv, GroupNorm, nn.Dense)
"""The layers that have parameters."""


def load(checkpoint: Checkpoint, dtype: str) -> Differentiable:
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
        self._compiled: dict[tuple[str, int, bool], Callable[..., Any]] = {}
        self._places = {FLAX.key(item.place): item.place for item in parameters(checkpoint.config)}

    def run(self, part: Part, x: Batches) -> list[Batches]:
        if part.kind == "unit" and part.layer == 0:  # the shapes of the stage before do not come again
            jax.clear_caches()
        return run_each(partial(compute, self, part), x, self.dtype)

    def differentiate(self, part: Part, x: Batches, cotangents: Batches) -> PartGradients:
        """Return the gradients of a part by JAX's automatic differentiation, see `Differentiable`."""
        path = {"stem": "root_block", "unit": part.prefix, "pooled": "norm-pre-head", "logits": "conv_head"}[part.kind]
        mine = {key: place for key, place in self._places.items() if key.startswith(f"{path}/")}
        weights = unflatten_dict(self._stored(path, mine), sep="/")
        differentiated = self._differentiated(part.kind, part.stage, part.layer == 0)
        inputs, total = dict[str, Any](), {place.name: np.zeros((), self.dtype) for place in mine.values()}
        for name, images in x.items():
            cotangent = np.asarray(cotangents[name], self.dtype)
            found, gradient = differentiated(weights, np.asarray(images, self.dtype), cotangent)
            inputs[name] = np.asarray(gradient)
            for key, value in flatten_dict(found, sep="/").items():
                place = mine[f"{path}/{key}"]
                back = Transform(FLAX.axes(place), KINDS[place.kind])
                total[place.name] = total[place.name] + back(np.asarray(value))
        return PartGradients(inputs, total)

    def _stored(self, path: str, places: Mapping[str, Place]) -> dict[str, np.ndarray[Any, Any]]:
        """Return parameters by their names below `path`."""
        return {
            key.removeprefix(f"{path}/"): self._checkpoint.weights(place.name, axes=FLAX.axes(place), dtype=self.dtype)
            for key, place in places.items()
        }

    def _differentiated(self, kind: str, stage: int, first: bool) -> Callable[..., Any]:
        """Return the compiled gradients of a kind of part with respect to parameters and input."""
        if (kind, stage, first) not in self._compiled:
            config = self._config
            modules: dict[str, tuple[nn.Module, Callable[[Any], Any]]] = {
                "stem": (Stem(config), max_pool),
                "unit": (Unit(config, stage, first), lambda x: x),
                "pooled": (GroupNorm(config.num_groups), lambda x: jnp.mean(nn.relu(x), axis=(1, 2))),
                "logits": (nn.Dense(config.num_labels, precision=jax.lax.Precision.HIGHEST), lambda x: x),
            }
            module, after = modules[kind]

            def forward(params: Any, x: Any) -> Any:
                return after(module.apply({"params": params}, x))

            self._compiled[kind, stage, first] = jax.jit(lambda params, x, c: jax.vjp(forward, params, x)[1](c))
        return self._compiled[kind, stage, first]

    def stem(self, x: Any) -> list[jax.Array]:
        convolved = self._apply(Stem(self._config), "root_block", x)
        return [convolved, max_pool(convolved)]

    def unit(self, stage: int, layer: int, x: Any) -> Any:
        return self._apply(Unit(self._config, stage, layer == 0), unit_name(stage, layer), x)

    def pooled(self, x: Any) -> list[jax.Array]:
        normalized = nn.relu(self._apply(GroupNorm(self._config.num_groups), "norm-pre-head", x))
        return [normalized, jnp.mean(normalized, axis=(1, 2))]

    def logits(self, x: Any) -> jax.Array:
        count, logits = self._config.num_labels, []
        for classes in by_channels(count, 8 * count * self._config.hidden_sizes[-1]):
            head = nn.Dense(len(range(count)[classes]), precision=jax.lax.Precision.HIGHEST)
            logits.append(self._apply(head, "conv_head", x, classes))
        return jnp.concatenate(logits, axis=1)

    def _apply(self, module: nn.Module, path: str, x: np.ndarray[Any, Any], channels: slice = ALL) -> Any:
        """Run a module whose layers are given their weights as they run, the output `channels` of them."""

        def intercept(call: Callable[..., Any], arguments: Any, options: Any, context: Any) -> Any:
            layer = context.module
            if "params" in layer.variables or not isinstance(layer, LAYERS):
                return call(*arguments, **options)
            weights = self._weights("/".join((path, *layer.path)), channels)
            result = _compiled(layer.clone(parent=None, name=None))(weights, *arguments)
            return jax.block_until_ready(result)  # before the next layer's weights are read

        with nn.intercept_methods(intercept):
            return module.apply({}, x)

    def _weights(self, layer: str, channels: slice) -> dict[str, jax.Array]:
        """Return the parameters of one layer by the layer's names for them."""
        weights = {}
        for name in ("kernel", "scale", "bias"):
            if place := self._places.get(f"{layer}/{name}"):
                value = self._checkpoint.weights(place.name, channels, axes=FLAX.axes(place), dtype=self.dtype)
                weights[name] = jax.device_put(value)
                del value
        jax.block_until_ready(weights)
        gc.collect(0)  # only then does JAX free the arrays that it has copied
        return weights


@cache
def _compiled(layer: nn.Module) -> Callable[..., Any]:
    """Return the layer compiled: it takes a third of the time of single operations."""
    return jax.jit(lambda params, x: layer.apply({"params": params}, x))
