"""The model card as the Hub reads it, with every code block run as printed."""

from __future__ import annotations

import copy
import dataclasses
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData
from markdown_it import MarkdownIt
from support.cards import NOTHING, REPOSITORY, blocks, results, text_of
from support.conversions import convert

from convert.checkpoints.manifest import MANIFEST_NAME, REPORT_NAMES, Manifest
from convert.layouts import LAYOUTS
from convert.published.catalogue import BIT, DISTILLATION, published
from convert.publishing.card import SOURCES, card
from convert.publishing.card import text as markdown
from convert.publishing.gate import Checked

Synthetic = Callable[[str], Path]


def test_the_metadata_has_every_field(made_up: Manifest) -> None:
    data = metadata(published_manifest(made_up, "BiT-M-R101x1-ILSVRC2012"), checked=fetched("BiT-M-R101x1-ILSVRC2012"))
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "apache-2.0",
        "transformers",
        "image-classification",
    )
    assert {"bit", "big-transfer", "bit-convert", "resnetv2", "transformers"} <= set(data.tags)
    assert data.datasets == ["ILSVRC/imagenet-1k"], "ImageNet-21k is not on the Hub"
    assert data.base_model == "timm/resnetv2_101x1_bit.goog_in21k_ft_in1k"
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_type) == ("accuracy", 82.33, "ILSVRC/imagenet-1k")
    assert result.source_url.endswith("results-imagenet.csv")


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_the_library_is_the_one_that_reads_the_layout(made_up: Manifest, layout: str) -> None:
    data = metadata(dataclasses.replace(made_up, layout=layout))
    assert data.library_name == (layout if layout in ("transformers", "timm", "onnx") else "bit-convert")
    assert layout in data.tags


def test_the_base_is_the_repository_from_which_the_source_was_fetched(made_up: Manifest) -> None:
    name = "timm/resnetv2_50x1_bit.goog_in21k"
    checked = Checked(True, f"hf:{name}@{'0a' * 20}")
    data = metadata(made_up, checked=checked)
    assert data.base_model == name
    assert "base_model_relation" not in data
    rounded = dataclasses.replace(made_up, origin=dataclasses.replace(made_up.origin, roundings=("float16",)))
    assert metadata(rounded, checked=checked)["base_model_relation"] == "quantized"
    assert metadata(made_up, name, checked).base_model is None, "a repository is not based on itself"
    assert f"$ bit convert hf:{name} --to transformers\n" in text_of(made_up, checked=checked)


def test_a_path_alone_shows_no_base(made_up: Manifest) -> None:
    path = "../../.cache/huggingface/hub/models--google--bit-50/snapshots/" + "0a" * 20
    manifest = dataclasses.replace(made_up, source=dataclasses.replace(made_up.source, path=path))
    assert metadata(manifest, checked=Checked(True)).base_model is None


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        (
            "BiT-M-R50x3",
            21843,
            ["trained on ImageNet-21k", "sigmoid for each class", ".sigmoid()", "No accuracy is known"],
        ),
        ("BiT-S-R50x1", 1000, ["trained on ILSVRC-2012", ".softmax(-1)", "No accuracy is known", "WordNet"]),
        ("BiT-S-R152x2", 1000, ["Known about the published file: "]),
        ("BiT-M-R152x4-ILSVRC2012", 1000, ["| ILSVRC-2012 | top-1 | 84.94 | 480 |", "then on ILSVRC-2012"]),
        ("BiT-M-R50x1-CIFAR10", 10, ["| CIFAR-10 | top-1 | 97.64 | 128 |", "resized to 128×128 pixels"]),
        (
            "BiT-M-R101x3-run2-patch_camelyon",
            2,
            ["then on VTAB-1k (task `patch_camelyon`)", "topk(2)", "No accuracy is known"],
        ),
        ("R50x1_224", 1000, ["| 82.8 | 224 |", "| 82.82 | 224 |", "arXiv 2106.05237", DISTILLATION]),
        ("R152x2_T_384", 1000, ["| 83.86 | 384 |", "ImageNet-21k, then on ILSVRC-2012"]),
        ("BiT-M-R50x1.h5", 21843, ["`BiT-M-R50x1.h5`", "sigmoid", BIT]),
    ],
)
def test_a_card_tells_what_is_published_about_the_checkpoint(
    made_up: Manifest, name: str, classes: int, expected: list[str]
) -> None:
    manifest = published_manifest(made_up, name)
    assert manifest.classes == classes
    text = text_of(manifest, checked=fetched(name))
    assert [words for words in expected if words not in text] == []
    assert published()[name].url in text
    assert all(markdown(defect) in text for defect in published()[name].defects)
    assert (
        ("## Accuracy\n\n| data" in text)
        == bool(published()[name].accuracies)
        == bool(metadata(manifest, checked=fetched(name)).eval_results)
    )


