"""The model card, held to what the Hub reads of it, and its code run as it is printed."""

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
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image
from support.command import BIT as COMMAND
from support.conversions import convert, verified
from support.hub import hub
from support.networks import TINY

from convert.checkpoints.manifest import Manifest
from convert.checkpoints.options import ConversionOptions
from convert.layouts import LAYOUTS
from convert.network.inputs import images
from convert.published.catalogue import BIT, DISTILLATION, published
from convert.publishing.card import SOURCES, card

REPOSITORY = "me/a-bit"
Synthetic = Callable[[str], Path]

RUN = """
import contextlib, io, json, sys
printed = []
for block in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(block, "README.md", "exec"), {})
    printed.append(output.getvalue())
json.dump(printed, open("printed.json", "w"))
"""


def test_the_metadata_has_every_field(made_up: Manifest) -> None:
    data = metadata(zoo_record(made_up, "BiT-M-R101x1-ILSVRC2012"))
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "apache-2.0",
        "transformers",
        "image-classification",
    )
    assert {"bit", "big-transfer", "bit-convert", "resnetv2", "transformers"} <= set(data.tags)
    assert data.datasets == ["ILSVRC/imagenet-1k"], "ImageNet-21k is on the Hub under no name of its own"
    assert data.base_model == "timm/resnetv2_101x1_bit.goog_in21k_ft_in1k"
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_type) == ("accuracy", 82.33, "ILSVRC/imagenet-1k")
    assert result.source_url.endswith("results-imagenet.csv")


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_the_library_is_the_one_that_reads_the_layout(made_up: Manifest, layout: str) -> None:
    data = metadata(dataclasses.replace(made_up, layout=layout))
    assert data.library_name == (layout if layout in ("transformers", "timm", "onnx") else "bit-convert")
    assert layout in data.tags


def test_the_base_is_the_repository_that_was_converted(made_up: Manifest) -> None:
    path = "../../.cache/huggingface/hub/models--timm--resnetv2_50x1_bit.goog_in21k/snapshots/0a1b"
    record = dataclasses.replace(made_up, source=dataclasses.replace(made_up.source, path=path))
    data = metadata(record)
    assert data.base_model == "timm/resnetv2_50x1_bit.goog_in21k"
    assert "base_model_relation" not in data
    rounded = dataclasses.replace(record, origin=dataclasses.replace(record.origin, roundings=("float16",)))
    assert metadata(rounded)["base_model_relation"] == "quantized"
    assert metadata(record, "timm/resnetv2_50x1_bit.goog_in21k").base_model is None, "nothing is its own base"
    assert "$ bit convert hf:timm/resnetv2_50x1_bit.goog_in21k --to transformers\n" in text_of(record)


@pytest.mark.parametrize(
    ("name", "classes", "said"),
    [
        ("BiT-M-R50x3", 21843, ["trained on ImageNet-21k", "sigmoid for each class", ".sigmoid()", "No figure"]),
        ("BiT-S-R50x1", 1000, ["trained on ILSVRC-2012", ".softmax(-1)", "No figure", "WordNet"]),
        ("BiT-S-R152x2", 1000, ["Known of the published file: big\\_transfer names it in its code"]),
        ("BiT-M-R152x4-ILSVRC2012", 1000, ["| ILSVRC-2012 | top-1 | 84.94 | 480 |", "then on ILSVRC-2012"]),
        ("BiT-M-R50x1-CIFAR10", 10, ["| CIFAR-10 | top-1 | 97.64 | 128 |", "a square of 128 pixels"]),
        ("BiT-M-R101x3-run2-patch_camelyon", 2, ["then on VTAB-1k (task `patch_camelyon`)", "topk(2)", "No figure"]),
        ("R50x1_224", 1000, ["| 82.8 | 224 |", "| 82.82 | 224 |", "arXiv 2106.05237", DISTILLATION]),
        ("R152x2_T_384", 1000, ["| 83.86 | 384 |", "ImageNet-21k, then on ILSVRC-2012"]),
        ("BiT-M-R50x1.h5", 21843, ["`BiT-M-R50x1.h5`", "sigmoid", BIT]),
    ],
)
def test_a_card_says_what_is_published_of_the_checkpoint(
    made_up: Manifest, name: str, classes: int, said: list[str]
) -> None:
    record = zoo_record(made_up, name)
    assert record.classes == classes
    text = text_of(record)
    assert [words for words in said if words not in text] == []
    assert published()[name].url in text
    assert (
        ("## Accuracy\n\n| data" in text) == bool(published()[name].accuracies) == bool(metadata(record).eval_results)
    )


