"""The models and their configuration where transformers' are expected."""

from __future__ import annotations

import copy
import json
import pickle
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from support.hub import HubServer
from support.hub_here import use
from support.networks import TINY
from support.odd import assert_one_line
from support.pushing import TOKEN

import bit
from bit.model import BitForImageClassification as LightModel
from bit.transformers import BitConfig as ModelConfig

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")

FLAVOURS = [LightModel, bit.BitForImageClassification]
NAMED = TINY.replace(id2label={index: f"class {index}" for index in range(5)})


@pytest.mark.parametrize(
    "names",
    [
        {"id2label": {"0": "cat", "1": "dog"}},
        {"label2id": {"cat": 0, "dog": 1}},
        {"label2id": {"cat": "0", "dog": "1"}},
    ],
)
def test_names_of_classes_are_known_in_both_directions(names: Any, tmp_path: Path) -> None:
    config = ModelConfig(**names)
    assert (config.num_labels, config.id2label) == (2, {0: "cat", 1: "dog"})
    assert config.label2id == {"cat": 0, "dog": 1}
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["label2id"] == {"cat": 0, "dog": 1}


def test_scripts_give_numbers_of_classes_as_text(tmp_path: Path) -> None:
    """As `run_image_classification.py` of transformers does, with fields that replace those of a file."""
    seeded(config=NAMED).save_pretrained(tmp_path)
    names = {"id2label": {"0": "cat", "1": "dog"}, "label2id": {"cat": "0", "dog": "1"}}
    config = ModelConfig.from_pretrained(tmp_path, num_labels=2, **names)
    assert (config.id2label, config.label2id) == ({0: "cat", 1: "dog"}, {"cat": 0, "dog": 1})
    assert bit.BitForImageClassification(config).config.id2label[1] == "dog"
    config.id2label = {0: "ox", 1: "ass"}
    assert config.label2id == {"ox": 0, "ass": 1}
    config.num_labels = 3
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config


def test_arguments_of_loading_and_saving_are_named_as_in_transformers(tmp_path: Path) -> None:
    model = seeded()
    model.save_pretrained(save_directory=tmp_path / "a")
    model.save_pretrained(tmp_path / "b", True)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    model.save_pretrained(tmp_path / "c", is_main_process=False)
    assert not (tmp_path / "c" / "model.safetensors").exists()
    assert bit.BitForImageClassification.from_pretrained(pretrained_model_name_or_path=tmp_path / "a").num_labels == 5


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(2, 3, 33, 40, generator=torch.Generator().manual_seed(0))


def seeded(kind: Any = bit.BitForImageClassification, config: Any = TINY) -> Any:
    torch.manual_seed(0)
    return kind(config).eval()


def test_the_models_are_those_of_transformers_where_it_is_installed() -> None:
    for name in ("BitModel", "BitForImageClassification", "BitBackbone"):
        kind = getattr(bit, name)
        assert issubclass(kind, transformers.PreTrainedModel)
        assert issubclass(kind, getattr(bit.model, name))


