"""Operators on the function of the network: `bit`'s PyTorch model with one layer, or all, computing something else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
from mutants import layers
from mutants.mutant import Operator
from mutants.networks import Base
from support.faults import pool_stem, same_pool
from torch import Tensor, nn
from torch.nn import functional

from bit.layers import Unit, max_pool
from convert.network.taps import parts

Edit = Callable[[Any], None]
"""Changes a module, or the whole model."""
ALL = "all"


def _module(base: Base, network: nn.Module, place: str) -> Any:
    """Return the layer or unit with a canonical name, `block1/unit01/conv2`."""
    if place in ("stem", "norm"):
        return network.get_submodule({"stem": "bit.embedder.convolution", "norm": "bit.norm"}[place])
    block, unit, *layer = place.split("/")
    found = network.get_submodule(f"bit.encoder.stages.{int(block[5:]) - 1}.layers.{int(unit[4:]) - 1}")
    return found.get_submodule(layer[0].replace("projection", "downsample.conv")) if layer else found


def _names(base: Base, *ends: str) -> list[str]:
    return [name.rpartition("/")[0] for name in base.weights if name.endswith(ends) and not name.startswith("head")]


def _convolutions(base: Base) -> list[str]:
    return _names(base, "/kernel")


def _norms(base: Base) -> list[str]:
    return _names(base, "/scale")


def _units(base: Base) -> list[str]:
    return [part.name for part in parts(base.config) if part.kind == "unit"]


def _windows(base: Base) -> list[str]:
    return _names(base, "stem/kernel", "conv2/kernel")


def _with_all(find: Callable[[Base], list[str]]) -> Callable[[Base], list[str]]:
    return lambda base: [ALL, *find(base)]


def _operator(name: str, words: str, find: Callable[[Base], list[str]], edit: Edit, same: str = "") -> Operator:
    def apply(base: Base, place: str, rng: Random) -> tuple[list[str], Callable[[nn.Module], None]]:
        places = [item for item in find(base) if item != ALL] if place == ALL else [place]

        def change(network: nn.Module) -> None:
            for item in places:
                edit(network if item in ("pooling", "head", "mean") else _module(base, network, item))

        return places, change

    return Operator("network", name, words, find, apply, same)


def _become(kind: type[nn.Module]) -> Edit:
    def edit(module: nn.Module) -> None:
        module.__class__ = kind

    return edit


def _set(**values: Any) -> Edit:
    def edit(module: nn.Module) -> None:
        for name, value in values.items():
            setattr(module, name, value)

    return edit


def _groups(count: int) -> tuple[Callable[[Base], list[str]], Edit]:
    def edit(module: nn.GroupNorm) -> None:
        module.num_groups = count or module.num_channels

    def places(base: Base) -> list[str]:
        widths = {name: len(base.weights[f"{name}/scale"]) for name in _norms(base)}
        return [name for name, width in widths.items() if (count or width) != 32 and width % (count or 1) == 0]

    return places, edit


def _forward(compute: Callable[[Unit, Tensor], Tensor]) -> Edit:
    def edit(unit: Unit) -> None:
        unit.forward = lambda x: compute(unit, x)  # type: ignore[method-assign]

    return edit


def _residual(unit: Unit, activated: Tensor) -> Tensor:
    return unit.conv3(unit.norm3(unit.conv2(unit.norm2(unit.conv1(activated)))))  # type: ignore[no-any-return]


def _shortcut(unit: Unit, x: Tensor, activated: Tensor) -> Tensor:
    return x if unit.downsample is None else unit.downsample(activated)


def _raw(unit: Unit, x: Tensor) -> Tensor:
    return _residual(unit, unit.norm1(x.clone())) + _shortcut(unit, x, x)


def _unactivated(unit: Unit, x: Tensor) -> Tensor:
    activation, unit.norm1.activation = unit.norm1.activation, nn.Identity()
    normalized = unit.norm1(x.clone())
    unit.norm1.activation = activation
    return _residual(unit, functional.relu(normalized)) + _shortcut(unit, x, normalized)


def _relu_last(unit: Unit, x: Tensor) -> Tensor:
    activated = unit.norm1(x.clone())
    return functional.relu(_residual(unit, activated) + _shortcut(unit, x, activated))


def _without_shortcut(unit: Unit, x: Tensor) -> Tensor:
    return _residual(unit, unit.norm1(x.clone()))


def _twice(unit: Unit, x: Tensor) -> Tensor:
    activated = unit.norm1(x.clone())
    return _residual(unit, activated) + 2 * _shortcut(unit, x, activated)


def _exchange_strides(name: str) -> Edit:
    def edit(unit: Unit) -> None:
        other = getattr(unit, name)
        unit.conv2.stride, other.stride = other.stride, unit.conv2.stride

    return edit


def _strided(base: Base) -> list[str]:
    return [part.name for part in parts(base.config) if part.kind == "unit" and part.stage and not part.layer]


def _projected(base: Base) -> list[str]:
    return [part.name for part in parts(base.config) if part.kind == "unit" and not part.layer]


def _strided_projections(base: Base) -> list[str]:
    return [f"{unit}/projection" for unit in _strided(base)]


def _every_stride(value: int) -> Edit:
    def edit(unit: Unit) -> None:
        assert unit.downsample is not None
        unit.conv2.stride = unit.downsample.conv.stride = (value, value)

    return edit


def _of_implementation(name: str, words: str, places: Callable[[Base], Sequence[str]], edit: Edit) -> Operator:
    """Return an operator on the steps of an implementation, not on a module."""

    def apply(base: Base, place: str, rng: Random) -> tuple[list[str], Edit]:
        def change(network: nn.Module) -> None:
            edit(network)

        change.whole = True  # type: ignore[attr-defined]
        return [place], change

    return Operator("network", name, words, places, apply)


def _max_mean(implementation: Any) -> None:
    original = implementation.pooled
    implementation.pooled = lambda x: [original(x)[0], original(x)[0].amax((2, 3))]


def _without_bias(implementation: Any) -> None:
    original = implementation.logits

    def logits(x: Tensor) -> Tensor:
        return original(x) - original(torch.zeros_like(x))  # type: ignore[no-any-return]

    implementation.logits = logits


def _softmax(implementation: Any) -> None:
    original = implementation.logits
    implementation.logits = lambda x: original(x).softmax(1)


def _only(*places: str) -> Callable[[Base], list[str]]:
    return lambda base: list(places)


_EPSILON = "epsilon {:g} instead"
_RELU = "a ReLU of a ReLU is that ReLU, bit for bit"
OPERATORS = (
    *(
        _operator(
            f"epsilon of kernels {eps:g}",
            f"standardized with {_EPSILON.format(eps)}",
            _with_all(_convolutions),
            _set(eps=eps),
        )
        for eps in (1e-12, 1e-8, 1e-6, 1e-5, 1e-3)
    ),
    _operator("kernel not standardized", "kernels are not standardized", _with_all(_convolutions), _set(folded=True)),
    _operator(
        "unbiased variance of kernels", "with the unbiased variance", _with_all(_convolutions), _become(layers.Unbiased)
    ),
    _operator("epsilon outside of the root", "outside of the root", _with_all(_convolutions), _become(layers.Outside)),
    _operator("mean of kernels not subtracted", "not subtracted", _with_all(_convolutions), _become(layers.Uncentered)),
    _operator(
        "kernels not divided by the deviation", "not divided", _with_all(_convolutions), _become(layers.Centered)
    ),
    _operator("padded by reflection", "padded by reflection", _windows, _become(layers.Bordered)),
    _operator("padded by the border", "repeating the border", _windows, _become(layers.Replicated)),
    _operator("padded by wrapping around", "wrapping around", _windows, _become(layers.Circular)),
    _operator(
        "padded with SAME",
        "padded with TensorFlow's SAME",
        _windows,
        _become(layers.Same),
        "with stride 1, SAME is half the kernel on each side",
    ),
    _operator("stem not padded", "not padded", _only("stem"), _set(padding=(0, 0))),
    _operator("stem without stride", "the stride is 1", _only("stem"), _set(stride=(1, 1))),
    _operator(
        "dilated", "dilated by 2", lambda base: _names(base, "conv2/kernel"), _set(dilation=(2, 2), padding=(2, 2))
    ),
    _operator("convolution turned", "turned by 180°", _windows, _become(layers.Turned)),
    *(
        _operator(f"epsilon of norms {eps:g}", f"norms have {_EPSILON.format(eps)}", _with_all(_norms), _set(eps=eps))
        for eps in (1e-12, 1e-8, 1e-6, 1e-3)
    ),
    _operator("unbiased variance of norms", "unbiased variance", _with_all(_norms), _become(layers.UnbiasedNorm)),
    *(_operator(f"norms of {count} groups", f"norms have {count} groups", *_groups(count)) for count in (1, 8, 16, 64)),
    _operator("norms with a group for each channel", r"a group for each channel|norms have \d+ groups", *_groups(0)),
    _operator("ReLU missing", "ReLU is left out", _with_all(_norms), _set(activation=nn.Identity())),
    _operator("ReLU doubled", "", _with_all(_norms), _set(activation=nn.Sequential(nn.ReLU(), nn.ReLU())), _RELU),
    _operator("leaky ReLU", "leaky", _with_all(_norms), _set(activation=nn.LeakyReLU())),
    _operator("SiLU in place of the ReLU", "SiLU", _with_all(_norms), _set(activation=nn.SiLU())),
    _operator("GELU in place of the ReLU", "GELU", _with_all(_norms), _set(activation=nn.GELU())),
    _operator(
        "ReLU6 in place of the ReLU", "ReLU6", _with_all(_norms), _set(activation=nn.ReLU6()), "no activation exceeds 6"
    ),
    _operator("ReLU before the norm", "before the norm", _with_all(_norms), _become(layers.ReluFirst)),
    _operator("norm without scale and bias", "scale and bias are left out", _with_all(_norms), _become(layers.Plain)),
    _operator("norm without bias", "bias is left out", _with_all(_norms), _become(layers.NoShift)),
    _operator("norm left out", "norm is left out", _norms, _become(layers.NoNorm)),
    _operator("scale added to 1", "scale is added to 1", _with_all(_norms), _become(layers.OneMore)),
    _operator("stride on the first convolution", "first convolution", _strided, _exchange_strides("conv1")),
    _operator("stride on the third convolution", "third convolution", _strided, _exchange_strides("conv3")),
    _operator("unit without stride", "stride of the unit is 1", _strided, _every_stride(1)),
    _operator("projection pooled first", "average pooling", _strided_projections, _become(layers.PooledFirst)),
    _operator(
        "first unit with a stride", "stride of the unit is 2", lambda base: _projected(base)[:1], _every_stride(2)
    ),
    _operator("projection of the raw input", "raw input", _projected, _forward(_raw)),
    _operator("projection before the ReLU", "before the ReLU", _projected, _forward(_unactivated)),
    _operator("ReLU after the addition", "ReLU follows the addition", _with_all(_units), _forward(_relu_last)),
    _operator("shortcut left out", "shortcut is left out", _with_all(_units), _forward(_without_shortcut)),
    _operator("shortcut added twice", "shortcut is added twice", _with_all(_units), _forward(_twice)),
    *(
        _operator(f"stem pooled {name}", words, _only("pooling"), pool_stem(pool))
        for name, words, pool in (
            ("with −∞", "border of −∞", lambda x: functional.max_pool2d(x, 3, 2, 1)),
            ("with SAME", "SAME", same_pool),
            (
                "by reflection",
                "by reflection|border of −∞",
                lambda x: functional.max_pool2d(functional.pad(x, (1,) * 4, "reflect"), 3, 2),
            ),
            ("without a border", "without a border", lambda x: functional.max_pool2d(x, 3, 2)),
            (
                "with ceil_mode",
                "ceil_mode",
                lambda x: functional.max_pool2d(
                    functional.pad(x, (1, 2 - x.shape[3] % 2, 1, 2 - x.shape[2] % 2)), 3, 2
                ),
            ),
            ("by 2×2", "2×2", lambda x: functional.max_pool2d(x, 2, 2)),
            ("by the mean", "by the mean", lambda x: functional.avg_pool2d(x, 3, 2, 1)),
            ("after a ReLU", "ReLU precedes", lambda x: max_pool(functional.relu(x))),
            ("not at all", "not pooled", lambda x: x),
        )
    ),
    _of_implementation("maximum in place of the mean", "maximum instead of the mean", _only("mean"), _max_mean),
    _of_implementation("head without bias", "bias of the head", _only("head"), _without_bias),
    _of_implementation("softmax in the head", "softmax", _only("head"), _softmax),
)
