"""Every code block and command of the model card, run as printed."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.cards import REPOSITORY, blocks, text_of
from support.command import BIT as COMMAND
from support.conversions import convert
from support.hub import hub
from support.hub_repositories import Repository
from support.networks import TINY

from convert.checkpoints.manifest import Manifest
from convert.checkpoints.options import ConversionOptions
from convert.network.inputs import images

Synthetic = Callable[[str], Path]
Case = tuple[str, ConversionOptions]
RUN = """
import contextlib, io, json, sys
printed = []
for number, blocks in enumerate(json.load(sys.stdin)):
    outputs = []
    for block in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile(block, f"README.md of case {number}", "exec"), {})
        outputs.append(output.getvalue())
    printed.append(outputs)
json.dump(printed, open("printed.json", "w"))
"""
QUICK = [
    ("transformers", ConversionOptions()),
    ("transformers", ConversionOptions("drop")),
    ("timm", ConversionOptions(dtype="bfloat16")),
    ("google", ConversionOptions()),
    ("google-tf2", ConversionOptions("drop")),
    ("onnx", ConversionOptions()),
]
LONG = [
    ("timm", ConversionOptions("drop")),
    ("transformers", ConversionOptions(dtype="float16")),
    ("onnx", ConversionOptions("drop")),
    ("flax", ConversionOptions()),
    ("flax", ConversionOptions("drop")),
    ("keras", ConversionOptions()),
    ("keras", ConversionOptions("drop")),
    ("keras-saved", ConversionOptions()),
    ("keras-saved", ConversionOptions("drop")),
]


@pytest.mark.parametrize("case", LONG, ids=lambda case: f"{case[0]}-{case[1].head}-{case[1].dtype}")
@pytest.mark.long
def test_the_code_runs_as_printed_in_other_libraries(tiny_npz: Path, workplace: Workplace, case: Case) -> None:
    check_cards(tiny_npz, workplace, [case])


def test_the_code_runs_as_printed(tiny_npz: Path, workplace: Workplace) -> None:
    """All in one process, because importing the frameworks takes longer than the rest."""
    check_cards(tiny_npz, workplace, QUICK)


def check_cards(source: Path, workplace: Workplace, cases: list[Case]) -> None:
    """Run the cards of an architecture that timm does not have; the next test has one that timm has."""
    for (layout, options), printed in zip(cases, workplace.run_cards(source, cases), strict=True):
        assert len(printed) == (2 if layout == "transformers" else 1), (layout, options)
        assert_agreement(printed, TINY.hidden_sizes[-1] if options.head == "drop" else None)


@pytest.mark.parametrize("options", [ConversionOptions(), ConversionOptions("drop")], ids=str)
@pytest.mark.parametrize("layout", ["transformers", "timm"])
@pytest.mark.long
def test_three_libraries_load_it_as_printed(
    synthetic: Synthetic, workplace: Workplace, layout: str, options: ConversionOptions
) -> None:
    (printed,) = workplace.run_cards(synthetic("R50x1"), [(layout, options)])
    assert len(printed) == 3
    assert_agreement(printed, 2048 if options.head == "drop" else None)


def test_the_commands_convert_the_same_again(synthetic: Synthetic, workplace: Workplace) -> None:
    options = ConversionOptions("new:3")
    manifest = Manifest.read(convert(synthetic("R14x1"), "transformers", workplace.folder / "first", options=options))
    assert manifest is not None
    convert_again, verify_again = blocks(text_of(manifest), "console")[-1].splitlines()
    workplace.type(convert_again)
    again = Manifest.read(workplace.folder / shlex.split(verify_again)[-1])
    assert again is not None
    assert again.files == manifest.files


@dataclasses.dataclass
class Workplace:
    """A folder with an image, and a Hub for the processes that are started in it."""

    folder: Path
    environment: dict[str, str]
    repositories: dict[str, Any]

    def run_cards(self, source: Path, cases: list[Case]) -> list[list[str]]:
        """Put conversions on the Hub; return the output of each code block of each card."""
        scripts = []
        for number, (layout, options) in enumerate(cases):
            name = f"{REPOSITORY}-{number}"
            converted = convert(source, layout, self.folder / name, options=options)
            manifest = Manifest.read(converted)
            assert manifest is not None
            self.repositories[name] = Repository.of(converted)
            text = text_of(manifest, name)
            for block in blocks(text.split("## How it was converted")[0], "console"):
                self.type(block.strip())
            scripts.append(blocks(text, "python"))
        self._run([sys.executable, "-W", "ignore", "-c", RUN], json.dumps(scripts))
        return list(json.loads((self.folder / "printed.json").read_text()))

    def type(self, line: str) -> None:
        prompt, command, *arguments = shlex.split(line)
        assert (prompt, command) == ("$", "bit")
        self._run([str(COMMAND), *arguments])

    def _run(self, command: list[str], given: str = "") -> None:
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, cwd=self.folder, env=environment, input=given, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    pixels = ((images(3, 1, 200, 300)[0] + 1) * 127.5).astype("uint8")
    Image.fromarray(pixels).save(tmp_path / "image.jpg")
    with hub() as server:
        environment = {**server.environment, "HF_HOME": str(tmp_path / "cache")}
        yield Workplace(tmp_path, environment, server.repositories)


def assert_agreement(printed: list[str], features: int | None) -> None:
    """Assert that all outputs name the same most probable class, or the same number of features."""
    if features is not None:
        assert all(re.search(rf"\b{features}\b", text) for text in printed), printed
        return
    lines = [text.splitlines() for text in printed]
    assert {len(each) for each in lines} == {5}, printed
    for each in lines:
        shares = [float(line.split("%")[0]) for line in each]
        assert sorted(shares, reverse=True) == shares
        assert 0 < sum(shares) <= 100.3
    first = {re.search(r"\d+$", each[0])[0] for each in lines if re.search(r"% (LABEL_)?\d+$", each[0])}
    assert len(first) <= 1, printed
