"""Conversions that other programs made: they verify, and every mistake in them is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from support.command import assert_refused, run_here
from support.conversions import LABELS, arrays_of, convert
from support.foreign import (
    MISTAKES,
    WEIGHTS,
    WRITERS,
    Mistake,
    in_transformers,
    saved_by_timm,
    saved_by_transformers,
    state_of,
    tensors_of,
)
from support.networks import TINY

import convert as api
from bit.config import BitConfig
from convert.reporting.text import verdicts
from convert.sources.synthetic import write_npz
from convert.verification.results import DIFFERS, VERIFIED, Verification

# A framework may announce future changes of its own.
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `TINY` that transformers saved, not to be changed."""
    return saved_by_transformers(TINY, tmp_path_factory.mktemp("saved") / "tiny")


@pytest.fixture
def foreign(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "foreign")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source with class names: a folder that timm saved."""
    folder = tmp_path_factory.mktemp("labelled") / "labelled"
    return saved_by_timm(TINY, folder, model_config={"label_names": list(LABELS.values())})


def verified(path: Path, source: Path | str, **options: Any) -> Verification:
    return api.verify(path, source=source, full=False, **options)


def described(result: Verification) -> str:
    return json.dumps(result.to_dict(), ensure_ascii=False)


@pytest.mark.parametrize("writer", WRITERS)
def test_what_other_programs_save_is_verified(tiny_npz: Path, tmp_path: Path, writer: str) -> None:
    path = WRITERS[writer](TINY, tmp_path / "saved")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    result = verified(path, tiny_npz)
    assert result.verdict == VERIFIED, described(result)
    assert result.tensors_exact == 34
    assert len(result.checks) == 16
    assert max(check.error for check in result.checks) < 1e-12
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_named(tiny_npz: Path, foreign: Path, mistake: Mistake) -> None:
    mistake.plant(foreign)
    result = verified(foreign, tiny_npz)
    assert result.verdict == DIFFERS
    problems = "; ".join(result.problems)
    for words in mistake.words:
        assert words in problems


def test_the_command_names_a_mistake_and_exits_with_1(tiny_npz: Path, foreign: Path, tmp_path: Path) -> None:
    arguments = ("verify", "foreign", "--source", tiny_npz, "--quick")
    result = run_here(*arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout.splitlines()[-1]) == (0, "verified")
    assert "report:" not in result.stdout
    next(mistake for mistake in MISTAKES if mistake.name == "kernel flipped").plant(foreign)
    result = run_here(*arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert "✗ bit.encoder.stages.0.layers.1.conv2.weight does not hold" in result.stdout
    assert "✗ oracle: block1/unit02: block1/unit02/conv2/kernel: turned by 180°" in result.stdout
    result = run_here(*arguments, "--json", "--report", "report.json", cwd=tmp_path)
    assert result.returncode == 1
    printed = json.loads(result.stdout)
    assert printed["verdict"] == DIFFERS
    assert any("turned by 180°" in problem for problem in printed["problems"])
    assert json.loads((tmp_path / "report.json").read_text())["problems"] == printed["problems"]
    assert sorted(path.name for path in foreign.iterdir()) == ["config.json", WEIGHTS]


def test_half_of_a_shard_is_missed(tiny_npz: Path, tmp_path: Path) -> None:
    folder = WRITERS["transformers in shards"](TINY, tmp_path / "sharded")
    shard = sorted(folder.glob("*.safetensors"))[2]
    state = load_file(shard)
    lost = sorted(state)[: len(state) // 2]
    save_file({key: value for key, value in state.items() if key not in lost}, shard)
    result = verified(folder, tiny_npz)
    assert result.verdict == DIFFERS
    assert {f"missing {key}" for key in lost} <= {*result.problems}
    assert result.tensors_exact == 34 - len(lost), "the others are compared"
    assert not result.checks
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    assert any(f"{shard.name}" in problem and "truncated" in problem for problem in verified(folder, tiny_npz).problems)
    shard.unlink()
    assert any(f"lists {shard.name}, which is missing" in problem for problem in verified(folder, tiny_npz).problems)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_dtype_is_stated_and_verified(tiny_npz: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    in_transformers(TINY).to(dtype).save_pretrained(tmp_path / "out")
    result = verified(tmp_path / "out", tiny_npz)
    assert result.verdict == VERIFIED, described(result)
    assert result.tensors_changed == 34
    name = str(dtype).removeprefix("torch.")
    assert result.roundings == (() if name == "float64" else (name,))
    assert verdicts(result) == ["[bold green]verified[/]" + ("" if name == "float64" else f", rounded to {name}")]
    assert any(f"34 of 34 tensors are stored in {name}, unlike in the source" in warning for warning in result.warnings)
    state = load_file(tmp_path / "out" / WEIGHTS) if name == "float64" else None
    if state is not None:
        state["bit.norm.weight"][0] += 1e-12
        save_file(state, tmp_path / "out" / WEIGHTS)
        assert "1 of 256 values differ" in described(verified(tmp_path / "out", tiny_npz))


def test_a_mistake_in_rounded_weights_is_named(tiny_npz: Path, tmp_path: Path) -> None:
    model = in_transformers(TINY).to(torch.bfloat16)
    kernel = model.bit.encoder.stages[0].layers[1].conv2.weight
    kernel.data = kernel.data.flip(-1)
    model.save_pretrained(tmp_path / "out")
    problems = "; ".join(verified(tmp_path / "out", tiny_npz).problems)
    assert "kernel of the source, rounded to bfloat16: mirrored left to right" in problems


def test_values_that_the_dtype_cannot_hold_are_a_difference(tmp_path: Path) -> None:
    arrays = arrays_of(TINY)
    kernel, bias = "resnet/block1/unit02/b/standardized_conv2d/kernel", "resnet/head/conv2d/bias"
    arrays[kernel] *= np.float32(1e-7)
    arrays[bias] += np.float32(1e5)
    np.savez(tmp_path / "source.npz", **arrays)
    with np.errstate(over="ignore"):
        np.savez(tmp_path / "half.npz", **{key: value.astype(np.float16) for key, value in arrays.items()})
    result = verified(tmp_path / "half.npz", tmp_path / "source.npz")
    assert result.verdict == DIFFERS
    assert f"{kernel} holds values so small that float16 is" in "; ".join(result.problems)
    assert f"{bias} holds values up to 1e+05, which float16 cannot hold" in "; ".join(result.problems)


def test_kernels_scaled_for_the_epsilon_of_the_library_are_accepted(tiny_npz: Path, tmp_path: Path) -> None:
    state = tensors_of(TINY, "timm")
    kernels = [key for key in state if "conv" in key]
    torch.save({**state, **{key: 10 * state[key] for key in kernels}}, tmp_path / "scaled.pth")
    result = verified(tmp_path / "scaled.pth", tiny_npz)
    assert result.verdict == VERIFIED, described(result)
    assert any("scaled for the epsilon 1e-08 of timm" in warning for warning in result.warnings)
    assert api.verify(tmp_path / "scaled.pth", source=tiny_npz, references=["pytorch"]).verdict == VERIFIED
    torch.save({**state, **{key: 10 * state[key] for key in kernels[1:]}}, tmp_path / "one.pth")
    assert "stem.conv.weight does not hold" not in described(verified(tmp_path / "one.pth", tiny_npz))
    assert verified(tmp_path / "one.pth", tiny_npz).verdict == DIFFERS


@pytest.mark.parametrize(
    ("labels", "verdict", "words"),
    [
        (LABELS, VERIFIED, ""),
        ({}, VERIFIED, "class names were not compared"),
        ({**LABELS, 0: "dog", 1: "cat"}, DIFFERS, "2 of 5 class names are in another order: class 0 is 'dog'"),
        ({**LABELS, 3: "bat"}, DIFFERS, "1 of 5 class names are not those of the source: class 3 is 'bat'"),
    ],
)
def test_class_names_are_compared_with_those_of_a_foreign_source(
    labelled: Path, foreign: Path, labels: dict[int, str], verdict: str, words: str
) -> None:
    config = json.loads((foreign / "config.json").read_text())
    names = {"id2label": {str(index): label for index, label in labels.items()}} if labels else {}
    (foreign / "config.json").write_text(json.dumps({**config, **names}))
    result = verified(foreign, labelled)
    assert result.verdict == verdict
    assert words in described(result)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "mean and deviation are CLIP's"),
        (
            {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
            "mean and deviation are ImageNet's",
        ),
        ({"do_normalize": False}, "mean and deviation are left out"),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, ""),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"shortest_edge": 300}}, ""),
        ({"image_mean": "grey"}, "invalid settings"),
        (
            {"size": {"shortest_edge": 2048}, "do_center_crop": False},
            "invalid settings (the image would be prepared as",
        ),
    ],
)
def test_stated_preprocessing_is_compared(tiny_npz: Path, foreign: Path, changes: dict[str, Any], words: str) -> None:
    settings = transformers.BitImageProcessor().to_dict()
    (foreign / "preprocessor_config.json").write_text(json.dumps({**settings, **changes}))
    result = verified(foreign, tiny_npz)
    assert result.model_passed
    assert result.verdict == (DIFFERS if words else VERIFIED), described(result)
    assert words in described(result)
    if "size" in changes and not words:
        assert any("none of the usual" in warning for warning in result.warnings)


def test_timms_own_file_of_another_network_is_told_from_the_source(tiny_npz: Path, tmp_path: Path) -> None:
    saved_by_transformers(TINY.replace(depths=(1, 2)), tmp_path / "other")
    result = verified(tmp_path / "other", tiny_npz)
    assert result.verdict == DIFFERS
    assert "the network is units 1-2, widths 32-128-256" in result.problems[0]
    assert not result.checks


def test_installed_references_run_on_foreign_folders(tiny_npz: Path, foreign: Path) -> None:
    result = api.verify(foreign, source=tiny_npz, references=["transformers", "pytorch"])
    assert result.verdict == VERIFIED, described(result)
    assert {check.implementation for check in result.checks} == {"oracle", "transformers", "bit (PyTorch)"}


def test_other_files_and_links_do_not_matter_and_other_weights_are_named(
    tiny_npz: Path, foreign: Path, tmp_path: Path
) -> None:
    (foreign / "README.md").write_text("# mine")
    (foreign / "samples").mkdir()
    torch.save(tensors_of(TINY, "transformers"), foreign / "pytorch_model.bin")
    (tmp_path / "link").symlink_to(foreign)
    (tmp_path / "source.npz").symlink_to(tiny_npz)
    result = verified(tmp_path / "link", tmp_path / "source.npz")
    assert result.verdict == VERIFIED
    assert any("pytorch_model.bin holds weights too" in warning for warning in result.warnings)
    assert verified(foreign / "pytorch_model.bin", tiny_npz).verdict == VERIFIED
    (tmp_path / "linked").mkdir()
    for file in foreign.glob("*.*n*"):
        (tmp_path / "linked" / file.name).symlink_to(file)
    assert verified(tmp_path / "linked" / WEIGHTS, tiny_npz).verdict == VERIFIED


def test_a_source_that_is_missing_wrong_or_the_same_is_one_line(tiny_npz: Path, foreign: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (("foreign",), "foreign holds no conversion.json, so it is not known what it was converted from"),
        (("foreign", "--source", "nothing.npz"), "there is no file 'nothing.npz'"),
        (("foreign", "--source", "foreign"), "are the same file"),
        (("foreign/model.safetensors", "--source", "foreign"), "are the same file"),
        (("foreign", "--source", tiny_npz, "--replay"), "leave out --replay"),
        (("empty", "--source", tiny_npz), "found: none"),
        (("empty",), "empty holds no conversion.json"),
        (("notes.txt", "--source", tiny_npz), "is not a file of weights"),
        (("other.npz", "--source", tiny_npz), "has no BiT weights in a known layout"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        (tmp_path / "notes.txt").write_text("notes")
        np.savez(tmp_path / "other.npz", a=np.ones(3, np.float32))
        assert_refused(run_here("verify", *arguments, cwd=tmp_path), words, tmp_path)


def test_a_damaged_file_is_not_verified(tiny_npz: Path, foreign: Path, tmp_path: Path) -> None:
    data = (foreign / WEIGHTS).read_bytes()
    (foreign / WEIGHTS).write_bytes(data[: len(data) // 2])
    result = run_here("verify", "foreign", "--source", tiny_npz, cwd=tmp_path)
    assert result.returncode == 1
    assert "truncated" in result.stderr


def test_the_source_is_known_by_a_name(tmp_path: Path) -> None:
    saved_by_transformers(BitConfig.from_architecture("R14x1"), tmp_path / "Synthetic-R14x1")
    result = run_here("verify", "Synthetic-R14x1", "--quick", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "the source is taken to be Synthetic-R14x1" in result.stderr
    assert "reference: recorded outputs of google-research/big_transfer" in result.stdout


def test_an_own_folder_and_the_page_of_a_foreign_one(tiny_npz: Path, foreign: Path, tmp_path: Path) -> None:
    own = convert(tiny_npz, "google", tmp_path / "own")
    assert api.verify(own / "tiny.npz", full=False).verdict == VERIFIED, "the folder of the manifest"
    assert (own / "verification.json").exists()
    (own / "conversion.json").unlink()
    assert verified(own, tiny_npz, report=tmp_path / "page.html").verdict == VERIFIED
    assert (tmp_path / "page.html").exists()
    write_npz(tmp_path / "seed.npz", TINY, seed=3)
    result = verified(foreign, tmp_path / "seed.npz")
    assert result.verdict == DIFFERS
    assert sum("does not hold" in problem for problem in result.problems) == 34
    assert set(state_of(TINY, "transformers")) == {problem.split()[0] for problem in result.problems}
