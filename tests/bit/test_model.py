from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.conversions import convert
from support.networks import TINY

from bit import BitBackbone, BitConfig, BitForImageClassification, BitModel
from convert.network.taps import tap_names

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


def test_a_saved_model_loads_here_and_in_transformers(folder: Path, tmp_path: Path) -> None:
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
    with pytest.raises(ValueError, match="expected images with 4 axes, 3 channels"):
        BitForImageClassification.from_pretrained(folder)(torch.zeros(shape))


def test_gradients_reach_every_parameter(folder: Path, pixels: torch.Tensor) -> None:
    model = BitForImageClassification.from_pretrained(folder)
    model(pixels).logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_a_new_head_is_announced_and_zero_while_the_body_is_kept(folder: Path, pixels: torch.Tensor) -> None:
    with pytest.warns(UserWarning, match="has 5 classes; it is replaced by a new one with 3, all zeros"):
        model = BitForImageClassification.from_pretrained(folder, num_labels=3)
    assert model(pixels).logits.tolist() == [[0, 0, 0]] * 2
    assert model.config.num_labels == 3
    kept = BitForImageClassification.from_pretrained(folder, num_labels=5)
    assert torch.equal(model.bit.norm.weight, kept.bit.norm.weight)
    assert kept.classifier[1].weight.abs().sum() > 0, "the same number of classes keeps the head"


def test_fields_of_the_configuration_can_be_replaced(folder: Path, pixels: torch.Tensor) -> None:
    model = BitBackbone.from_pretrained(folder, out_features=("stem", "stage2"))
    assert [tuple(feature.shape[:2]) for feature in model(pixels).feature_maps] == [(2, 32), (2, 256)]


def test_what_transformers_saved_computes_with_the_epsilon_of_transformers(
    folder: Path, tmp_path: Path, pixels: torch.Tensor
) -> None:
    theirs = transformers.BitForImageClassification.from_pretrained(folder)
    theirs.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="transformers saved .* epsilon of 1e-08, which is taken"):
        model = BitForImageClassification.from_pretrained(tmp_path)
    assert model.config.ws_eps == 1e-8
    with torch.inference_mode():
        logits, expected = model.double()(pixels.double()).logits, theirs.double().eval()(pixels.double()).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    assert BitForImageClassification.from_pretrained(tmp_path, ws_eps=1e-10).config.ws_eps == 1e-10
    model.save_pretrained(tmp_path / "again")
    assert BitForImageClassification.from_pretrained(tmp_path / "again").config.ws_eps == 1e-8


def test_shards_load_as_one_file_does(folder: Path, tmp_path: Path) -> None:
    theirs = transformers.BitForImageClassification.from_pretrained(folder)
    theirs.save_pretrained(tmp_path, max_shard_size="200KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    model = BitForImageClassification.from_pretrained(tmp_path, ws_eps=1e-8)
    for key, value in theirs.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])


def test_an_index_that_names_a_file_elsewhere_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    index = {"weight_map": {"bit.norm.bias": "../model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="not a file in the same folder"):
        BitForImageClassification.from_pretrained(tmp_path)


def test_a_name_that_is_neither_a_folder_nor_a_repository_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match="nor an owner/name on the Hub"):
        BitModel.from_pretrained("nowhere/at/all")


def test_inference_gives_the_same_logits_within_rounding(folder: Path, pixels: torch.Tensor) -> None:
    exact = BitForImageClassification.from_pretrained(folder).double()(pixels.double()).logits
    plain = BitForImageClassification.from_pretrained(folder)(pixels).logits
    fast = BitForImageClassification.from_pretrained(folder).for_inference()(pixels).logits
    error = (fast - exact).norm() / exact.norm()
    assert error < 4 * (plain - exact).norm() / exact.norm() + 1e-7
    assert not fast.requires_grad


def test_a_model_for_inference_refuses_to_be_trained_or_saved(folder: Path, tmp_path: Path) -> None:
    model = BitForImageClassification.from_pretrained(folder).for_inference()
    with pytest.raises(RuntimeError, match="standardized already"):
        model.train()
    with pytest.raises(RuntimeError, match="no longer has the original weights"):
        model.save_pretrained(tmp_path)
    assert BitForImageClassification.from_pretrained(folder).train().training, "loading again undoes it"


def test_a_batch_in_parts_gives_the_result_of_the_whole(
    folder: Path, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = BitForImageClassification.from_pretrained(folder).for_inference()
    images = torch.cat([pixels, pixels.flip(2), pixels.flip(3)])
    whole = model(images, output_hidden_states=True, output_taps=True)
    monkeypatch.setattr("bit.inference.CACHED_PIXELS", 45 * 50 * 2)
    parts = model(images, output_hidden_states=True, output_taps=True)
    assert list(parts.taps) == tap_names(TINY)
    torch.testing.assert_close(parts.taps, whole.taps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts.hidden_states, whole.hidden_states, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts.logits, whole.logits, rtol=1e-5, atol=1e-5)


def test_preparing_twice_changes_nothing_more(folder: Path, pixels: torch.Tensor) -> None:
    model = BitForImageClassification.from_pretrained(folder).for_inference()
    once = model(pixels).logits
    assert torch.equal(model.for_inference()(pixels).logits, once)


def test_inference_in_bfloat16_is_near(folder: Path, pixels: torch.Tensor) -> None:
    exact = BitForImageClassification.from_pretrained(folder)(pixels).logits
    half = BitForImageClassification.from_pretrained(folder).for_inference(torch.bfloat16)
    logits = half(pixels.bfloat16()).logits
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - exact).norm() / exact.norm() < 0.05


def test_a_prepared_part_keeps_the_whole_from_being_saved_or_trained(folder: Path, tmp_path: Path) -> None:
    whole = BitForImageClassification.from_pretrained(folder)
    whole.bit.for_inference()
    for model in (whole, whole.bit):
        with pytest.raises(RuntimeError):
            model.save_pretrained(tmp_path)
        with pytest.raises(RuntimeError):
            model.train()


def test_weights_loaded_into_a_prepared_model_are_weights_again(folder: Path, pixels: torch.Tensor) -> None:
    original = BitForImageClassification.from_pretrained(folder)
    model = BitForImageClassification.from_pretrained(folder).for_inference()
    model.load_state_dict(original.state_dict())
    torch.testing.assert_close(model(pixels).logits, original(pixels).logits, rtol=1e-5, atol=1e-6)
    assert model.train().training


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_file_is_a_value_error(folder: Path, tmp_path: Path, name: str) -> None:
    for file in ("model.safetensors", "config.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    (tmp_path / name).write_bytes(b"[1]")
    with pytest.raises(ValueError, match=name):
        BitForImageClassification.from_pretrained(tmp_path)
