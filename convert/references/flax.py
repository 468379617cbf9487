"""`bit.flax` as a reference, fed from an opened checkpoint of any layout; layers hold no weights between runs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from bit.flax import LAST_NORM, GroupNorm, Head, StandardizedConv, Stem, Unit, max_pool
from convert.checkpoints.checkpoint import Checkpoint
from convert.layouts.flax import FLAX
from convert.network.axes import Transform
from convert.network.gradients import Differentiable, PartGradients
from convert.network.parameters import ALL, KINDS, Place, parameters, unit_name
from convert.network.runner import Batches, by_channels, compute, run_each
from convert.network.taps import Part

LAYERS = (StandardizedConv, GroupNorm, Head)
"""The layers that have parameters."""
Abstract = tuple[nnx.GraphDef[Any], nnx.State[Any, Any]]
"""A module without values: its structure, and the shapes of its parameters."""


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
        self._parts: dict[tuple[str, int, bool, int], Abstract] = {}
        self._differentiated: dict[tuple[str, int, bool], Callable[..., Any]] = {}
        self._places = {FLAX.key(item.place): item.place for item in parameters(checkpoint.config)}

    def run(self, part: Part, x: Batches) -> list[Batches]:
        if part.kind == "unit" and part.layer == 0:  # the shapes of the stage before do not come again
            jax.clear_caches()
        return run_each(partial(compute, self, part), x, self.dtype)

    def differentiate(self, part: Part, x: Batches, cotangents: Batches) -> PartGradients:
        """Return the gradients of a part by JAX's automatic differentiation, see `Differentiable`."""
        path = {"stem": "root_block", "unit": part.prefix, "pooled": LAST_NORM, "logits": "conv_head"}[part.kind]
        mine = {key: place for key, place in self._places.items() if key.startswith(f"{path}/")}
        weights = unflatten_dict(self._stored(path, mine), sep="/")
        differentiated = self._gradients(part.kind, part.stage, part.layer == 0)
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

    def _gradients(self, kind: str, stage: int, first: bool) -> Callable[..., Any]:
        """Return the compiled gradients of a kind of part with respect to parameters and input."""
        if (kind, stage, first) not in self._differentiated:
            graph, _ = self._abstract(kind, stage, first, self._config.num_labels)
            ends: dict[str, Callable[[Any], Any]] = {
                "stem": max_pool,
                "pooled": lambda x: jnp.mean(nnx.relu(x), axis=(1, 2)),
            }

            def forward(params: Any, x: Any) -> Any:
                module: Any = nnx.merge(graph, params)
                y = module(x)
                return ends[kind](y) if kind in ends else y

            self._differentiated[kind, stage, first] = jax.jit(lambda params, x, c: jax.vjp(forward, params, x)[1](c))
        return self._differentiated[kind, stage, first]

    def stem(self, x: Any) -> list[jax.Array]:
        convolved = self._run(self._abstract("stem"), "root_block", x)
        return [convolved, max_pool(convolved)]

    def unit(self, stage: int, layer: int, x: Any) -> Any:
        return self._run(self._abstract("unit", stage, layer == 0), unit_name(stage, layer), x)

    def pooled(self, x: Any) -> list[jax.Array]:
        normalized = nnx.relu(self._run(self._abstract("pooled"), LAST_NORM, x))
        return [normalized, jnp.mean(normalized, axis=(1, 2))]

    def logits(self, x: Any) -> jax.Array:
        count, logits = self._config.num_labels, []
        for classes in by_channels(count, 8 * count * self._config.hidden_sizes[-1]):
            head = self._abstract("logits", classes=len(range(count)[classes]))
            logits.append(self._run(head, "conv_head", x, classes))
        return jnp.concatenate(logits, axis=1)

    def _abstract(self, kind: str, stage: int = 0, first: bool = True, classes: int = 0) -> Abstract:
        """Return a kind of part without values, by `nnx.split`."""
        if (kind, stage, first, classes) not in self._parts:
            config, channels = self._config, self._config.hidden_sizes[-1]
            make: dict[str, Callable[[], nnx.Module]] = {
                "stem": lambda: Stem(config, rngs=nnx.Rngs(0)),
                "unit": lambda: Unit(config, stage, first, rngs=nnx.Rngs(0)),
                "pooled": lambda: GroupNorm(channels, config.num_groups),
                "logits": lambda: Head(channels, classes, rngs=nnx.Rngs(0)),
            }
            self._parts[kind, stage, first, classes] = nnx.split(nnx.eval_shape(make[kind]))
        return self._parts[kind, stage, first, classes]

    def _run(self, part: Abstract, path: str, x: Any, channels: slice = ALL) -> Any:
        """Run a part whose layers are given their weights as they run, the output `channels` of them."""
        module = nnx.merge(*part)
        if isinstance(module, LAYERS):
            return self._layer(path, part[0], channels, x)
        for name, layer in list(vars(module).items()):
            if isinstance(layer, LAYERS):
                setattr(module, name, partial(self._layer, f"{path}/{name}", nnx.split(layer)[0], channels))
        return module(x)

    def _layer(self, path: str, graph: nnx.GraphDef[Any], channels: slice, x: Any) -> jax.Array:
        result: jax.Array = _compiled(graph)(self._weights(path, channels), x)
        return result.block_until_ready()  # before the next layer's weights are read

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
def _compiled(graph: nnx.GraphDef[Any]) -> Callable[..., Any]:
    """Return the layer compiled: it takes a third of the time of single operations."""
    return jax.jit(lambda params, x: nnx.merge(graph, params)(x))
