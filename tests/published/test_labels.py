"""Conversions of a published checkpoint carry the names of the classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.conversions import convert, verified, with_config
from support.networks import TINY

from bit.config import BitConfig
from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.options import ConversionOptions
from convert.layouts import LAYOUTS
from convert.published import catalogue
from convert.published.catalogue import ILSVRC, IMAGENET_21K, Published
from convert.published.labels import id2label
from convert.sources.synthetic import write_npz

LABELS = id2label("ilsvrc2012")
TINY_ITEMS = (
    Published("tiny-ilsvrc", "a.npz", "tiny", (ILSVRC,), ILSVRC, 1000, "ilsvrc2012"),
    Published("tiny-21k", "b.npz", "tiny", (IMAGENET_21K,), IMAGENET_21K, 21843, "imagenet21k"),
    Published("tiny-dtd", "c.npz", "tiny", (IMAGENET_21K,), "dtd", 47, None),
)
"""As if Google had published very small networks too."""


@pytest.fixture(autouse=True)
def tiny_networks_are_published(monkeypatch: pytest.MonkeyPatch) -> None:
    items = {**catalogue.published(), **{item.name: item for item in TINY_ITEMS}}
    monkeypatch.setattr(catalogue, "published", lambda: items)


@pytest.fixture(scope="module")
def ilsvrc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("published"), "tiny-ilsvrc", 1000)


def written(folder: Path, name: str, classes: int) -> Path:
    write_npz(folder / f"{name}.npz", TINY.replace(num_labels=classes))
    return folder / f"{name}.npz"


def config_of(path: Path) -> BitConfig:
    with Checkpoint(path) as checkpoint:
        return checkpoint.config


def test_a_published_name_brings_the_published_labels(synthetic: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "BiT-S-R50x1.npz"
    path.symlink_to(synthetic("R50x1"))
    assert config_of(path).id2label == LABELS


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_layout_gives_back_the_published_labels(ilsvrc: Path, tmp_path: Path, layout: str) -> None:
    folder = convert(ilsvrc, layout, tmp_path / "elsewhere")
    assert config_of(folder) == config_of(ilsvrc)
    assert config_of(folder).id2label == LABELS


def test_the_labels_are_verified_with_the_source(ilsvrc: Path, tmp_path: Path) -> None:
    folder = convert(ilsvrc, "transformers", tmp_path / "here")
    assert verified(folder.rename(tmp_path / "BiT-M-R50x1"), ilsvrc).passed


def test_the_labels_are_verified_without_the_source(
    synthetic: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = Published("Labelled-R14x1", "d.npz", "R14x1", (ILSVRC,), ILSVRC, 1000, "ilsvrc2012")
    monkeypatch.setattr(catalogue, "published", lambda: {item.name: item})
    (tmp_path / "Labelled-R14x1.npz").symlink_to(synthetic("R14x1"))
    folder = convert(tmp_path / "Labelled-R14x1.npz", "transformers", tmp_path / "here")
    assert config_of(folder).id2label == LABELS
    assert verified(folder.rename(tmp_path / "BiT-M-R50x1"), None).passed


def test_transformers_reads_each_label_once(ilsvrc: Path, tmp_path: Path) -> None:
    from transformers import BitConfig as TransformersConfig

    config = TransformersConfig.from_pretrained(convert(ilsvrc, "transformers", tmp_path / "out"))
    assert config.id2label == LABELS
    assert config.label2id == {label: index for index, label in LABELS.items()}
    assert len(config.label2id) == 1000


def test_the_head_of_imagenet_21k_has_labels_and_a_sigmoid(tmp_path: Path) -> None:
    source = written(tmp_path, "tiny-21k", 21843)
    folder = convert(source, "transformers", tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert (len(config["id2label"]), len(config["label2id"])) == (21843, 21843)
    assert config["problem_type"] == "multi_label_classification"
    assert config_of(convert(folder, "timm", tmp_path / "timm")) == config_of(source)


@pytest.mark.parametrize(("name", "classes"), [("tiny-21k", 3), ("tiny-ilsvrc", 999), ("tiny-dtd", 47)])
def test_another_number_of_classes_and_a_task_without_labels_get_none(tmp_path: Path, name: str, classes: int) -> None:
    config = config_of(written(tmp_path, name, classes))
    assert (config.num_labels, config.id2label, config.problem_type) == (classes, None, None)


@pytest.mark.parametrize("head", ["new:1000", "drop"])
def test_a_new_head_of_the_same_size_does_not_get_the_published_labels(ilsvrc: Path, tmp_path: Path, head: str) -> None:
    folder = convert(ilsvrc, "transformers", tmp_path / "out", options=ConversionOptions(head=head))
    again = convert(folder, "timm", tmp_path / "again")
    assert (config_of(folder).id2label, config_of(again).id2label) == (None, None)
    if head != "drop":
        assert verified(folder, ilsvrc).passed


def test_labels_that_a_source_states_itself_are_kept(ilsvrc: Path, tmp_path: Path) -> None:
    own = {str(index): f"class {index}" for index in range(1000)}
    source = with_config(convert(ilsvrc, "transformers", tmp_path / "tiny-ilsvrc"), id2label=own)
    kept = convert(source, "timm", tmp_path / "kept")
    assert json.loads((kept / "config.json").read_text())["label_names"] == list(own.values())
    lost = verified(convert(source, "google", tmp_path / "lost"), source)
    assert lost.passed
    assert any("class names" in warning and "google" in warning for warning in lost.warnings)