@pytest.mark.parametrize("version", [None, "4.57.1", "5.22.0", "unknown"])
def test_without_transformers_they_are_the_light_ones(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    def installed(name: str) -> str:
        if version is None:
            raise PackageNotFoundError(name)
        return version

    monkeypatch.setattr("bit.metadata.version", installed)
    assert bit.BitBackbone is bit.model.BitBackbone
    monkeypatch.setattr("bit.metadata.version", lambda name: "6.0.0rc1")
    assert issubclass(bit.BitBackbone, transformers.PreTrainedModel)


def test_both_flavours_are_the_same_network(x: torch.Tensor) -> None:
    light, heavy = (seeded(kind) for kind in FLAVOURS)
    assert light.state_dict().keys() == heavy.state_dict().keys()
    assert torch.equal(light(x).logits, heavy(x).logits)
    assert light.config == heavy.config
    assert heavy.config == light.config
    assert heavy.config != TINY.replace(ws_eps=1e-8)


def test_libraries_can_read_and_assign_to_the_configuration() -> None:
    config = seeded(config=NAMED).config
    assert isinstance(config, transformers.BitConfig)
    config.use_cache = False
    config._attn_implementation = "eager"
    config.problem_type = "multi_label_classification"
    config.architectures = ["X"]
    assert (config.use_cache, config.name_or_path, config.num_labels) == (False, "", 5)
    assert config.id2label[3] == "class 3"
    assert config.label2id["class 3"] == 3
    assert json.loads(config.to_json_string())["ws_eps"] == 1e-10
    assert config.to_dict()["model_type"] == "bit"


def test_the_configuration_has_the_properties_of_the_value() -> None:
    config = ModelConfig.from_architecture("R101x3", num_labels=7)
    assert (config.architecture, config.smallest_image, config.bottleneck_size(0)) == ("R101x3", 1, 192)
    assert tuple(config.stage_names) == config.value.stage_names
    assert config.replace(num_labels=3).num_labels == 3
    assert ModelConfig(width_factor=3).hidden_sizes[-1] == 6144, "transformers does not scale every layer"
    with pytest.raises(ValueError, match="cannot be divided"):
        ModelConfig(embedding_size=48)


@pytest.mark.parametrize("kind", FLAVOURS)
def test_a_configuration_of_transformers_builds_the_same_network(kind: Any, x: torch.Tensor) -> None:
    stated = {key: value for key, value in TINY.to_dict().items() if key != "ws_eps"}
    theirs = transformers.BitConfig(**stated)
    assert not hasattr(theirs, "ws_eps")
    model = seeded(kind, theirs)
    assert model.config.ws_eps == 1e-10, "Google's, because transformers' own is not stated"
    assert torch.equal(model(x).logits, seeded(kind)(x).logits)
    assert seeded(kind, transformers.BitConfig(**stated, ws_eps=1e-8)).bit.embedder.convolution.eps == 1e-8
    with pytest.raises(ValueError, match="model_type is 'vit'; expected 'bit'"):
        kind(transformers.ViTConfig())
    with pytest.raises(ValueError, match="config is 5; expected a BitConfig"):
        kind(5)


@pytest.mark.parametrize("kind", FLAVOURS)
def test_what_a_model_saves_loads_in_both_libraries(kind: Any, x: torch.Tensor, tmp_path: Path) -> None:
    for config in (TINY, NAMED, TINY.replace(num_labels=2, ws_eps=1e-8), TINY.replace(num_labels=0)):
        model = seeded(kind, config)
        model.save_pretrained(tmp_path)
        values = json.loads((tmp_path / "config.json").read_text())
        assert values["ws_eps"] == config.ws_eps
        assert "transformers_version" not in values, "it marks what transformers' own BiT saved"
        for again in (flavour.from_pretrained(tmp_path) for flavour in FLAVOURS):
            assert again.config == config
            assert torch.equal(again(x).logits, model(x).logits)
        theirs, info = transformers.BitForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        assert theirs.config.num_labels == config.num_labels
        torch.testing.assert_close(theirs(x).logits.flatten(1), model(x).logits, rtol=1e-2, atol=1e-2)
    assert type(transformers.AutoModelForImageClassification.from_pretrained(tmp_path)) is type(theirs)


def test_a_configuration_that_no_longer_describes_the_network_is_not_saved(tmp_path: Path) -> None:
    model = seeded()
    model.config.ws_eps = 1e-8
    with pytest.raises(ValueError, match=r"model\.config\.ws_eps is 1e-08, but the network was built with 1e-10"):
        model.save_pretrained(tmp_path)
    model.config.ws_eps = 1e-10
    model.classifier[1] = torch.nn.Linear(256, 2)
    model.config.id2label = {0: "cat", 1: "dog"}
    model.save_pretrained(tmp_path)
    assert bit.BitForImageClassification.from_pretrained(tmp_path).config.label2id == {"cat": 0, "dog": 1}


def test_weights_are_saved_in_shards_as_transformers_does(tmp_path: Path) -> None:
    model = seeded()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    again = bit.BitForImageClassification.from_pretrained(tmp_path)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())
    assert again.name_or_path == again.config.name_or_path == str(tmp_path)


@pytest.mark.parametrize("kind", FLAVOURS)
def test_models_know_their_device_dtype_and_size(kind: Any) -> None:
    model = seeded(kind)
    assert model.device == torch.device("cpu")
    assert (model.dtype, model.half().dtype) == (torch.float32, torch.float16)
    assert model.num_parameters() == sum(weight.numel() for weight in model.parameters())
    model.bit.requires_grad_(False)
    assert model.num_parameters(only_trainable=True) == 5 * 256 + 5
    assert model.get_input_embeddings() is model.bit.embedder.convolution


