"""Every implementation computes the oracle's function at every height and width, and they refuse the same images."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file
from support.conversions import convert
from support.memory import seeded
from support.networks import TINY
from transformers.models.bit.modeling_bit import WeightStandardizedConv2d

import bit.flax
import bit.keras
from bit.config import NORM_EPS, BitConfig
from bit.image_processing import BitImageProcessorPil
from bit.images import check_images
from bit.model import BitBackbone, BitForImageClassification
from convert.files.base import file_sha256
from convert.layouts import READABLE
from convert.network.inputs import images
from convert.network.oracle import Oracle
from convert.network.runner import run_network
from convert.network.taps import parts
from convert.references import timm
from convert.sources.synthetic import write_npz
from convert.verification.metrics import relative_l2
from convert.verification.results import FLOAT64_TOLERANCE
from convert.verification.tap_errors import FLOAT32_FACTOR

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")

Run = Callable[[NDArray[Any]], Any]
"""Returns the logits of images `[N, H, W, C]`."""
Sizes = Sequence[tuple[int, int]]

CHANNELS = (3, 1, 4)
SIDES = range(1, 81)
EVERY = list(itertools.product(SIDES, SIDES))
_draw = random.Random(0)
CORNERS = [(1, 1), (2, 2), (3, 3), (1, 80), (79, 2), (4, 5), (8, 9), (16, 33), (64, 65)]
"""The shortest sides, and sides at and beside the strides of the layers, alone and together."""
SAMPLE = [*CORNERS, *_draw.sample(EVERY, 3)]
DENSE = [*CORNERS, *((side, side) for side in SIDES), *_draw.sample(EVERY, 400)]
LEAST_ERROR = 2**-24 / NORM_EPS**0.5
"""Smallest error that is taken for the oracle's in float32, where it is smaller by chance: the rounding of one
operation, as a norm of few and nearly equal values enlarges it."""
LAST_STRIDE = 8
"""Pixels to one of the last map: 2 for the stem, 2 for the pooling, 2 for the second stage."""


class Implementation(NamedTuple):
    dtype: str
    run: Run


class Case(NamedTuple):
    """A network with two channels a group, so that the other libraries run it on one pixel, too."""

    channels: int
    oracle: Run
    oracle32: Run
    others: dict[str, Implementation]


def network(channels: int) -> BitConfig:
    return BitConfig(num_channels=channels, embedding_size=64, hidden_sizes=(256, 512), depths=(1, 1), num_labels=5)


def oracle(config: BitConfig, dtype: type[np.floating[Any]]) -> Run:
    implementation = Oracle(seeded(config).weights, config, dtype=dtype)

    def run(x: NDArray[Any]) -> Any:
        *_, (_, logits) = run_network(implementation, config, {"": x})
        return logits[""]

    return run


def in_torch(model: torch.nn.Module) -> Run:
    dtype = next(model.parameters()).dtype

    @torch.inference_mode()
    def run(x: NDArray[Any]) -> Any:
        found = model(torch.from_numpy(np.moveaxis(x, -1, 1).copy() if x.ndim == 4 else x).to(dtype))
        return getattr(found, "logits", found).numpy()

    return run


def in_transformers(folder: Path, config: BitConfig) -> torch.nn.Module:
    model = transformers.BitForImageClassification.from_pretrained(folder).double().eval()
    for module in model.modules():
        if isinstance(module, WeightStandardizedConv2d):
            module.eps = config.ws_eps
    return model


def in_timm(folder: Path, config: BitConfig) -> torch.nn.Module:
    model = timm.build(config)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.double().eval()


def in_flax(folder: Path) -> Run:
    import jax
    from flax import nnx

    graph, params = nnx.split(bit.flax.load(folder))
    compiled = jax.jit(lambda params, x: nnx.merge(graph, params)(x))

    def run(x: NDArray[Any]) -> Any:
        with jax.enable_x64(True):
            return np.asarray(compiled(jax.tree.map(np.float64, params), x.astype(np.float64)))

    return run


def in_onnxruntime(folder: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"pixel_values": np.moveaxis(x, -1, 1)})[0]


@pytest.fixture(
    scope="module",
    params=[3, *(pytest.param(number, marks=pytest.mark.long) for number in (1, 4))],
    ids="{} channels".format,
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder, config = tmp_path_factory.mktemp("sizes"), network(request.param)
    write_npz(folder / "small.npz", config)
    to = {
        name: convert(folder / "small.npz", name, folder / name)
        for name in ("transformers", "timm", "flax", "keras", "onnx")
    }
    ours = BitForImageClassification.from_pretrained
    keras_model = bit.keras.load(to["keras"], "float64")
    others = {
        "bit": Implementation("float64", in_torch(ours(to["transformers"]).double().eval())),
        "bit, for_inference": Implementation("float64", in_torch(ours(to["transformers"]).double().for_inference())),
        "bit, packed": Implementation("float32", in_torch(ours(to["transformers"]).for_inference())),
        "transformers": Implementation("float64", in_torch(in_transformers(to["transformers"], config))),
        "timm": Implementation("float64", in_torch(in_timm(to["timm"], config))),
        "bit.flax": Implementation("float64", in_flax(to["flax"])),
        "bit.keras": Implementation("float64", lambda x: np.asarray(keras_model(x.astype(np.float64)))),
        "ONNX Runtime": Implementation("float32", in_onnxruntime(to["onnx"])),
    }
    return Case(request.param, oracle(config, np.float64), oracle(config, np.float32), others)


def disagreements(case: Case, sizes: Sizes, names: Sequence[str]) -> Iterator[tuple[str, int, int, float]]:
    """Yield every implementation, size and error over the tolerance; there are one to three images of each size."""
    for number, (height, width) in enumerate(sizes):
        x = images(number, number % 3 + 1, height, width, case.channels)
        expected = case.oracle(x)
        # With one pixel in the last map, norms of two values follow each other: rounding to float32 may decide all.
        well_conditioned = max(height, width) > LAST_STRIDE
        float32 = well_conditioned and any(case.others[name].dtype == "float32" for name in names)
        error32 = max(relative_l2(case.oracle32(x), expected), LEAST_ERROR) if float32 else math.inf
        for name in names:
            dtype, run = case.others[name]
            logits = run(x)
            assert np.isfinite(logits).all()
            error = relative_l2(logits, expected)
            if not error <= (FLOAT64_TOLERANCE if dtype == "float64" else FLOAT32_FACTOR * error32):
                yield name, height, width, error


def test_sampled_sizes_give_the_oracles_logits(case: Case) -> None:
    assert list(disagreements(case, SAMPLE, [name for name in case.others if name != "bit.flax"])) == []
    # JAX compiles anew for each size.
    assert list(disagreements(case, SAMPLE[CHANNELS.index(case.channels) :: 6], ["bit.flax"])) == []


@pytest.mark.long
def test_every_size_gives_the_oracles_logits_in_pytorch(case: Case) -> None:
    assert list(disagreements(case, EVERY, ["bit"])) == []


@pytest.mark.long
def test_many_sizes_give_the_oracles_logits_everywhere(case: Case) -> None:
    assert list(disagreements(case, DENSE, [name for name in case.others if name != "bit.flax"])) == []
    assert list(disagreements(case, DENSE[::6], ["bit.flax"])) == []


ONE_PIXEL = images(0, 1, 1, 1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_npz: Path) -> dict[str, Path]:
    """Conversions of a network with one channel a group."""
    folder = tmp_path_factory.mktemp("tiny")
    return {name: convert(tiny_npz, name, folder / name) for name in ("transformers", "timm", "flax", "keras", "onnx")}


def test_one_image_of_one_value_a_group_is_run_by_ours_and_by_onnx_runtime_alone(folders: dict[str, Path]) -> None:
    """PyTorch's own group normalization refuses it, though not two such images."""
    model = BitForImageClassification.from_pretrained(folders["transformers"])
    expected = oracle(TINY, np.float64)(ONE_PIXEL)
    assert relative_l2(in_torch(model.double().eval())(ONE_PIXEL), expected) < FLOAT64_TOLERANCE
    fast = BitForImageClassification.from_pretrained(folders["transformers"]).for_inference()
    for run in (in_torch(fast), in_onnxruntime(folders["onnx"])):
        assert relative_l2(run(ONE_PIXEL), expected) < FLOAT32_FACTOR * LEAST_ERROR
    for run in (in_flax(folders["flax"]), bit.keras.load(folders["keras"], "float64")):
        assert relative_l2(np.asarray(run(ONE_PIXEL.astype(np.float64))), expected) < FLOAT64_TOLERANCE
    for theirs in (in_transformers(folders["transformers"], TINY), in_timm(folders["timm"], TINY)):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            in_torch(theirs)(ONE_PIXEL)


