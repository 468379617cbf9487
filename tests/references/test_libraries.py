"""Converted folders, loaded by the installed libraries that they are for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from numpy.typing import NDArray
from support.conversions import arrays_of, convert, verified
from support.networks import TINY
from timm.layers.std_conv import StdConv2d
from transformers.models.bit.modeling_bit import WeightStandardizedConv2d

from bit.config import BitConfig
from convert.checkpoints.options import ConversionOptions
from convert.files.base import file_sha256
from convert.network.inputs import images
from convert.network.taps import summarize
from convert.references.recordings import find_recordings
from convert.sources.synthetic import write_npz
from convert.verification.metrics import relative_l2, summary_error
from convert.verification.results import FLOAT64_TOLERANCE

# A framework may announce future changes of its own.
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")


CASES = ["transformers R14x1", "timm R50x1", pytest.param("transformers R50x1", marks=pytest.mark.long)]
"""Libraries and architectures; timm knows none smaller than R50x1."""


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    library, architecture = str(request.param).split()
    return library, architecture


@pytest.fixture(scope="module")
def library(case: tuple[str, str]) -> str:
    return case[0]


@pytest.fixture(scope="module")
def architecture(case: tuple[str, str]) -> str:
    return case[1]


@pytest.fixture(scope="module")
def source(synthetic: Callable[[str], Path], architecture: str) -> Path:
    return synthetic(architecture)


@pytest.fixture(scope="module")
def folder(source: Path, library: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(source, library, tmp_path_factory.mktemp("libraries") / library)


def load(library: str, folder: Path) -> torch.nn.Module:
    """Load a folder as the library's documentation says; a missing or unexpected key is an error."""
    if library == "timm":
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    model, info = transformers.BitForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def set_epsilon(model: torch.nn.Module, epsilon: float) -> torch.nn.Module:
    for module in model.modules():
        if isinstance(module, StdConv2d | WeightStandardizedConv2d):
            module.eps = epsilon
    return model