@pytest.mark.parametrize("kind", FLAVOURS)
def test_models_can_be_copied_and_sent_to_other_processes(kind: Any, x: torch.Tensor) -> None:
    model = seeded(kind)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(x).logits, model(x).logits)


@pytest.mark.parametrize("kind", FLAVOURS)
def test_a_checkpointed_step_has_the_same_gradients(kind: Any, x: torch.Tensor) -> None:
    gradients = []
    for options in (None, {}, {"use_reentrant": True}):
        model = seeded(kind).train()
        if options is not None:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        assert model.is_gradient_checkpointing is (options is not None)
        model(x.requires_grad_(), labels=torch.tensor([0, 1])).loss.backward()
        gradients.append([weight.grad for weight in model.parameters()])
    torch.testing.assert_close(gradients[1:], gradients[:1] * 2, rtol=0, atol=0)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    with pytest.raises(ValueError, match="leave every_n_layers and offload out"):
        model.gradient_checkpointing_enable(every_n_layers=2)


@pytest.mark.parametrize("kind", FLAVOURS)
def test_outputs_are_mappings_without_what_is_none(kind: Any, x: torch.Tensor) -> None:
    model = seeded(kind)
    outputs = model(x, output_taps=True)
    assert isinstance(outputs, dict)
    assert list(outputs.keys()) == list(dict(outputs)) == list(outputs) == ["logits"]
    assert outputs["logits"] is outputs.logits is outputs[0] is outputs[:1][0] is outputs.to_tuple()[0]
    assert outputs.loss is outputs.hidden_states is None
    assert "logits" in outputs.taps
    assert "taps" not in outputs
    with pytest.raises(KeyError):
        outputs["loss"]
    whole = model(x, labels=torch.tensor([0, 1]), output_hidden_states=True)
    assert list(whole) == ["loss", "logits", "hidden_states"]
    assert list(model(x, return_dict=None)) == ["logits"]
    assert isinstance(model(x, return_dict=False), tuple)
    # As accelerate and DataParallel make outputs.
    kind = type(outputs)
    assert kind({"logits": 1}).logits == kind([("logits", 1), ("loss", None)]).logits == 1
    sent = pickle.loads(pickle.dumps(model(x.detach()).__class__(logits=x, taps={"a": x})))
    assert torch.equal(sent.logits, x)
    assert list(sent.taps) == ["a"]
    outputs.loss = x
    assert outputs["loss"] is x


def test_the_configuration_chooses_what_is_returned(x: torch.Tensor) -> None:
    model = seeded()
    model.config.output_hidden_states = True
    assert list(model(x)) == ["logits", "hidden_states"]
    assert list(model(x, output_hidden_states=False)) == ["logits"]
    model.config.return_dict = False
    assert isinstance(model(x), tuple)


