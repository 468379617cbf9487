from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from support.odd import assert_one_line, odd_values
from support.strategies import configs

import bit
import convert
from bit import BitConfig
from bit.config import PUBLISHED


@given(configs())
def test_a_config_survives_its_json(config: BitConfig) -> None:
    assert BitConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("architecture", PUBLISHED)
def test_a_published_architecture_knows_its_name(architecture: str) -> None:
    assert BitConfig.from_architecture(architecture).architecture == architecture


def test_labels_survive_and_are_read_by_transformers() -> None:
    config = BitConfig(num_labels=2, id2label={0: "cat", 1: "dog"})
    assert BitConfig.from_dict(config.to_dict()) == config
    theirs = transformers.BitConfig(**config.to_dict())
    assert (theirs.id2label, theirs.label2id) == ({0: "cat", 1: "dog"}, {"cat": 0, "dog": 1})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": (3, 4)}, "one entry per stage"),
        ({"depths": (), "hidden_sizes": ()}, "one entry per stage"),
        ({"num_labels": -1}, "num_labels is -1"),
        ({"num_channels": 0}, "num_channels is 0"),
        ({"embedding_size": 48}, "48 channels cannot be divided into 32 groups"),
        ({"hidden_sizes": (64, 512, 1024, 2048)}, "16 channels cannot be divided"),
        ({"hidden_sizes": (256, 516, 1024, 2048), "num_groups": 1}, "multiples of 8"),
        ({"layer_type": "basic"}, "layer_type is 'basic'"),
        ({"global_padding": "reflect"}, "global_padding is 'REFLECT'"),
        ({"hidden_act": "softmax"}, "hidden_act is 'softmax'"),
        ({"output_stride": 12}, "output_stride is 12"),
        ({"width_factor": 0}, "width_factor is 0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"out_features": ("stage9",)}, "out_features are"),
        ({"out_features": ("stage2", "stage1")}, "in that order"),
        ({"out_indices": (7,)}, "there are 5 stages"),
        ({"out_indices": (1,), "out_features": ("stage2",)}, "select different stages"),
        ({"num_labels": 2, "id2label": {0: "cat"}}, "id2label"),
        ({"hidden_sizes": ["A", "A"], "width_factor": 1_500_000_000}, "hidden_sizes is"),
        ({"hidden_sizes": (True,) * 4}, "hidden_sizes is"),
        ({"hidden_sizes": 256}, "hidden_sizes is 256"),
        ({"hidden_sizes": (256,) * 9, "depths": (1,) * 9}, "1 to 8 stages"),
        ({"depths": (10**400, 1, 1, 1)}, "depths is"),
        ({"depths": (1000,) * 4}, "at most 1024"),
        ({"num_channels": [3]}, r"num_channels is \[3\]"),
        ({"num_channels": 1.5}, "num_channels is 1.5"),
        ({"num_labels": 10**9}, "num_labels is 1000000000"),
        ({"width_factor": 1 << 20}, "at most 1048576"),
        ({"output_stride": 8.0}, "output_stride is 8.0"),
        ({"embedding_dynamic_padding": 1}, "expected true or false"),
        ({"ws_eps": 1}, "ws_eps is 1;"),
        ({"ws_eps": 0}, "ws_eps is 0;"),
        ({"ws_eps": 2.0}, "ws_eps is 2.0"),
        ({"ws_eps": 0.0}, "ws_eps is 0.0"),
        ({"ws_eps": True}, "ws_eps is True"),
        ({"ws_eps": float("nan")}, "ws_eps is nan"),
        ({"ws_eps": 10**400}, "ws_eps is 1000"),
        ({"drop_path_rate": float("nan")}, "drop_path_rate is nan"),
        ({"out_features": 5}, "out_features is 5"),
        ({"out_features": [["stem"]]}, "out_features is"),
        ({"out_indices": [True]}, "out_indices is"),
        ({"num_labels": 1, "id2label": {0: "x" * 1001}}, "at most 1000 characters"),
        ({"num_labels": 1, "id2label": {0: ["cat"]}}, "id2label"),
        ({"num_labels": 1, "id2label": ["cat"]}, "id2label"),
        ({"id2label": {"0": "cat", 0: "dog"}}, "id2label names a class twice"),
        ({"label2id": ["cat"]}, "label2id is"),
        ({"label2id": {"cat": [0]}}, "label2id is"),
        ({"label2id": {"cat": "first"}}, "label2id names a class 'first'"),
        ({"id2label": {0: "cat"}, "label2id": {"dog": 0}}, "name different classes"),
        ({"id2label": {0: "cat"}, "num_labels": 1000}, "must give each of the classes 0 to 999 a name"),
    ],
)
def test_invalid_fields_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        BitConfig(**fields)  # type: ignore[arg-type]
    assert_one_line(caught.value)


