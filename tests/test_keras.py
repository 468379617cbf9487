"""`bit.keras`, an implementation that shares no code with the definition, held to Google's records."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch._dynamo  # noqa: F401 (with TensorFlow's LLVM already loaded, that of its triton aborts)
from numpy.typing import NDArray

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from bit.config import BitConfig
from bit.keras import BiT
from convert.checkpoint import Checkpoint
from convert.comparison import FLOAT32_FACTOR
from convert.files.tensors import file_sha256
from convert.parameters import parameters
from convert.references import recorded
from convert.taps import summarize, summary_error, tap_names

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")


def googles_tf2_names(path: Path) -> tuple[BitConfig, dict[str, NDArray[np.generic]]]:
    """A checkpoint's arrays under the names of Google's TF2 code; its head is a Dense."""
    with Checkpoint(path) as checkpoint:
        values = {}
        for item in parameters(checkpoint.config):
            name = checkpoint.layout.key(item.place).removeprefix("resnet/").replace("head/conv2d", "head/dense")
            values[name] = checkpoint.weights(item.name).astype(np.float32)
        return checkpoint.config, values


@pytest.mark.parametrize("architecture", ["R14x1", "R50x1"])
def test_it_computes_what_google_recorded(synthetic: Callable[[str], Path], architecture: str) -> None:
    records = recorded.find(file_sha256(synthetic(architecture)))
    assert records is not None
    config, values = googles_tf2_names(synthetic(architecture))
    model = BiT(config)
    model.set_named_weights(values)
    for name, numbers in records.truth.inputs.items():
        images = recorded.images(*numbers)
        taps = model.taps(images)
        assert list(taps) == tap_names(config)
        for tap, value in taps.items():
            error = summary_error(summarize(tap, np.asarray(value)), records.truth.taps[name, tap])
            assert error < FLOAT32_FACTOR * records.float32_error((name, tap)), f"{tap} of {name}"
        np.testing.assert_allclose(np.asarray(model(images)), np.asarray(taps["logits"]), rtol=1e-5, atol=1e-5)


def test_an_h5_of_googles_tf2_code_loads(tiny_npz: Path, tmp_path: Path) -> None:
    """As Keras 2 wrote it: a group for each layer, its weights under their full names inside."""
    config, values = googles_tf2_names(tiny_npz)
    layers = ["root_block", "block1", "block2", "group_norm", "re_lu", "global_average_pooling2d", "head/dense"]
    with h5py.File(tmp_path / "tiny.h5", "w") as file:
        file.attrs["layer_names"] = [layer.encode() for layer in layers]
        for layer in layers:
            group = file.create_group(layer)
            names = [f"{name}:0" for name in values if name.startswith(f"{layer}/")]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name in names:
                group[name] = values[name.removesuffix(":0")]
    model = BiT(config)
    model.load_google(tmp_path / "tiny.h5")
    for name, weight in model.named_weights().items():
        np.testing.assert_array_equal(np.asarray(weight), values[name])


def test_a_file_of_another_network_is_refused(tiny_npz: Path) -> None:
    config, values = googles_tf2_names(tiny_npz)
    del values["block1/unit02/b/group_norm/beta"]
    with pytest.raises(ValueError, match="misshapen: block1/unit02/b/group_norm/beta"):
        BiT(config).set_named_weights(values)