def test_a_backbone_has_what_transformers_backbones_have(x: torch.Tensor) -> None:
    model = seeded(bit.BitBackbone, TINY.replace(out_indices=(0, 2)))
    assert (model.out_features, list(model.channels)) == (["stem", "stage2"], [32, 256])
    assert [tuple(maps.shape[:2]) for maps in model(x).feature_maps] == [(2, 32), (2, 256)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    seeded(LightModel, NAMED).save_pretrained(path)
    return path


@pytest.mark.parametrize("kind", FLAVOURS)
def test_the_usual_keywords_are_accepted(kind: Any, folder: Path) -> None:
    options = {"use_safetensors": True, "low_cpu_mem_usage": True, "trust_remote_code": False, "device_map": "cpu"}
    hub = {"revision": "main", "token": None, "cache_dir": None, "local_files_only": True, "force_download": False}
    for dtype in ("float64", torch.float64):
        assert kind.from_pretrained(folder, torch_dtype=dtype, **options, **hub).dtype == torch.float64
    assert kind.from_pretrained(folder, dtype="auto").dtype == torch.float32
    assert kind.from_pretrained(folder.parent, subfolder=folder.name).config.num_labels == 5
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    for config in (folder, str(folder), NAMED, model.config, transformers.AutoConfig.from_pretrained(folder)):
        assert kind.from_pretrained(folder, config=config).config == NAMED


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_label": 3}, "BitConfig has no field 'num_label'; expected some of num_channels"),
        ({"use_safetensors": False}, "does not take use_safetensors=False"),
        ({"attn_implementation": "sdpa"}, "does not take attn_implementation='sdpa'"),
        ({"quantization_config": {}}, "does not take quantization_config={}"),
        ({"dtype": "int8"}, "dtype is 'int8'; expected one of bfloat16, float16"),
        ({"device_map": {"a": 0, "b": 1}}, "expected one device"),
        ({"device_map": "balanced"}, "device_map is 'balanced'"),
        ({"subfolder": "../elsewhere"}, "expected the name of a folder inside"),
        ({"config": transformers.ViTConfig()}, "model_type is 'vit'"),
        ({"id2label": {"0": "a"}, "label2id": {"b": 0}}, "id2label and label2id name different classes"),
    ],
)
@pytest.mark.parametrize("kind", FLAVOURS)
def test_other_keywords_are_refused_in_one_line(kind: Any, folder: Path, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        kind.from_pretrained(folder, **options)
    assert_one_line(caught.value)


@pytest.mark.parametrize("kind", FLAVOURS)
def test_labels_of_a_new_head_are_given_as_scripts_give_them(kind: Any, folder: Path, x: torch.Tensor) -> None:
    labels = {"id2label": {"0": "cat", "1": "dog"}, "label2id": {"cat": "0", "dog": "1"}}
    with pytest.warns(UserWarning, match="has 5 classes; it is replaced by a new one with 2, all zeros"):
        model = kind.from_pretrained(folder, num_labels=2, ignore_mismatched_sizes=True, **labels)
    assert (model.config.id2label, model.config.label2id) == ({0: "cat", 1: "dog"}, {"cat": 0, "dog": 1})
    assert not model(x).logits.any()


@pytest.mark.parametrize("kind", FLAVOURS)
def test_a_head_that_does_not_fit_its_config_is_replaced_only_if_asked(
    kind: Any, folder: Path, tmp_path: Path, x: torch.Tensor
) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    state = load_file(folder / "model.safetensors")
    state["classifier.1.weight"] = torch.ones(7, 256)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"misshapen classifier.1.weight, \[7, 256\] instead of \[5, 256\]"):
        kind.from_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="has 7 classes; it is replaced by a new one with 5, all zeros"):
        model, info = kind.from_pretrained(tmp_path, ignore_mismatched_sizes=True, output_loading_info=True)
    assert not model(x).logits.any()
    assert ("classifier.1.weight", (7, 256), (5, 256)) in info["mismatched_keys"]
    del state["classifier.1.weight"], state["classifier.1.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match="has 0 classes"):
        _, info = kind.from_pretrained(tmp_path, ignore_mismatched_sizes=True, output_loading_info=True)
    assert info["missing_keys"] == {"classifier.1.weight", "classifier.1.bias"}
    del state["bit.norm.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing bit\.norm\.bias"), pytest.warns(UserWarning, match="head"):
        kind.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


@pytest.mark.parametrize("kind", FLAVOURS)
def test_models_and_configurations_are_pushed_to_and_loaded_from_the_hub(
    kind: Any, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(server, tmp_path, monkeypatch)
    model = seeded(kind, NAMED)
    model.push_to_hub("me/tiny")
    again = kind.from_pretrained("me/tiny")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())
    assert bit.BitConfig.from_pretrained("me/tiny", num_labels=2) == TINY.replace(num_labels=2)
    bit.BitImageProcessorPil(rescale_factor=1 / 127).save_pretrained(tmp_path / "processor")
    HfApi(token=TOKEN).upload_folder(repo_id="me/tiny", folder_path=tmp_path / "processor")
    size = {"height": 32, "width": 32}
    processor = bit.BitImageProcessorPil.from_pretrained("me/tiny", size=size)
    assert (processor.size, processor.rescale_factor) == (size, 1 / 127)
    with pytest.raises(RuntimeError, match="no longer has the original weights"):
        model.for_inference().push_to_hub("me/tiny")