def test_what_is_published_under_timms_name_is_known_too(made_up: Manifest) -> None:
    record = zoo_record(made_up, "BiT-M-R50x1")
    origin = dataclasses.replace(record.origin, name="resnetv2_50x1_bit.goog_in21k")
    assert ".sigmoid()" in text_of(dataclasses.replace(record, origin=origin))


def test_every_source_of_an_accuracy_can_be_looked_up() -> None:
    assert {accuracy.source for item in published().values() for accuracy in item.accuracies} == SOURCES.keys()


def test_figures_of_other_weights_are_not_claimed(made_up: Manifest) -> None:
    record = zoo_record(made_up, "BiT-M-R50x1-ILSVRC2012")
    for changes in ({"head": "new:10"}, {"head": "drop"}):
        changed = dataclasses.replace(record, origin=dataclasses.replace(record.origin, **changes))
        assert "80.39" not in text_of(changed)
    assert "all zeros" in text_of(dataclasses.replace(record, origin=dataclasses.replace(record.origin, head="new:10")))
    rounded = dataclasses.replace(record, origin=dataclasses.replace(record.origin, roundings=("bfloat16",)))
    assert metadata(rounded).eval_results is None
    assert "rounded to bfloat16, with a relative error of up to 3.9e-03" in text_of(rounded)
    other = dataclasses.replace(record, architecture="R26x1")
    assert "80.39" not in text_of(other), "a name is not believed of another network"


def test_random_weights_are_called_random(synthetic: Synthetic, tmp_path: Path) -> None:
    record = Manifest.read(convert(synthetic("R14x1"), "transformers", tmp_path / "out"))
    assert record is not None
    text = text_of(record)
    assert "**The weights are random numbers" in text
    assert "Accuracy\n\nNone" in text


@pytest.mark.parametrize("name", ['`a` | b: "c" # d', "--- [x](y) <b> ```", "'{{ x }}' \\ $m$ 名", "a``", "|"])
def test_a_hostile_name_stays_a_name(made_up: Manifest, name: str) -> None:
    origin = dataclasses.replace(made_up.origin, name=name)
    record = dataclasses.replace(zoo_record(made_up, "BiT-M-R50x1-ILSVRC2012"), name=name)
    assert metadata(record).model_name == name
    for layout in LAYOUTS:
        text = text_of(dataclasses.replace(made_up, name=name, origin=origin, layout=layout))
        assert ModelCard(text).data.license == "apache-2.0"
        for block in blocks(text, "python"):
            compile(block, "README.md", "exec")
        assert len(re.findall("^```", text, re.MULTILINE)) % 2 == 0
        (command,) = [line for line in text.splitlines() if line.startswith("$ bit verify")]
        assert shlex.split(command)[-1] == f"converted/{name}/{layout}"


def test_the_verification_is_a_row_for_each_run(made_up: Manifest) -> None:
    text = text_of(made_up)
    assert "| definition | written | float64 | end-to-end | 2 | `logits` | 5.0e-10 | 1.0e-09 |" in text
    assert "| timm | source | float32 | end-to-end | 1 | `stem` | 1.0e-06 | 4.0e-06 |" in text
    assert f"7 of {len(made_up.tensors)} tensors give back the source's bytes" in text
    assert "Of 3 classifications of seeded images by these runs, 3 have the same first class as the reference" in text
    assert "moves `logits` by 3.5e-04" in text
    assert "flax was not run: jax is not installed" in text
    assert text == text_of(made_up)


@pytest.mark.parametrize(
    ("layout", "changes"),
    [
        ("transformers", ConversionOptions()),
        ("transformers", ConversionOptions("drop")),
        ("timm", ConversionOptions(dtype="bfloat16")),
        ("google", ConversionOptions()),
        ("google-tf2", ConversionOptions("drop")),
        ("onnx", ConversionOptions()),
        pytest.param("timm", ConversionOptions("drop"), marks=pytest.mark.long),
        pytest.param("transformers", ConversionOptions(dtype="float16"), marks=pytest.mark.long),
        pytest.param("onnx", ConversionOptions("drop"), marks=pytest.mark.long),
        pytest.param("flax", ConversionOptions(), marks=pytest.mark.long),
        pytest.param("flax", ConversionOptions("drop"), marks=pytest.mark.long),
        pytest.param("keras", ConversionOptions(), marks=pytest.mark.long),
        pytest.param("keras", ConversionOptions("drop"), marks=pytest.mark.long),
    ],
    ids=str,
)
def test_the_code_runs_as_printed(
    tiny_npz: Path, workplace: Workplace, layout: str, changes: ConversionOptions
) -> None:
    """Of a network that timm has no name for; the next has one."""
    printed = workplace.run_card(tiny_npz, layout, changes)
    assert len(printed) == (2 if layout == "transformers" else 1)
    agree(printed, TINY.hidden_sizes[-1] if changes.head == "drop" else None)