def taps(library: str, model: torch.nn.Module, pixels: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the activations that the library returns by itself, under the names of our taps."""
    with torch.inference_mode():
        if library == "timm":
            features = model.forward_features(pixels)
            yield "pre_head", features
            yield "pooled", features.mean((2, 3))
            yield "logits", model.forward_head(features)
            return
        outputs = model(pixels, output_hidden_states=True)
        yield "root_block", outputs.hidden_states[0]
        for stage, (depth, value) in enumerate(zip(model.config.depths, outputs.hidden_states[1:], strict=True)):
            yield f"block{stage + 1}/unit{depth:02d}", value
        yield "pre_head", model.bit(pixels).last_hidden_state
        yield "pooled", model.bit(pixels).pooler_output.flatten(1)
        yield "logits", outputs.logits


def to_array(value: torch.Tensor) -> NDArray[np.generic]:
    return (value.permute(0, 2, 3, 1) if value.ndim == 4 else value).numpy()


def test_with_googles_epsilon_it_computes_the_recorded_outputs(library: str, folder: Path, source: Path) -> None:
    recordings = find_recordings(file_sha256(source))
    assert recordings is not None
    model = set_epsilon(load(library, folder).double(), 1e-10)
    for name, numbers in recordings.float64.inputs.items():
        pixels = torch.from_numpy(images(*numbers).transpose(0, 3, 1, 2)).double()
        compared = 0
        for tap, value in taps(library, model, pixels):
            error = summary_error(summarize(tap, to_array(value)), recordings.float64.taps[name, tap])
            assert error < FLOAT64_TOLERANCE, f"{library} differs from Google's code at {tap} of {name}"
            compared += 1
        assert compared == (3 if library == "timm" else 8)


def test_with_its_own_epsilon_it_differs_as_the_report_says(
    library: str, architecture: str, folder: Path, source: Path
) -> None:
    stated = verified(folder, source).network.epsilon
    assert stated is not None
    recordings = find_recordings(file_sha256(source))
    assert recordings is not None
    pixels = torch.from_numpy(images(*recordings.float64.inputs[stated.input]).transpose(0, 3, 1, 2)).double()
    logits = dict(taps(library, load(library, folder).double(), pixels))["logits"]
    found = relative_l2(logits.numpy(), recordings.float64.taps[stated.input, "logits"][""])
    assert found == pytest.approx(stated.relative_l2, rel=1e-6)
    if architecture == "R50x1":
        assert found == pytest.approx(3.5e-4, rel=0.05), "as measured with timm when the recordings were made"


@pytest.mark.parametrize("classes", [1, 2, 21843])
def test_any_number_of_classes_loads(library: str, architecture: str, classes: int, tmp_path: Path) -> None:
    small = architecture == "R14x1"
    config = TINY if small else BitConfig.from_architecture(architecture)
    write_npz(tmp_path / "a.npz", config.replace(num_labels=classes))
    model = load(library, convert(tmp_path / "a.npz", library, tmp_path / "out"))
    head = model.get_classifier() if library == "timm" else model.classifier[1]
    assert head.weight.shape[0] == classes


@pytest.mark.parametrize(
    ("name", "size", "crop_pct", "interpolation", "tag"),
    [
        ("BiT-M-R50x1", 224, 0.875, "bilinear", "goog_in21k"),
        ("BiT-M-R50x1-ILSVRC2012", 448, 1.0, "bilinear", "goog_in21k_ft_in1k"),
        ("R50x1_224", 224, 0.875, "bicubic", "goog_distilled_in1k"),
        ("BiT-M-R50x1-CIFAR10", 128, 1.0, "bilinear", ""),
        ("mine", 224, 0.875, "bilinear", ""),
    ],
)
def test_timm_evaluates_a_published_checkpoint_like_its_own(
    synthetic: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    size: int,
    crop_pct: float,
    interpolation: str,
    tag: str,
) -> None:
    (tmp_path / f"{name}.npz").symlink_to(synthetic("R50x1"))
    model = load("timm", convert(tmp_path / f"{name}.npz", "timm", tmp_path / "out"))
    found = timm.data.resolve_model_data_config(model)
    assert tuple(found["input_size"]) == (3, size, size)
    assert (found["crop_pct"], found["interpolation"]) == (crop_pct, interpolation)
    assert (*found["mean"], *found["std"]) == (0.5,) * 6
    assert (model.pretrained_cfg.get("tag") or "") == tag
    assert model.pretrained_cfg["architecture"] == "resnetv2_50x1_bit"
    if tag:
        own = timm.get_pretrained_cfg(f"resnetv2_50x1_bit.{tag}")
        assert own.input_size == (3, size, size)
        assert (own.crop_pct, own.interpolation) == (crop_pct, interpolation)


def test_a_network_without_its_head_loads(library: str, source: Path, tmp_path: Path) -> None:
    folder = convert(source, library, tmp_path / "out", options=ConversionOptions(head="drop"))
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        if library == "timm":
            features = load(library, folder)(x)
        else:
            model, info = transformers.BitModel.from_pretrained(folder, output_loading_info=True)
            assert not any(info.values()), info
            features = model.eval()(x).pooler_output.flatten(1)
    assert features.shape == (1, 2048)


def test_a_network_of_another_size_loads_in_transformers(tiny_npz: Path, tmp_path: Path) -> None:
    model = load("transformers", convert(tiny_npz, "transformers", tmp_path / "out"))
    assert model.config.depths == list(TINY.depths)
    kernel = arrays_of(TINY)["resnet/root_block/standardized_conv2d/kernel"]
    np.testing.assert_array_equal(model.bit.embedder.convolution.weight.detach(), kernel.transpose(3, 2, 0, 1))


def test_timm_itself_loads_the_google_file(synthetic: Callable[[str], Path], tmp_path: Path) -> None:
    """timm reads Google's npz by its own table, so equal state dicts prove ours independently."""
    source = synthetic("R50x1")
    path = convert(convert(source, "timm", tmp_path / "timm"), "google", tmp_path / "google") / "Synthetic-R50x1.npz"
    theirs = timm.create_model("resnetv2_50x1_bit")
    theirs.load_pretrained(str(path))
    ours = load("timm", tmp_path / "timm").state_dict()
    for key, value in theirs.state_dict().items():
        assert torch.equal(value, ours[key]), key