EXPECTED = "expected images with 4 axes, 3 channels, and a height and a width of at least 1 pixel; found "
REFUSED = {
    (1, 0, 5, 3): "a height of 0 and a width of 5",
    (2, 5, 0, 3): "a height of 5 and a width of 0",
    (1, 0, 0, 3): "a height of 0 and a width of 0",
    (1, 8, 8, 1): "1 channel",
    (1, 8, 8, 4): "4 channels",
    (1, 0, 8, 4): "4 channels",
    (0, 8, 8, 3): "no image",
    (8, 8, 3): "3 axes",
    (3,): "1 axis",
    (1, 1, 8, 8, 3): "5 axes",
}


def test_all_of_ours_refuse_the_same_images_with_the_same_sentence(folders: dict[str, Path]) -> None:
    model = BitForImageClassification.from_pretrained(folders["transformers"])
    of_keras = bit.keras.load(folders["keras"])
    weights = Oracle(seeded(TINY).weights, TINY)
    runs: dict[str, Run] = {
        "oracle": oracle(TINY, np.float64),
        "the stem of the oracle": lambda x: weights.run(parts(TINY)[0], {"": x}),
        "bit": in_torch(model),
        "bit.BitBackbone": in_torch(BitBackbone(TINY)),
        "bit, for_inference": in_torch(
            BitForImageClassification.from_pretrained(folders["transformers"]).for_inference()
        ),
        "bit.flax": in_flax(folders["flax"]),
        "bit.keras": of_keras,
        "bit.keras, taps": of_keras.taps,
    }
    for shape, found in REFUSED.items():
        for name, run in runs.items():
            with pytest.raises(ValueError, match=re.escape(EXPECTED + found)) as raised:
                run(np.zeros(shape, np.float32))
                pytest.fail(f"{name} accepts {shape}")
            assert str(raised.value) == EXPECTED + found, name


