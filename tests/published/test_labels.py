"""What a conversion of a published name says of its classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.conversions import convert, verified, with_config

from bit.config import BitConfig
from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.options import ConversionOptions
from convert.layouts import LAYOUTS
from convert.published.labels import id2label
from convert.sources.synthetic import write_npz

ILSVRC = id2label("ilsvrc2012")


@pytest.fixture(scope="module")
def ilsvrc(synthetic: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1000 classes under a published name that has as many."""
    path = tmp_path_factory.mktemp("published") / "BiT-S-R50x1.npz"
    path.symlink_to(synthetic("R50x1"))
    return path


def config_of(path: Path) -> BitConfig:
    with Checkpoint(path) as checkpoint:
        return checkpoint.config


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_layout_gives_back_the_published_labels(ilsvrc: Path, tmp_path: Path, layout: str) -> None:
    folder = convert(ilsvrc, layout, tmp_path / "elsewhere")
    assert config_of(folder) == config_of(ilsvrc)
    assert config_of(folder).id2label == ILSVRC


@pytest.mark.parametrize("source", [True, False])
def test_the_labels_are_verified_with_and_without_the_source(ilsvrc: Path, tmp_path: Path, source: bool) -> None:
    folder = convert(ilsvrc, "transformers", tmp_path / "here")
    moved = folder.rename(tmp_path / "BiT-M-R50x1")
    assert verified(moved, ilsvrc if source else None).passed


def test_transformers_reads_each_label_once(ilsvrc: Path, tmp_path: Path) -> None:
    from transformers import BitConfig as TheirConfig

    theirs = TheirConfig.from_pretrained(convert(ilsvrc, "transformers", tmp_path / "out"))
    assert theirs.id2label == ILSVRC
    assert theirs.label2id == {label: index for index, label in ILSVRC.items()}
    assert len(theirs.label2id) == 1000


def test_the_head_of_imagenet_21k_has_its_labels_and_a_sigmoid(tmp_path: Path) -> None:
    write_npz(tmp_path / "BiT-M-R50x1.npz", BitConfig(num_labels=21843))
    folder = convert(tmp_path / "BiT-M-R50x1.npz", "transformers", tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert (len(config["id2label"]), len(config["label2id"])) == (21843, 21843)
    assert config["problem_type"] == "multi_label_classification"
    assert config_of(convert(folder, "timm", tmp_path / "timm")) == config_of(tmp_path / "BiT-M-R50x1.npz")


@pytest.mark.parametrize(("name", "classes"), [("BiT-M-R50x1", 3), ("BiT-S-R50x1", 999), ("BiT-M-R50x1-run0-dtd", 47)])
def test_another_number_of_classes_and_a_task_without_labels_get_none(tmp_path: Path, name: str, classes: int) -> None:
    write_npz(tmp_path / f"{name}.npz", BitConfig(num_labels=classes))
    config = config_of(tmp_path / f"{name}.npz")
    assert (config.num_labels, config.id2label, config.problem_type) == (classes, None, None)


@pytest.mark.parametrize("head", ["new:1000", "drop"])
def test_a_new_head_of_the_same_size_is_not_the_published_one(ilsvrc: Path, tmp_path: Path, head: str) -> None:
    folder = convert(ilsvrc, "transformers", tmp_path / "out", changes=ConversionOptions(head=head))
    on = convert(folder, "timm", tmp_path / "on")
    assert (config_of(folder).id2label, config_of(on).id2label) == (None, None)
    if head != "drop":
        assert verified(folder, ilsvrc).passed


def test_labels_that_a_source_states_itself_are_kept(ilsvrc: Path, tmp_path: Path) -> None:
    own = {str(index): f"class {index}" for index in range(1000)}
    source = with_config(convert(ilsvrc, "transformers", tmp_path / "BiT-S-R50x1"), id2label=own)
    kept = convert(source, "timm", tmp_path / "kept")
    assert json.loads((kept / "config.json").read_text())["label_names"] == list(own.values())
    lost = verified(convert(source, "google", tmp_path / "lost"), source)
    assert lost.passed
    assert "the names of the classes are left behind, google has no place for them" in lost.warnings
