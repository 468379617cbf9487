"""`conversion.json` is read strictly: every field is checked, and the error names the field that is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.conversions import convert, with_config

from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.manifest import SCHEMA, Manifest, foreign_names
from convert.errors import CheckpointError

Values = dict[str, Any]


@pytest.fixture
def folder(tiny_npz: Path, tmp_path: Path) -> Path:
    return convert(tiny_npz, "timm", tmp_path / "out")


def change(folder: Path, edit: Callable[[Values], object]) -> None:
    values = json.loads((folder / "conversion.json").read_text())
    edit(values)
    (folder / "conversion.json").write_text(json.dumps(values))


def as_schema_1(values: Values) -> None:
    del values["schema"]
    values["changes"] = values.pop("options")


def test_a_manifest_reads_back_as_it_was_written(folder: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(folder)
    assert manifest is not None
    assert manifest.schema == SCHEMA == 2
    (tmp_path / "copy").mkdir()
    manifest.write(tmp_path / "copy")
    assert Manifest.read(tmp_path / "copy") == manifest


def test_a_folder_without_a_manifest_has_none(tmp_path: Path) -> None:
    assert Manifest.read(tmp_path) is None


def test_an_older_folder_must_be_converted_again(folder: Path) -> None:
    change(folder, as_schema_1)
    message = re.escape(f"{folder / 'conversion.json'} was written by an older version (schema 1); convert it again")
    for read in (Manifest.read, Checkpoint):
        with pytest.raises(CheckpointError, match=message):
            read(folder)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(folder / "model.safetensors")


def test_a_newer_folder_needs_a_newer_version(folder: Path) -> None:
    change(folder, lambda values: values.update(schema=SCHEMA + 1))
    with pytest.raises(CheckpointError, match=r"by a newer version \(schema 3\); update bit-convert"):
        Manifest.read(folder)


def test_an_older_folder_can_be_replaced(folder: Path, tiny_npz: Path) -> None:
    change(folder, as_schema_1)
    assert foreign_names(folder) == []
    (folder / "mine.txt").touch()
    assert foreign_names(folder) == ["mine.txt"]


def test_another_programs_file_of_the_same_name_does_not_make_a_folder_replaceable(tmp_path: Path) -> None:
    (tmp_path / "data.bin").touch()
    (tmp_path / "conversion.json").write_text(json.dumps({"files": {"data.bin": {}}}))
    assert foreign_names(tmp_path) == ["conversion.json", "data.bin"]


@pytest.mark.parametrize(
    ("edit", "field"),
    [
        (lambda values: values.update(name=7), r"\$.name"),
        (lambda values: values.update(name="a\0b"), "name is not"),
        (lambda values: values.update(name=".."), "name '..' cannot"),
        (lambda values: values.update(layout="\x1b[2J"), "layout is not"),
        (lambda values: values.update(classes="5"), r"\$.classes"),
        (lambda values: values.update(ws_eps=2.0), "ws_eps is 2"),
        (lambda values: values.update(ws_eps=0), "ws_eps is 0"),
        (lambda values: values.update(ws_eps=True), r"\$.ws_eps"),
        (lambda values: values.pop("origin"), "`origin`"),
        (lambda values: values["origin"].update(sha256="0" * 63), "origin.sha256"),
        (lambda values: values["origin"].update(sha256="0" * 64 + "\n"), "origin.sha256"),
        (lambda values: values["origin"].update(roundings=["0.9"]), "origin.roundings"),
        (lambda values: values["origin"].update(roundings=["float16"] * 10), "origin.roundings"),
        (lambda values: values["origin"].update(roundings=[16]), r"\$.origin.roundings"),
        (lambda values: values["options"].update(dtype="fp16"), r"\$.options"),
        (lambda values: values["source"].update(files={}), "source.files is empty"),
        (lambda values: values["source"].update(path="a\nb"), "source.path"),
        (lambda values: values["files"].update({"a\nb": {"bytes": 1, "sha256": "0" * 64}}), "files"),
        (lambda values: values["files"]["model.safetensors"].update(sha256="x"), "files.*sha256"),
        (lambda values: values["files"]["model.safetensors"].update(bytes="many"), r"\$.files"),
        (lambda values: values.update(tensors={"a": 1}), r"\$.tensors"),
        (lambda values: values["tensors"][3].update(shape="wide"), r"\$.tensors\[3\].shape"),
        (lambda values: values["tensors"][3].update(scale={}), r"\$.tensors\[3\].scale"),
        (lambda values: values["tensors"][3].pop("target"), r"`target` - at `\$.tensors\[3\]"),
        (lambda values: values["tensors"][3].update(scale=-1.0), r"\$.tensors\[3\].scale"),
        (lambda values: values["tensors"][3].update(dtype="float8"), "each with a dtype of"),
        (lambda values: values["tensors"][3].update(shape=[-1]), r"\$.tensors\[3\].shape"),
        (lambda values: values["tensors"][3].update(transform="<b> -> c"), r"\$.tensors\[3\].transform"),
        (lambda values: values["tensors"][3].update(values["tensors"][4]), "tensors names a parameter twice"),
        (lambda values: values.update(layout="tensorrt"), "layout is not one of transformers, timm"),
        (lambda values: values.update(classes=-1), "classes is not a number from 0"),
        (lambda values: values.update(classes=10**400), r"\$.classes|classes is not"),
        (lambda values: values.update(schema=10**400), r"\$.schema"),
        (lambda values: values.update(name="a" * 256), "name is not a printable name"),
        (lambda values: values.update(converter="<img src=x onerror=alert(1)>"), "converter is not bit-convert"),
        (lambda values: values.update(converter="bit-convert 1 <b>"), "converter is not bit-convert"),
        (lambda values: values["origin"].update(head="new:<b>"), "origin.head is not keep, drop or new:N"),
        (lambda values: values["origin"].update(address="https://me:secret@host/x"), r"\$.origin.address"),
        (lambda values: values["origin"].update(address="javascript:alert(1)"), r"\$.origin.address"),
        (lambda values: values["source"].update(address="hf:a/b@c\n"), r"\$.source.address"),
        (lambda values: values["options"].update(dtype="A" * 100_000), "invalid dtype 'A{80,100}…'"),
        (
            lambda values: values["files"].update({"../a": {"bytes": 1, "sha256": "0" * 64}}),
            "is not the name of a file",
        ),
        (lambda values: values["files"]["model.safetensors"].update(bytes=-1), "is not the size of a file"),
        (lambda values: values["source"].update(path="a" * 10_000), "source.path is not a printable path"),
    ],
)
def test_an_invalid_field_is_named(folder: Path, edit: Callable[[Values], object], field: str) -> None:
    change(folder, edit)
    with pytest.raises(CheckpointError, match=f"conversion.json is damaged: .*{field}.*; convert again"):
        Manifest.read(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"name": "\xff"}',
        b"7",
        b'{"name": "\\ud800"}',
        b'{"name": 1, "name": 1}',
        b'{"ws_eps": NaN}',
        b'{"ws_eps": 1e400}',
    ],
)
def test_content_that_is_not_a_manifest_is_an_error(folder: Path, content: bytes) -> None:
    (folder / "conversion.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"conversion\.json is damaged"):
        Manifest.read(folder)


@pytest.mark.parametrize("epsilon", ["1", "2.0", "0.0", "true", "NaN", "1e400", "null", '"1e-8"'])
@pytest.mark.parametrize("layout", ["transformers", "timm"])
def test_an_epsilon_that_no_manifest_may_have_is_refused_where_it_is_read(
    tiny_npz: Path, tmp_path: Path, layout: str, epsilon: str
) -> None:
    start = with_config(convert(tiny_npz, layout, tmp_path / "start"), ws_eps="here")
    config = start / "config.json"
    config.write_text(config.read_text().replace('"here"', epsilon))
    with pytest.raises(CheckpointError, match=r"config.json .*(ws_eps|NaN) is"):
        convert(start, "google", tmp_path / "out")
    assert not (tmp_path / "out").exists()