def test_images_without_pixels_or_of_other_channels_are_refused_by_other_libraries_too(
    folders: dict[str, Path],
) -> None:
    theirs = (
        in_torch(in_transformers(folders["transformers"], TINY)),
        in_torch(in_timm(folders["timm"], TINY)),
        in_onnxruntime(folders["onnx"]),
    )
    for shape, run in itertools.product(((1, 0, 5, 3), (2, 5, 0, 3), (1, 8, 8, 1), (1, 8, 8, 4)), theirs):
        with pytest.raises(Exception, match=r"\S"):  # each library has an error of its own
            run(np.zeros(shape, np.float32))


@pytest.mark.parametrize("size", [-1, -80])
def test_a_negative_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"^{EXPECTED}a height of {size} and a width of 5$"):
        check_images(TINY, (1, size, 5, 3))
    with pytest.raises(ValueError, match=f"^{EXPECTED}a height of 5 and a width of {size}$"):
        check_images(TINY, (1, 3, 5, size), channels_last=False)


@pytest.mark.parametrize("layer_type", ["preactivation", "bottleneck"])
@pytest.mark.parametrize(("padding", "dynamic"), [(None, False), (None, True), ("SAME", False), ("SAME", True)])
def test_the_smallest_image_is_the_smallest_that_the_layers_can_run(
    padding: str | None, dynamic: bool, layer_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TINY.replace(global_padding=padding, embedding_dynamic_padding=dynamic, layer_type=layer_type)
    model = BitForImageClassification(config).eval()
    monkeypatch.setattr("bit.model.check_images", lambda *values, **options: None)
    least = config.smallest_image
    for height, width in ((least, least), (least, 9), (9, least)):
        assert in_torch(model)(np.zeros((1, height, width, 3), np.float32)).shape == (1, 5)
    with pytest.raises(RuntimeError):
        in_torch(model)(np.zeros((1, least - 1, least, 3), np.float32))


@pytest.mark.parametrize("channels", [1, 4])
def test_a_network_of_any_number_of_channels_converts_through_every_layout(tmp_path: Path, channels: int) -> None:
    source = tmp_path / "tiny.npz"
    write_npz(source, TINY.replace(num_channels=channels))
    for layout in READABLE:
        back = convert(convert(source, layout, tmp_path / layout), "google", tmp_path / f"{layout}-back")
        assert file_sha256(back / source.name) == file_sha256(source), layout


@pytest.mark.parametrize("profile", ["google", "timm", "transformers"])
def test_prepared_images_are_accepted(profile: str) -> None:
    processor = BitImageProcessorPil.from_profile(profile)
    for height, width in ((1, 1), (3, 70), (40, 2)):
        prepared = processor(np.zeros((height, width, 3), np.uint8), return_tensors="np")["pixel_values"]
        check_images(TINY, prepared.shape, channels_last=False)


class Logits(torch.nn.Module):
    """The logits alone, which PyTorch can export."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x).logits


def test_an_exported_network_runs_at_even_and_odd_sizes(folders: dict[str, Path]) -> None:
    model = BitForImageClassification.from_pretrained(folders["transformers"]).eval()
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    with torch.no_grad():
        exported = torch.export.export(Logits(model), (torch.rand(2, 3, 33, 40),), dynamic_shapes={"x": free})
        for shape in ((2, 3, 33, 40), (2, 3, 35, 42), (3, 3, 50, 21), (2, 3, 64, 64)):
            x = torch.rand(shape)
            torch.testing.assert_close(exported.module()(x), model(x).logits)


def test_a_compiled_network_is_compiled_once_for_all_sizes(folders: dict[str, Path]) -> None:
    model, graphs = BitForImageClassification.from_pretrained(folders["transformers"]).eval(), []

    def kept(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, backend=kept, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for shape in ((2, 3, 33, 40), (2, 3, 34, 41), (3, 3, 50, 21), (2, 3, 64, 64)):
            x = torch.rand(shape)
            torch.testing.assert_close(compiled(x).logits, model(x).logits)
    assert len(graphs) == 1


def test_sizes_that_are_unknown_while_a_graph_is_traced_stay_free(folders: dict[str, Path]) -> None:
    import jax
    import keras
    import tensorflow as tf

    model = bit.keras.load(folders["keras"])
    whole = keras.Model(given := keras.Input((None, None, 3)), model(given))
    traced = tf.function(model, input_signature=[tf.TensorSpec((None, None, None, 3))])
    x = images(0, 2, 9, 6)
    for run in (whole, traced):
        np.testing.assert_allclose(np.asarray(run(x)), np.asarray(model(x)), rtol=1e-5, atol=1e-5)
    shape = jax.export.symbolic_shape("n, h, w, 3")
    abstract = jax.ShapeDtypeStruct(shape, np.float32)
    found = jax.eval_shape(bit.flax.load(folders["flax"]), abstract)
    assert [str(size) for size in found.shape] == ["n", "5"]
