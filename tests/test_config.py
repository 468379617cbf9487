from __future__ import annotations

import json
import subprocess
import sys

import pytest
import transformers
from hypothesis import given
from strategies import configs

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
        ({"num_labels": 0}, "at least 1"),
        ({"embedding_size": 48}, "48 channels cannot be divided into 32 groups"),
        ({"hidden_sizes": (64, 512, 1024, 2048)}, "16 channels cannot be divided"),
        ({"num_labels": 2, "id2label": {0: "cat"}}, "id2label"),
    ],
)
def test_sizes_that_are_no_network_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BitConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ["R50", "R51x1", "50x1", "R50x0", "R50x1 ", "ViT-B/16"])
def test_an_architecture_that_does_not_exist_is_refused(architecture: str) -> None:
    with pytest.raises(ValueError, match="is no BiT architecture"):
        BitConfig.from_architecture(architecture)


def test_importing_the_package_imports_no_framework() -> None:
    script = "import sys, bit; bit.BitConfig(); assert 'torch' not in sys.modules; bit.BitModel; import torch"
    subprocess.run([sys.executable, "-c", script], check=True)