@pytest.mark.parametrize("changes", [ConversionOptions(), ConversionOptions("drop")], ids=str)
@pytest.mark.parametrize("layout", ["transformers", "timm"])
@pytest.mark.long
def test_three_libraries_load_it_as_printed(
    synthetic: Synthetic, workplace: Workplace, layout: str, changes: ConversionOptions
) -> None:
    printed = workplace.run_card(synthetic("R50x1"), layout, changes)
    assert len(printed) == 3
    agree(printed, 2048 if changes.head == "drop" else None)


def test_the_commands_convert_the_same_again(synthetic: Synthetic, workplace: Workplace) -> None:
    record, text = workplace.publish(synthetic("R14x1"), "transformers", ConversionOptions("new:3"))
    convert_again, verify_again = blocks(text, "console")[-1].splitlines()
    workplace.type(convert_again)
    again = Manifest.read(workplace.folder / shlex.split(verify_again)[-1])
    assert again is not None
    assert again.files == record.files


@dataclasses.dataclass
class Workplace:
    """A folder with an image, and a Hub that a process started in it uses."""

    folder: Path
    environment: dict[str, str]
    repositories: dict[str, Any]

    def publish(self, source: Path, layout: str, changes: ConversionOptions) -> tuple[Manifest, str]:
        """Put a conversion on the Hub; its record and its card."""
        from support.hub_repositories import Repository

        converted = convert(source, layout, self.folder / "published", changes=changes)
        record, report = Manifest.read(converted), verified(converted, source).to_dict()
        assert record is not None
        self.repositories[REPOSITORY] = Repository.of(converted)
        return record, card(record, report, REPOSITORY)

    def run_card(self, source: Path, layout: str, changes: ConversionOptions) -> list[str]:
        """What each block of the card of a conversion prints."""
        _, text = self.publish(source, layout, changes)
        for block in blocks(text.split("## How it was converted")[0], "console"):
            self.type(block.strip())
        arguments, given = [sys.executable, "-W", "ignore", "-c", RUN], json.dumps(blocks(text, "python"))
        self._run(arguments, given)
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


@pytest.fixture(scope="module")
def made_up(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The record of a conversion for transformers, of which others are made."""
    record = Manifest.read(convert(tiny_npz, "transformers", tmp_path_factory.mktemp("card") / "out"))
    assert record is not None
    return record


def zoo_record(record: Manifest, name: str) -> Manifest:
    """As if it were of a published checkpoint."""
    item, origin = published()[name], dataclasses.replace(record.origin, name=name)
    return dataclasses.replace(record, name=name, architecture=item.architecture, classes=item.classes, origin=origin)


def text_of(record: Manifest, repository: str = REPOSITORY) -> str:
    run = {"reference": "records", "implementation": "definition", "side": "written", "dtype": "float64"}
    other = {**run, "implementation": "timm", "side": "source", "dtype": "float32"}
    mode, agreement = {"mode": "end-to-end", "input": "square"}, {"images": 3, "top1": 3, "top5": 2}
    epsilon = {"library": "transformers", "epsilon": 1e-8, "original": 1e-10, "tap": "logits", "relative_l2": 3.5e-4}
    checks = [
        {**run, **mode, "tap": "stem", "error": 3e-10, "budget": 1e-8},
        {**run, **mode, "tap": "logits", "error": 5e-10, "budget": 1e-9},
        {**other, **mode, "tap": "stem", "error": 1e-6, "budget": 4e-6},
    ]
    said = {"tensors_proven": 7, "epsilon": epsilon, "not_run": {"flax": "jax is not installed"}}
    return card(record, {"checks": checks, "agreements": [agreement], **said}, repository)


def metadata(record: Manifest, repository: str = REPOSITORY) -> ModelCardData:
    data = ModelCard(text_of(record, repository)).data
    assert isinstance(data, ModelCardData)
    return data


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def agree(printed: list[str], features: int | None) -> None:
    """The blocks name the same most probable class, or make as many features."""
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
