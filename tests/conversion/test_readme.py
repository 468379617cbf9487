"""The page in every converted folder: it is the same wherever a conversion is repeated, and a card replaces it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image
from support.cards import blocks
from support.conversions import convert as converted
from support.networks import TINY

import convert
from bit.image_processing import BitImageProcessorPil
from convert.checkpoints.manifest import CARD_MARK, Manifest, is_own_card
from convert.checkpoints.options import ConversionOptions
from convert.layouts import LAYOUTS
from convert.network.inputs import images
from convert.sources.synthetic import write_npz

pytestmark = pytest.mark.usefixtures("small_inputs")
Case = tuple[str, ConversionOptions]
RUN = """
import contextlib, io, json, os, sys
printed = []
for folder, blocks in json.load(sys.stdin):
    os.chdir(folder)
    outputs = []
    for block in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile(block, f"{folder}/README.md", "exec"), {})
        outputs.append(output.getvalue())
    printed.append(outputs)
json.dump(printed, open(sys.argv[1], "w"))
"""
QUICK: list[Case] = [
    ("google", ConversionOptions()),
    ("google-tf2", ConversionOptions("drop")),
    ("onnx", ConversionOptions("new:3", labels=("cat", "dog", "fish"))),
    ("onnx", ConversionOptions("drop")),
]
FRAMEWORKS: list[Case] = [
    (layout, options)
    for layout, found in LAYOUTS.items()
    if layout not in ("google", "google-tf2", "onnx")
    for options in (
        ConversionOptions(),
        ConversionOptions("drop"),
        *([] if found.folded else [ConversionOptions("new:3", "bfloat16", labels=("cat", "dog", "fish"))]),
    )
]


def readme_of(folder: Path) -> str:
    return (folder / "README.md").read_text("utf-8")


def outputs_of(folders: list[Path], tmp_path: Path) -> list[list[str]]:
    """Run the code of each folder's page in that folder, all in one process, and return what each block printed."""
    pixels = ((images(3, 1, 200, 300)[0] + 1) * 127.5).astype("uint8")
    for folder in folders:
        Image.fromarray(pixels).save(folder / "image.jpg")
    given = json.dumps([(str(folder), blocks(readme_of(folder), "python")) for folder in folders])
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-c", RUN, str(tmp_path / "printed.json")]
    done = subprocess.run(command, env=environment, input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(json.loads((tmp_path / "printed.json").read_text()))


def check_outputs(source: Path, cases: list[Case], tmp_path: Path) -> None:
    folders = [converted(source, layout, tmp_path / str(n), options=o) for n, (layout, o) in enumerate(cases)]
    for (layout, options), printed in zip(cases, outputs_of(folders, tmp_path), strict=True):
        lines = printed[0].splitlines()
        if options.head == "drop":
            assert re.search(rf"\b{TINY.hidden_sizes[-1]}\b", lines[0]), (layout, printed)
        elif options.labels is not None:
            assert {line.split()[1] for line in lines} == {"cat", "dog", "fish"}, (layout, printed)
        else:
            assert len(lines) == 5, (layout, printed)
            assert 99 < sum(float(line.split("%")[0]) for line in lines) < 101


def test_the_code_runs_as_printed(tiny_npz: Path, tmp_path: Path) -> None:
    check_outputs(tiny_npz, QUICK, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("layout", dict.fromkeys(case[0] for case in FRAMEWORKS))
def test_the_code_runs_as_printed_in_frameworks(tiny_npz: Path, tmp_path: Path, layout: str) -> None:
    check_outputs(tiny_npz, [case for case in FRAMEWORKS if case[0] == layout], tmp_path)


@pytest.mark.long
def test_timm_loads_a_network_that_it_has_as_printed(synthetic: object, tmp_path: Path) -> None:
    folder = converted(synthetic("R50x1"), "timm", tmp_path / "out")  # type: ignore[operator]
    assert "timm.create_model(" in blocks(readme_of(folder), "python")[0]
    ((printed,),) = outputs_of([folder], tmp_path)
    assert len(printed.splitlines()) == 5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_code_and_the_preprocessing_in_words_and_as_json(
    tiny_npz: Path, tmp_path: Path, layout: str
) -> None:
    folder = converted(tiny_npz, layout, tmp_path / "out")
    text = readme_of(folder)
    assert blocks(text, "python")
    (settings,) = blocks(text, "json")
    size = "256 pixels on the shorter edge (bilinear) and cropped to 224×224" if layout == "timm" else "480×480 pixels"
    assert f"Images are resized to {size}" in text
    stated = folder / "preprocessor_config.json"
    assert stated.exists() == (layout not in ("timm", "google", "google-tf2"))
    if stated.exists():
        assert json.loads(settings) == json.loads(stated.read_text())
    (pixels,) = BitImageProcessorPil.from_dict(json.loads(settings))(np.zeros((300, 400, 3), np.uint8))["pixel_values"]
    assert pixels.shape == (3, *((224, 224) if layout == "timm" else (480, 480)))
    assert (pixels == -1).all()


def test_a_repeated_conversion_writes_the_same_page(tiny_npz: Path, tmp_path: Path) -> None:
    one, other = (converted(tiny_npz, "flax", tmp_path / name) for name in ("one", "deep/other"))
    assert (one / "README.md").read_bytes() == (other / "README.md").read_bytes()
    text = readme_of(one)
    assert str(tmp_path) not in text
    assert not re.search(r"\b20[2-9][0-9]-[0-9]{2}\b", text), "no date"
    assert "verified" not in text, "it is written before"
    assert is_own_card(text.encode())


def test_the_page_states_the_limits(tiny_npz: Path, tmp_path: Path) -> None:
    options = ConversionOptions("new:3", "bfloat16", "compensate")
    text = readme_of(converted(tiny_npz, "timm", tmp_path / "a", options=options))
    for words in (
        "Kernels were scaled",
        "head is new and all zeros",
        "rounded to bfloat16",
        "has no model for units",
    ):
        assert words in text
    text = readme_of(converted(tiny_npz, "transformers", tmp_path / "b"))
    assert "transformers standardizes weights with epsilon 1e-08, these expect 1e-10" in text
    assert "is read from `config.json`" in readme_of(converted(tiny_npz, "keras", tmp_path / "c"))
    result = convert.convert(tiny_npz, to="google", out=tmp_path / "d", source_ws_eps=1e-8, verify=False)
    assert "taken to have been trained with epsilon 1e-08" in readme_of(result.folder)


@pytest.mark.parametrize("profile", ["google", "google:480", "google:224", "google:32", "timm"])
def test_only_googles_own_sizes_are_called_googles(tiny_npz: Path, tmp_path: Path, profile: str) -> None:
    page = readme_of(converted(tiny_npz, "onnx", tmp_path / "out", options=ConversionOptions(profile=profile)))
    assert ("how Google's own code evaluates" in page) == ("128×128" in page) == (profile == "google")


def test_names_are_shown_as_text(tmp_path: Path) -> None:
    name = 'a"b<script>`x`|[y](z)'
    write_npz(tmp_path / f"{name}.npz", TINY)
    labels = ("<b>", "`", "c|d", "e", "f")
    for layout in ("google", "transformers"):
        options = ConversionOptions(labels=labels) if layout == "transformers" else ConversionOptions()
        folder = converted(tmp_path / f"{name}.npz", layout, tmp_path / layout, options=options)
        text = readme_of(folder)
        assert "<script>" not in MarkdownIt().render(text)
        for block in blocks(text, "python"):
            compile(block, "README.md", "exec")


def test_a_page_that_was_written_by_hand_is_never_replaced(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert.convert(tiny_npz, out=tmp_path / "out", verify=False).folder
    convert.convert(tiny_npz, out=tmp_path / "out", verify=False, force=True)
    (folder / "README.md").write_text("# mine\n")
    with pytest.raises(convert.CheckpointError, match=r"holds files that are not part of a conversion \(README\.md\)"):
        convert.convert(tiny_npz, out=tmp_path / "out", force=True)
    assert readme_of(folder) == "# mine\n"


def test_a_push_sends_the_card_in_place_of_the_page(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert.convert(tiny_npz, out=tmp_path / "out").folder
    page = readme_of(folder)
    publication = convert.publish(folder, "me/tiny", dry_run=True)
    assert publication.card.startswith("---\nlicense:")
    assert publication.card.rstrip().endswith(CARD_MARK)
    assert readme_of(folder) == page, "nothing is written to the folder"
    mine = convert.publish(folder, "me/tiny", dry_run=True, extra={"README.md": b"# mine\n"})
    assert mine.card == "# mine\n"
    (folder / "README.md").write_text("# mine\n")
    assert convert.publish(folder, "me/tiny", dry_run=True).card == "# mine\n"


def test_the_manifest_lists_every_file_but_the_page(tiny_npz: Path, tmp_path: Path) -> None:
    folder = converted(tiny_npz, "onnx", tmp_path / "out")
    manifest = Manifest.read(folder)
    assert manifest is not None
    files = {path.name for path in folder.iterdir()}
    assert files - set(manifest.files) == {"README.md", "conversion.json"}
