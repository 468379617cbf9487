"""The catalogue of published checkpoints, and choosing from it."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from support.command import assert_refused, run_here

from convert.errors import CheckpointError
from convert.published.catalogue import FACTS, find, published, zoo
from convert.published.labels import LABEL_SETS


def test_every_published_file_is_listed_once() -> None:
    items = list(published().values())
    assert len(items) == 12 + 10 + 6 + 1 + 285 + 4
    assert len({item.address for item in items}) == len(items)
    folders = Counter(str(Path(item.address).parent) for item in items)
    assert folders == {".": 12 + 10 + 6 + 1, "vtab": 285, "distill": 4}
    assert all(Path(item.address).name in (item.name, f"{item.name}.npz") for item in items)
    assert sum(item.address.endswith(".h5") for item in items) == 10


@pytest.mark.parametrize(
    ("name", "address", "classes", "labels", "data"),
    [
        ("BiT-S-R50x1", "BiT-S-R50x1.npz", 1000, "ilsvrc2012", ("ILSVRC-2012",)),
        ("BiT-M-R152x4", "BiT-M-R152x4.npz", 21843, "imagenet21k", ("ImageNet-21k",)),
        ("BiT-M-R50x3.h5", "BiT-M-R50x3.h5", 21843, "imagenet21k", ("ImageNet-21k",)),
        ("BiT-M-R152x2-ILSVRC2012", "BiT-M-R152x2-ILSVRC2012.npz", 1000, "ilsvrc2012", ("ImageNet-21k", "ILSVRC-2012")),
        (
            "BiT-M-R101x3-run2-dsprites-xpos",
            "vtab/BiT-M-R101x3-run2-dsprites-xpos.npz",
            16,
            None,
            ("ImageNet-21k", "VTAB-1k"),
        ),
        ("R152x2_T_384", "distill/R152x2_T_384.npz", 1000, "ilsvrc2012", ("ImageNet-21k", "ILSVRC-2012")),
    ],
)
def test_a_checkpoint_has_an_address_classes_labels_and_data(
    name: str, address: str, classes: int, labels: str | None, data: tuple[str, ...]
) -> None:
    found = published()[name]
    assert (found.address, found.classes, found.labels, found.data) == (address, classes, labels, data)


def test_each_checkpoint_has_a_licence_a_citation_and_a_known_set_of_labels() -> None:
    for item in published().values():
        assert item.license == "apache-2.0"
        distilled = item.address.startswith("distill/")
        assert ("2106.05237" if distilled else "1912.11370") in item.citation
        assert item.citation.count("{") == item.citation.count("}")
        assert item.labels in (None, *LABEL_SETS)


def test_accuracies_state_the_resolution() -> None:
    rated = [item for item in published().values() if item.accuracies]
    assert len(rated) == 6 + 1 + 4
    for item in rated:
        assert {found.resolution for found in item.accuracies} == {item.evaluation.size}
        assert all(50 < found.value < 100 and found.source for found in item.accuracies)
    student = published()["R50x1_224"].accuracies
    assert [(found.value, found.source) for found in student] == [
        (82.8, "arXiv 2106.05237"),
        (82.82, "timm, `results-imagenet.csv`"),
    ]


def test_names_and_evaluations_are_those_of_timm() -> None:
    import timm

    tagged = [item for item in published().values() if item.timm_name is not None]
    assert len(tagged) == 6 + 6 + 3
    for item in tagged:
        theirs = timm.get_pretrained_cfg(item.timm_name)
        ours = item.evaluation
        assert (theirs.input_size, theirs.num_classes) == ((3, ours.size, ours.size), item.classes)
        assert (theirs.crop_pct, theirs.interpolation) == (ours.crop_pct, ours.interpolation)


def test_a_checkpoint_is_found_by_the_name_in_timm_too() -> None:
    for name in ("BiT-M-R50x1", "resnetv2_50x1_bit.goog_in21k", "timm/resnetv2_50x1_bit.goog_in21k"):
        assert find(name) is published()["BiT-M-R50x1"]
    assert published()["BiT-M-R50x1.h5"].timm_name is None
    assert find("BiT-M-R51x1") is None


def test_known_defects_belong_to_files_that_were_published() -> None:
    assert {name: published()[name].defects for name in FACTS.defects} == FACTS.defects
    assert sum(bool(item.defects) for item in published().values()) == len(FACTS.defects)


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        ({}, 318),
        ({"pattern": "bit-m-*-dtd"}, 15),
        ({"pattern": "ilsvrc"}, 6),
        ({"architecture": "r152x2"}, 1 + 1 + 1 + 2),
        ({"data": "imagenet21k"}, 6 + 5 + 6 + 1 + 285 + 2),
        ({"task": "caltech101", "architecture": "R50x1"}, 3),
        ({"task": "cifar10"}, 1),
        ({"classes": 21843}, 11),
    ],
)
def test_filters_select_checkpoints(wanted: dict[str, str], count: int) -> None:
    assert len(zoo(**wanted)) == count  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"pattern": "BiT-M-R50x4"}, r"none of the 318 published checkpoints has the name .*did you mean BiT-M-R50x\d"),
        ({"architecture": "R50x2"}, "the architecture R50x2; did you mean R50x3 or R50x1"),
        ({"task": "caltech-102"}, "did you mean caltech101"),
        ({"architecture": "R152x2", "task": "dtd"}, "none of the 5 published checkpoints left has the task dtd$"),
        ({"classes": 999}, "has the classes 999"),
    ],
)
def test_a_filter_that_matches_nothing_is_an_error_with_suggestions(wanted: dict[str, str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        zoo(**wanted)  # type: ignore[arg-type]


def test_bit_list_fits_a_terminal_and_has_a_row_for_each_task_of_vtab(tmp_path: Path) -> None:
    result = run_here("list", cwd=tmp_path, COLUMNS="80")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert sum(line.startswith("BiT-M-*-") for line in lines) == len(FACTS.vtab_classes)
    rows = lines[: lines.index(next(line for line in lines if line.startswith("R152x2_T_384"))) + 1]
    assert len(rows) == 1 + 318 - 285 + len(FACTS.vtab_classes)
    assert max(map(len, rows)) <= 80
    assert "! BiT-S-R50x3.h5: holds another network" in result.stdout
    assert lines[-1].startswith("318 checkpoints")


def test_a_pattern_in_a_row_can_be_listed(tmp_path: Path) -> None:
    result = run_here("list", "BiT-M-*-dtd", "--architecture", "R50x1", cwd=tmp_path)
    assert [line.split()[0] for line in result.stdout.splitlines()[1:-1]] == [
        f"BiT-M-R50x1-run{run}-dtd" for run in range(3)
    ]


def test_bit_list_prints_every_field_as_json(tmp_path: Path) -> None:
    result = run_here("list", "BiT-M-R50x1-ILSVRC2012", "--json", cwd=tmp_path)
    (found,) = json.loads(result.stdout)
    assert found["url"] == "https://storage.googleapis.com/bit_models/BiT-M-R50x1-ILSVRC2012.npz"
    assert found["accuracies"][0]["value"] == 80.39
    assert found["accuracies"][0]["resolution"] == 448
    assert found["evaluation"]["size"] == 448


def test_make_list_hands_its_arguments_on() -> None:
    makefile = Path(__file__).parent.parent.parent
    command = ["make", "--no-print-directory", "-n", "list", "ARGS=R50x1"]
    result = subprocess.run(command, cwd=makefile, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == ".venv/bin/bit list R50x1", result.stderr


def test_bit_list_without_a_match_is_one_error_line(tmp_path: Path) -> None:
    assert_refused(run_here("list", "BiT-M-R51x1", cwd=tmp_path), "did you mean BiT-M-R50x1", tmp_path)