def test_a_copy_of_timm_is_known_by_the_repository(made_up: Manifest) -> None:
    manifest = published_manifest(made_up, "BiT-M-R50x1-ILSVRC2012")
    checked = Checked(True, f"hf:timm/resnetv2_50x1_bit.goog_in21k_ft_in1k@{'0a' * 20}")
    assert "80.39" in text_of(manifest, checked=checked)
    assert "80.39" not in text_of(manifest, checked=Checked(True, f"hf:me/resnetv2_50x1_bit.goog_in21k@{'0a' * 20}"))


@pytest.mark.parametrize(
    "checked",
    [
        Checked(),
        Checked(True),
        Checked(True, "https://storage.googleapis.com/bit_models/BiT-M-R50x1.npz"),
        Checked(True, f"hf:timm-x/resnetv2_50x1_bit.goog_in21k_ft_in1k@{'0a' * 20}"),
    ],
)
@pytest.mark.parametrize("name", ["BiT-M-R50x1-ILSVRC2012", "resnetv2_50x1_bit.goog_in21k_ft_in1k"])
def test_a_name_does_not_show_that_google_published_the_weights(made_up: Manifest, name: str, checked: Checked) -> None:
    manifest = published_manifest(made_up, "BiT-M-R50x1-ILSVRC2012")
    origin = dataclasses.replace(manifest.origin, name=name)
    text, data = text_of(dataclasses.replace(manifest, origin=origin), checked=checked), metadata(manifest)
    assert "80.39" not in text
    assert "then on ILSVRC-2012" not in text
    assert (data.base_model, data.eval_results, data.datasets, data.license) == (None, None, None, "unknown")
    if checked.address is None:
        assert "Google published the weights" not in text
        assert f"The source is called `{name}`, like a checkpoint that Google published, but nothing shows" in text
        assert "$ bit convert tiny.npz --to transformers\n" in text, "not the published file"


def test_an_earlier_conversion_hides_where_the_first_file_came_from(made_up: Manifest) -> None:
    manifest = published_manifest(made_up, "BiT-M-R50x1-ILSVRC2012")
    manifest = dataclasses.replace(manifest, origin=dataclasses.replace(manifest.origin, sha256="0" * 64))
    assert "Google published the weights" not in text_of(manifest, checked=fetched("BiT-M-R50x1-ILSVRC2012"))


def test_an_address_that_only_the_manifest_states_is_called_a_statement(made_up: Manifest) -> None:
    url = published()["BiT-M-R50x1"].url
    manifest = dataclasses.replace(made_up, origin=dataclasses.replace(made_up.origin, address=url))
    assert f"states that it was fetched from `{url}`; this was not checked again" in text_of(manifest)


def test_trained_weights_with_the_name_of_seeded_ones_are_not_called_random(made_up: Manifest) -> None:
    manifest = dataclasses.replace(made_up, origin=dataclasses.replace(made_up.origin, name="Synthetic-R50x1"))
    assert "random" not in text_of(manifest)


def test_the_card_says_whether_the_verification_was_repeated(made_up: Manifest) -> None:
    assert "was repeated, and passed" in text_of(made_up, checked=Checked(True))
    assert "The verification was not repeated" in text_of(made_up)