def test_labels_are_given_by_number_or_by_name_and_numbers_may_be_text() -> None:
    expected = BitConfig(num_labels=2, id2label={0: "cat", 1: "dog"})
    for fields in (
        {"id2label": {"0": "cat", "1": "dog"}},
        {"label2id": {"cat": 0, "dog": "1"}},
        {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}, "num_labels": 2},
    ):
        assert BitConfig(**fields) == BitConfig().replace(**fields) == expected  # type: ignore[arg-type]
        assert BitConfig(**fields).label2id == {"cat": 0, "dog": 1}  # type: ignore[arg-type]
    same = BitConfig(id2label={0: "crane", 1: "crane"}, label2id={"crane": 1})
    assert same.num_labels == 2, "two classes of ImageNet have this name"
    assert (BitConfig().num_labels, BitConfig().label2id, BitConfig(id2label={}).num_labels) == (1000, {}, 0)
    assert expected.replace(num_labels=3).id2label is None
    assert expected.replace(num_labels=2) == expected


def test_keywords_replace_fields_that_are_read(tmp_path: Path) -> None:
    BitConfig(id2label={0: "cat"}).save_pretrained(tmp_path)
    found = BitConfig.from_pretrained(tmp_path, num_labels=2, revision="main")
    assert (found.num_labels, found.id2label) == (2, None)
    with pytest.raises(ValueError, match="BitConfig has no field 'labels'; expected some of num_channels"):
        BitConfig.from_pretrained(tmp_path, labels=2)
    with pytest.raises(FileNotFoundError, match="nor an owner/name on the Hub"):
        BitConfig.from_pretrained(Path("never/asked for on the Hub"))
    with pytest.raises(FileNotFoundError, match="nor an owner/name on the Hub"):
        BitConfig.from_pretrained(Path("never/asked-for"))


@pytest.mark.parametrize(
    "names", [["cat"], "cat", {"0": "a", "00": "b"}, {" 0": "a"}, {"-0": "a"}, {"٠": "a"}, {"": "a"}]
)
def test_labels_are_an_object_with_a_number_for_each(names: object) -> None:
    with pytest.raises(ValueError, match="id2label"):
        BitConfig.from_dict({"id2label": names})


@settings(max_examples=1000)
@given(
    st.dictionaries(st.sampled_from([field.name for field in dataclasses.fields(BitConfig)]), odd_values, max_size=3)
)
def test_odd_values_give_a_config_or_one_line(values: dict[str, object]) -> None:
    try:
        config = BitConfig.from_dict(values)
    except ValueError as error:
        assert_one_line(error)
    else:
        assert BitConfig.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False))) == config


def test_an_invalid_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"ws_eps": 1}')
    with pytest.raises(ValueError, match=rf"^{tmp_path}/config.json: ws_eps is 1; expected"):
        BitConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("architecture", ["R50", "R51x1", "50x1", "R50x0", "R50x1 ", "ViT-B/16"])
def test_an_unknown_architecture_is_refused(architecture: str) -> None:
    with pytest.raises(ValueError, match="is not a BiT architecture"):
        BitConfig.from_architecture(architecture)


def test_importing_the_package_imports_no_framework_and_running_a_network_no_transformers() -> None:
    """The reference processes of `convert` and `bit classify` run networks, and must stay small."""
    script = (
        "import sys, bit; bit.BitConfig(); bit.__version__; print(*sys.modules); "
        "import bit.classification, convert.references.pytorch; "
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    first, second = output.splitlines()
    assert "bit.config" in first.split()
    assert not {"torch", "jax", "keras", "tensorflow", "numpy", "PIL", "safetensors", "convert"} & set(first.split())
    assert second == "True False"


def test_every_public_name_exists() -> None:
    assert all(getattr(bit, name).__name__ == name for name in bit.__all__)
    with pytest.raises(AttributeError, match="no attribute BitProcessor"):
        bit.BitProcessor  # noqa: B018


def test_python_m_bit_is_the_command() -> None:
    result = subprocess.run([sys.executable, "-m", "bit", "--version"], check=True, capture_output=True, text=True)
    assert result.stdout == f"bit, version {bit.__version__}\n"


def test_both_packages_are_typed_and_have_one_version() -> None:
    for package in (bit, convert):
        assert (Path(package.__file__).parent / "py.typed").is_file()
        assert package.__version__ == bit.__version__


def test_the_package_does_not_import_convert() -> None:
    for file in Path(bit.__file__).parent.glob("*.py"):
        assert not re.search(r"^\s*(from|import) convert\b", file.read_text("utf-8"), re.MULTILINE), file


def test_a_width_factor_is_expanded_everywhere_and_written_as_one() -> None:
    """transformers scales the stages alone, and its final norm then does not fit them."""
    assert BitConfig(width_factor=3) == BitConfig.from_architecture("R50x3")
    values = BitConfig(width_factor=3).to_dict()
    assert (values["embedding_size"], values["hidden_sizes"][-1], values["width_factor"]) == (192, 6144, 1)


@pytest.mark.parametrize(
    "fields", [{"out_indices": (0, -1)}, {"out_features": ("stem", "stage4")}, {"out_indices": [0, 4]}]
)
def test_features_are_named_or_numbered(fields: dict[str, object]) -> None:
    config = BitConfig(**fields)  # type: ignore[arg-type]
    assert (config.out_features, config.out_indices) == (("stem", "stage4"), (0, 4))
