"""Names of classes from a file: every form is read, and every fault is one line with the file and the place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.command import assert_refused, run_here
from support.conversions import LABELS
from support.conversions import convert as converted

import convert
from bit.config import MAX_LABEL, BitConfig
from bit.files import MAX_BYTES
from convert.checkpoints.labels import read_labels
from convert.checkpoints.manifest import Manifest
from convert.checkpoints.options import ConversionOptions
from convert.errors import UsageError
from convert.layouts import LAYOUTS

pytestmark = pytest.mark.usefixtures("small_inputs")
NAMES = ("cat", "dog", "Zürich, a city")


def labels_file(folder: Path, content: bytes | str = "cat\ndog\nfish\n", name: str = "names.txt") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        "cat\ndog\nZürich, a city\n",
        "cat\r\ndog\r\nZürich, a city",
        "﻿cat\n dog \nZürich, a city\n\n  \n",
        json.dumps(NAMES),
        "\n" + json.dumps(dict(enumerate(NAMES)), indent=2),
        json.dumps({"2": NAMES[2], "0": NAMES[0], "1": NAMES[1]}, ensure_ascii=False),
        json.dumps({"model_type": "bit", "id2label": dict(enumerate(NAMES))}),
        json.dumps({"architecture": "resnetv2", "label_names": NAMES}),
    ],
)
def test_every_form_is_read(tmp_path: Path, content: str) -> None:
    assert read_labels(labels_file(tmp_path, content)) == NAMES


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("cat\n\ndog\n", ", line 2: the name is empty"),
        ("", "holds no names"),
        (" \n\n", "holds no names"),
        ("[]", "holds no names"),
        ("cat\ndog\ncat\n", ", line 3: the name 'cat' is that of class 0, too"),
        (f"cat\n{'x' * (MAX_LABEL + 1)}\n", f", line 2: the name has {MAX_LABEL + 1} characters; at most {MAX_LABEL}"),
        (b"cat\nd\xf6g\n", ", line 2: it is not UTF-8"),
        ("cat\nd\x1b[31mg\n", ", line 2: the name 'd\\x1b[31mg' has characters that cannot be printed"),
        (b"x" * (MAX_BYTES + 1), "is larger than 8 MiB"),
        ('["cat", 3]', ", entry 2: 3 is not a name"),
        ('["cat", " "]', ", entry 2: the name is empty"),
        ('["cat",\n "dog"', ", line 2: it is not valid JSON"),
        ('{"0": "cat", "2": "dog"}', "'2' is not the number of a class; expected the numbers 0 to 1"),
        ('{"0": "cat", "0": "dog"}', "holds a name twice"),
        ("[" * 100, "not valid JSON"),
        ("LABEL_0\nLABEL_1\n", "names that transformers makes up"),
    ],
)
def test_every_fault_is_one_line_with_the_file(
    tmp_path: Path, tiny_npz: Path, content: bytes | str, words: str
) -> None:
    path = labels_file(tmp_path, content)
    with pytest.raises(UsageError) as error:
        read_labels(path)
    assert str(error.value).startswith(str(path))
    assert words in str(error.value)
    assert str(error.value).isprintable()
    assert_refused(run_here("convert", tiny_npz, "--labels", path, cwd=tmp_path), words, tmp_path)


def test_a_missing_file_and_a_folder_are_one_line(tmp_path: Path, tiny_npz: Path) -> None:
    result = run_here("convert", tiny_npz, "--labels", "nothing.txt", cwd=tmp_path)
    assert_refused(result, "nothing.txt: No such file or directory", tmp_path)
    assert run_here("convert", tiny_npz, "--labels", ".", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--head", "new:4"), "names.txt holds 3 names, but the head has 4 classes: it ends after name 3"),
        (("--head", "new:2"), "but the head has 2 classes: it has one too many in name 3, 'fish'"),
        (("--head", "new:1"), "but the head has 1 class: it has one too many in name 2, 'dog'"),
        ((), "names.txt holds 3 names, but the head has 5 classes"),
        (("--head", "drop"), "the converted network has no head"),
        (("--head", "new:3", "--to", "google"), "google does not store class names; leave --labels out"),
    ],
)
def test_names_must_fit_the_head(tmp_path: Path, tiny_npz: Path, options: tuple[str, ...], words: str) -> None:
    labels_file(tmp_path)
    assert_refused(run_here("convert", tiny_npz, "--labels", "names.txt", *options, cwd=tmp_path), words, tmp_path)


@pytest.mark.parametrize(
    "layout",
    [
        name if name == "timm" else pytest.param(name, marks=pytest.mark.long)
        for name, layout in LAYOUTS.items()
        if layout.export.labelled
    ],
)
def test_a_new_head_is_named_in_every_layout_and_repeated_without_the_file(
    tiny_npz: Path, tmp_path: Path, layout: str
) -> None:
    path = labels_file(tmp_path)
    result = convert.convert(tiny_npz, to=layout, out=tmp_path / "out", head="new:3", labels=path)
    path.unlink()
    assert (result.manifest.options.labels, result.manifest.origin.labelled) == (("cat", "dog", "fish"), True)
    assert convert.verify(result.folder, full=False, replay=True).passed
    stored = next(iter(result.folder.glob("*.onnx" if layout == "onnx" else "config.json"))).read_bytes()
    assert b"fish" in stored
    assert "to `fish`" in (result.folder / "README.md").read_text()
    publication = convert.publish(result.folder, "me/r", dry_run=True)
    assert "--head new:3 --labels config.json" in publication.card


def test_a_head_without_names_is_named(tiny_npz: Path, tmp_path: Path) -> None:
    path = labels_file(tmp_path, json.dumps(list(LABELS.values())))
    result = convert.convert(tiny_npz, out=tmp_path / "out", labels=path)
    assert BitConfig.from_pretrained(result.folder).id2label == LABELS
    assert result.verification.passed
    moved = convert.convert(result.folder, to="timm", out=tmp_path / "moved")
    assert moved.verification.passed
    assert moved.manifest.origin.labelled


def test_names_are_replaced_only_when_asked(tiny_npz: Path, tmp_path: Path) -> None:
    first = converted(tiny_npz, "timm", tmp_path / "first", options=ConversionOptions(labels=tuple(LABELS.values())))
    same = labels_file(tmp_path, json.dumps(list(LABELS.values())), "same.json")
    other = labels_file(tmp_path, "\n".join("abcde"), "other.txt")
    assert convert.convert(first, out=tmp_path / "a", labels=same).verification.passed, "nothing is replaced"
    with pytest.raises(UsageError, match=r"names already, such as 'cat': leave out --labels .*other\.txt, or"):
        convert.convert(first, out=tmp_path / "b", labels=other)
    result = convert.convert(first, out=tmp_path / "b", labels=other, replace_labels=True)
    assert BitConfig.from_pretrained(result.folder).id2label == dict(enumerate("abcde"))
    assert convert.verify(result.folder, full=False, replay=True).passed
    assert convert.convert(first, out=tmp_path / "c", head="new:5", labels=other).verification.passed
    with pytest.raises(UsageError, match="--replace-labels needs --labels"):
        convert.convert(first, out=tmp_path / "d", replace_labels=True)


def test_another_conversion_in_the_folder_is_told_by_the_names(tiny_npz: Path, tmp_path: Path) -> None:
    path = labels_file(tmp_path)
    convert.convert(tiny_npz, out=tmp_path / "out", head="new:3", labels=path)
    assert not convert.convert(tiny_npz, out=tmp_path / "out", head="new:3", labels=path).created
    with pytest.raises(convert.CheckpointError, match="was converted with labels 'cat' and so on"):
        convert.convert(tiny_npz, out=tmp_path / "out", head="new:3")
    path.write_text("a\nb\nc\n")
    with pytest.raises(convert.CheckpointError, match="was converted with labels 'cat' and so on"):
        convert.convert(tiny_npz, out=tmp_path / "out", head="new:3", labels=path)


def test_names_in_a_manifest_are_checked(tiny_npz: Path, tmp_path: Path) -> None:
    folder = converted(tiny_npz, "timm", tmp_path / "out", options=ConversionOptions("new:2", labels=("a", "b")))
    values = json.loads((folder / "conversion.json").read_text())
    values["options"]["labels"] = ["a", ""]
    (folder / "conversion.json").write_text(json.dumps(values))
    with pytest.raises(convert.CheckpointError, match="invalid labels, class 1: the name is empty"):
        Manifest.read(folder)
