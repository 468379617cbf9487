from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from conftest import TINY
from safetensors.torch import load_file, save_file
from test_conversion import convert

from bit import BitConfig, BitForImageClassification, BitModel
from convert.taps import tap_names

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")


@pytest.fixture(scope="module")
def folder(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tiny_npz, "transformers", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(2, 3, 45, 50, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_state_dict_has_transformers_names() -> None:
    config = BitConfig.from_architecture("R26x1", num_labels=3)
    with torch.device("meta"):
        ours = BitForImageClassification(config).state_dict()
        theirs = transformers.BitForImageClassification(transformers.BitConfig(**config.to_dict())).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def test_it_equals_transformers_when_the_epsilon_does(folder: Path, pixels: torch.Tensor) -> None:
    ours = BitForImageClassification.from_pretrained(folder).double()
    theirs = transformers.BitForImageClassification.from_pretrained(folder).double().eval()
    for module in ours.modules():
        if hasattr(module, "eps") and isinstance(module, torch.nn.Conv2d):
            module.eps = 1e-8
    with torch.inference_mode():
        own = ours(pixels.double(), output_hidden_states=True)
        other = theirs(pixels.double(), output_hidden_states=True)
    torch.testing.assert_close(own.logits, other.logits, rtol=0, atol=1e-12)
    for own_state, other_state in zip(own.hidden_states, other.hidden_states, strict=True):
        torch.testing.assert_close(own_state, other_state, rtol=0, atol=1e-12)


def test_taps_are_named_in_order_and_only_when_asked_for(folder: Path, pixels: torch.Tensor) -> None:
    model = BitForImageClassification.from_pretrained(folder)
    outputs = model(pixels, output_taps=True)
    assert list(outputs.taps) == tap_names(TINY)
    assert outputs.taps["logits"] is outputs.logits
    assert model(pixels).taps is None
    assert model(pixels).hidden_states is None


def test_the_body_of_a_classifier_loads_without_its_head(folder: Path, pixels: torch.Tensor) -> None:
    outputs = BitModel.from_pretrained(folder)(pixels)
    whole = BitForImageClassification.from_pretrained(folder)(pixels, output_taps=True)
    assert torch.equal(outputs.last_hidden_state, whole.taps["pre_head"])
    assert outputs.pooler_output.shape == (2, 256, 1, 1)


def test_what_is_saved_loads_here_and_in_transformers(folder: Path, tmp_path: Path) -> None:
    model = BitForImageClassification.from_pretrained(folder)
    model.save_pretrained(tmp_path)
    again = BitForImageClassification.from_pretrained(tmp_path)
    assert again.config == model.config
    _, info = transformers.BitForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    for key, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])


def test_a_partial_or_misshapen_load_names_every_parameter(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    state = load_file(folder / "model.safetensors")
    del state["bit.norm.bias"]
    state["extra"] = torch.zeros(1)
    state["classifier.1.bias"] = torch.zeros(7)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing bit\.norm\.bias; unexpected extra; misshapen classifier\.1\.bias"):
        BitForImageClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("shape", [(1, 4, 32, 32), (3, 32, 32)])
def test_images_of_another_shape_are_refused(folder: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[N, 3, H, W\]"):
        BitForImageClassification.from_pretrained(folder)(torch.zeros(shape))


def test_gradients_reach_every_parameter(folder: Path, pixels: torch.Tensor) -> None:
    model = BitForImageClassification.from_pretrained(folder)
    model(pixels).logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