def test_the_code_of_another_layout_is_that_of_the_layout(made_up: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    loading = 'import newlib\nmodel = newlib.load("{folder}/{name}.new")'
    export = dataclasses.replace(LAYOUTS["flax"].export, library="newlib", loading=loading, classify="")
    monkeypatch.setitem(LAYOUTS, "newlib", dataclasses.replace(LAYOUTS["flax"], name="newlib", export=export))
    text = text_of(dataclasses.replace(made_up, layout="newlib", name='a"b'))
    assert '```python\nimport newlib\nmodel = newlib.load("a-bit/a\\"b.new")\n```' in text
    assert "$ hf download me/a-bit --local-dir a-bit" in text
    assert "big_transfer" not in text.split("## How it was converted")[0]
    assert "NumPy" not in text.split("## How it was converted")[0]


@pytest.mark.parametrize(
    "hostile", ["<img src=x onerror=alert(1)>", "[x](https://evil.example)", "a | b\n---\nlicense: mit"]
)
def test_hostile_statements_of_files_stay_text(made_up: Manifest, hostile: str) -> None:
    manifest, verification = copy.deepcopy(made_up), results()
    fields = [(manifest, "name"), (manifest, "converter"), (manifest, "architecture"), (manifest.origin, "name")]
    for owner, field in (*fields, (manifest.source, "path"), (manifest.origin, "address")):
        object.__setattr__(owner, field, hostile)  # past the checks of a manifest that is read
    for check in verification["checks"]:
        check |= dict.fromkeys(("implementation", "reference", "side", "dtype", "mode", "tap"), hostile)
    verification["not_run"] = {hostile: hostile}
    verification["epsilon"] |= {"library": hostile, "tap": hostile}
    text = card(manifest, verification, REPOSITORY)
    assert ModelCard(text).data.license == "unknown"
    assert not re.search('<img|evil.example"', MarkdownIt("commonmark").enable("table").render(text))


def test_every_source_of_an_accuracy_can_be_looked_up() -> None:
    assert {accuracy.source for item in published().values() for accuracy in item.accuracies} == SOURCES.keys()


def test_accuracies_of_other_weights_are_not_claimed(made_up: Manifest) -> None:
    manifest, checked = published_manifest(made_up, "BiT-M-R50x1-ILSVRC2012"), fetched("BiT-M-R50x1-ILSVRC2012")
    assert "80.39" in text_of(manifest, checked=checked)
    for changes in ({"head": "new:10"}, {"head": "drop"}):
        changed = dataclasses.replace(manifest, origin=dataclasses.replace(manifest.origin, **changes))
        assert "80.39" not in text_of(changed, checked=checked)
    assert "all zeros" in text_of(
        dataclasses.replace(manifest, origin=dataclasses.replace(manifest.origin, head="new:10"))
    )
    rounded = dataclasses.replace(manifest, origin=dataclasses.replace(manifest.origin, roundings=("bfloat16",)))
    assert metadata(rounded, checked=checked).eval_results is None
    assert "rounded to bfloat16, each with a relative error of up to 3.9e-03" in text_of(rounded)
    other = dataclasses.replace(manifest, architecture="R26x1")
    assert "80.39" not in text_of(other, checked=checked), "the name belongs to another architecture"


def test_random_weights_are_called_random(synthetic: Synthetic, tmp_path: Path) -> None:
    manifest = Manifest.read(convert(synthetic("R14x1"), "transformers", tmp_path / "out"))
    assert manifest is not None
    text = text_of(manifest)
    assert "**The weights are random numbers" in text
    assert "Accuracy\n\nNone" in text


@pytest.mark.parametrize("name", ['`a` | b: "c" # d', "--- [x](y) <b> ```", "'{{ x }}' \\ $m$ 名", "a``", "|"])
def test_a_hostile_name_stays_a_name(made_up: Manifest, name: str) -> None:
    origin = dataclasses.replace(made_up.origin, name=name)
    manifest = dataclasses.replace(published_manifest(made_up, "BiT-M-R50x1-ILSVRC2012"), name=name)
    assert metadata(manifest, checked=fetched("BiT-M-R50x1-ILSVRC2012")).model_name == name
    for layout in LAYOUTS:
        text = text_of(dataclasses.replace(made_up, name=name, origin=origin, layout=layout))
        assert ModelCard(text).data.license == "unknown"
        for block in blocks(text, "python"):
            compile(block, "README.md", "exec")
        assert len(re.findall("^```", text, re.MULTILINE)) % 2 == 0
        (command,) = [line for line in text.splitlines() if line.startswith("$ bit verify")]
        assert shlex.split(command)[-1] == f"converted/{name}/{layout}"


def test_the_verification_is_a_row_for_each_run(made_up: Manifest) -> None:
    text = text_of(made_up)
    assert "| oracle | converted | float64 | end-to-end | 2 | `logits` | 5.0e-10 | 1.0e-09 |" in text
    assert "| timm | source | float32 | end-to-end | 1 | `stem` | 1.0e-06 | 4.0e-06 |" in text
    assert "5.0e-10 at `logits` (up to 1.0e-09 allowed)" in text, "the one that uses most of its tolerance"
    assert f"7 of {len(made_up.tensors)} tensors convert back to the source exactly" in text
    assert "Of 3 classifications of seeded images in these runs, 3 have the same first class as the reference" in text
    assert "and 2 the same five first classes" in text
    assert "changes `logits` by 3.5e-04" in text
    assert "flax was not run: jax is not installed" in text
    assert text == text_of(made_up)


def test_the_report_and_the_manifest_are_linked(made_up: Manifest) -> None:
    text = text_of(made_up)
    assert all(f"[`{name}`]({name})" in text for name in (MANIFEST_NAME, *REPORT_NAMES))


@pytest.fixture(scope="module")
def made_up(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The manifest of a conversion for transformers, from which others are made."""
    manifest = Manifest.read(convert(tiny_npz, "transformers", tmp_path_factory.mktemp("card") / "out"))
    assert manifest is not None
    return manifest


def published_manifest(manifest: Manifest, name: str) -> Manifest:
    """Return the manifest as if a file with the name of a published checkpoint had been converted."""
    item, origin = published()[name], dataclasses.replace(manifest.origin, name=name)
    return dataclasses.replace(manifest, name=name, architecture=item.architecture, classes=item.classes, origin=origin)


def fetched(name: str) -> Checked:
    """Return what the gate finds if the source was fetched from Google's bucket."""
    return Checked(True, published()[name].url)


def metadata(manifest: Manifest, repository: str = REPOSITORY, checked: Checked = NOTHING) -> ModelCardData:
    data = ModelCard(text_of(manifest, repository, checked)).data
    assert isinstance(data, ModelCardData)
    return data
