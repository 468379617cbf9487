"""`bit.flax`, an implementation that shares no code with the oracle, compared with Google's recordings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from numpy.typing import NDArray
from support.conversions import convert
from support.networks import TINY
from support.recordings import float32_error

from bit import flax as bit_flax
from bit.config import BitConfig
from convert.checkpoints.checkpoint import Checkpoint
from convert.files.base import file_sha256
from convert.layouts import LAYOUTS
from convert.network.inputs import images
from convert.network.parameters import parameters
from convert.network.runner import run_network
from convert.network.taps import summarize, tap_names
from convert.references.recordings import find_recordings
from convert.verification.metrics import summary_error
from convert.verification.results import FLOAT64_TOLERANCE
from convert.verification.tap_errors import FLOAT32_FACTOR

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")


def in_dtype(model: bit_flax.BiT, dtype: str) -> bit_flax.BiT:
    graph, params = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(lambda value: np.asarray(value, dtype), params))


def named(state: nnx.State) -> dict[str, NDArray[np.generic]]:
    return {"/".join(map(str, path)): np.asarray(leaf) for path, leaf in nnx.to_flat_state(state)}


def test_the_parameters_have_the_names_of_googles_jax_code(tiny_npz: Path, tmp_path: Path) -> None:
    model = bit_flax.load(convert(tiny_npz, "flax", tmp_path / "out"))
    layout = LAYOUTS["flax"]
    expected = {layout.key(item.place): layout.shape(item) for item in parameters(model.config)}
    assert {key: value.shape for key, value in named(nnx.state(model)).items()} == expected
    assert {leaf.dtype for leaf in named(nnx.state(model)).values()} == {np.dtype(np.float32)}


def test_labels_do_not_keep_a_model_from_being_compiled_once(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "flax", tmp_path / "out")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"id2label": {str(n): f"class {n}" for n in range(5)}}))
    traced = []

    @nnx.jit
    def run(model: bit_flax.BiT, images: jax.Array) -> jax.Array:
        traced.append(model.config.id2label)
        return model(images)

    models = bit_flax.load(folder), bit_flax.load(folder)
    results = [np.asarray(run(model, images(3, 1, 16, 16))) for model in models]
    assert len(traced) == 1
    np.testing.assert_array_equal(*results)


SMALL = BitConfig(embedding_size=32, hidden_sizes=(128,), depths=(1,), num_labels=2)
"""One unit: JAX compiles longer than everything else takes."""


def test_a_step_of_nnx_trains_it_and_linen_can_apply_it() -> None:
    model, batch = bit_flax.BiT(SMALL, rngs=nnx.Rngs(0)), images(3, 2, 16, 16)
    model.conv_head.kernel[...] = np.random.default_rng(0).normal(size=(128, 2)).astype(np.float32)
    graph, before = nnx.split(model)
    before = jax.tree.map(np.array, before)  # the model's own values will change

    @nnx.jit
    def step(model: bit_flax.BiT) -> tuple[jax.Array, jax.Array]:
        def loss(model: bit_flax.BiT) -> tuple[jax.Array, jax.Array]:
            logits = model(batch)
            return -jax.nn.log_softmax(logits)[:, 0].mean(), logits

        (value, logits), gradients = nnx.value_and_grad(loss, has_aux=True)(model)
        nnx.update(model, jax.tree.map(lambda value, gradient: value - 0.01 * gradient, nnx.state(model), gradients))
        return value, logits

    first, logits = step(model)
    assert float(step(model)[0]) < float(first)
    old, new = named(before), named(nnx.state(model))
    assert [name for name, value in new.items() if np.array_equal(value, old[name])] == []
    merged = jax.jit(lambda params, batch: nnx.merge(graph, params)(batch))(before, batch)
    np.testing.assert_allclose(merged, logits, rtol=1e-4, atol=1e-4)
    linen = nnx.bridge.to_linen(bit_flax.BiT, SMALL)
    applied = jax.jit(linen.apply)({"params": nnx.to_pure_dict(before)}, batch)
    np.testing.assert_allclose(applied, logits, rtol=1e-4, atol=1e-4)


def test_a_new_model_has_a_head_of_zeros_and_one_without_a_head_returns_features() -> None:
    new, headless = (bit_flax.BiT(SMALL.replace(num_labels=count), rngs=nnx.Rngs(0)) for count in (2, 0))
    taps = nnx.jit(lambda model, batch: model.taps(batch))(new, images(3, 1, 8, 8))
    assert np.any(taps["pooled"])
    assert not np.any(taps["logits"])
    found = jax.eval_shape(headless, images(3, 2, 8, 8))
    assert found.shape == (2, 128)


def test_it_computes_what_the_oracle_computes(tiny_npz: Path, tmp_path: Path) -> None:
    batch = images(3, 1, 33, 50)
    with jax.enable_x64(True), Checkpoint(tiny_npz) as checkpoint:
        model = in_dtype(bit_flax.load(convert(tiny_npz, "flax", tmp_path / "out")), "float64")
        taps = nnx.jit(lambda model, x: model.taps(x))(model, batch.astype(np.float64))
        assert sorted(taps) == sorted(tap_names(TINY))
        for tap, expected in run_network(checkpoint.oracle(), TINY, {"odd": batch}):
            np.testing.assert_allclose(np.asarray(taps[tap]), expected["odd"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("architecture", ["R14x1", pytest.param("R50x1", marks=pytest.mark.long)])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_it_computes_what_google_recorded(
    synthetic: Callable[[str], Path], tmp_path: Path, architecture: str, dtype: str
) -> None:
    recordings = find_recordings(file_sha256(synthetic(architecture)))
    assert recordings is not None
    folder = convert(synthetic(architecture), "flax", tmp_path / "out")
    with jax.enable_x64(dtype == "float64"):
        model = in_dtype(bit_flax.load(folder), dtype)
        for name, numbers in recordings.float64.inputs.items():
            taps = nnx.jit(lambda model, x: model.taps(x))(model, images(*numbers).astype(dtype))
            assert sorted(taps) == sorted(tap_names(BitConfig.from_architecture(architecture)))
            for tap, value in taps.items():
                assert value.dtype == dtype
                error = summary_error(summarize(tap, np.asarray(value)), recordings.float64.taps[name, tap])
                float32 = FLOAT32_FACTOR * float32_error(recordings, (name, tap))
                assert error < (FLOAT64_TOLERANCE if dtype == "float64" else float32), f"{tap} of {name}"


def test_a_folder_that_lacks_a_parameter_is_refused(tiny_npz: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = convert(tiny_npz, "flax", tmp_path / "out") / "model.safetensors"
    state = load_file(path)
    del state["block1/unit01/gn2/bias"]
    save_file(state, path)
    with pytest.raises(ValueError, match="missing block1/unit01/gn2/bias"):
        bit_flax.load(path.parent)


def test_a_damaged_file_and_a_hostile_config_are_refused(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "flax", tmp_path / "out")
    path, config = folder / "model.safetensors", folder / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "depths": [500, 500]}))
    with pytest.raises(ValueError, match="describes 1000 units"):
        bit_flax.load(folder)
    path.write_bytes(path.read_bytes()[:5])
    with pytest.raises(ValueError, match="is damaged"):
        bit_flax.load(folder)
