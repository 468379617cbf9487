"""Weights are taken to have been trained with the epsilon that their files, the user or the library state."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file
from support.command import assert_refused, run_here
from support.conversions import convert as converted
from support.conversions import verified
from support.foreign import WEIGHTS, in_transformers, saved_by_timm, saved_by_transformers
from support.networks import TINY

import convert
from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.epsilon import UNKNOWN, Training
from convert.checkpoints.manifest import Manifest
from convert.checkpoints.options import ConversionOptions
from convert.errors import CheckpointError, UsageError
from convert.files.base import file_sha256
from convert.layouts import LAYOUTS
from convert.progress import silent
from convert.references import recorder
from convert.references.recordings import SHIPPED, RecordedCheckpoint, find_recordings
from convert.sources.synthetic import write_npz

pytestmark = [
    pytest.mark.usefixtures("small_inputs"),
    # A framework may announce future changes of its own.
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning"),
]
COMPENSATE = ConversionOptions(ws_eps="compensate")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that transformers saved, not to be changed."""
    return saved_by_transformers(TINY, tmp_path_factory.mktemp("trained") / "trained")


def epsilon_of(path: Path, training: Training = UNKNOWN) -> tuple[float, bool, str]:
    with Checkpoint(path, training=training) as opened:
        return opened.config.ws_eps, opened.states_ws_eps, opened.assumption or ""


def manifest_of(folder: Path) -> Manifest:
    manifest = Manifest.read(folder)
    assert manifest is not None
    return manifest


def in_cache(folder: Path, repository: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the files of a folder where huggingface_hub puts those of a repository."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    copy = cache / f"models--{repository.replace('/', '--')}" / "snapshots" / ("0a" * 20)
    return shutil.copytree(folder, copy)


def test_what_transformers_saved_was_trained_with_its_epsilon(trained: Path) -> None:
    epsilon, stated, note = epsilon_of(trained)
    assert (epsilon, stated) == (1e-8, False)
    assert re.search(r"transformers saved these weights.* 1e-08.*if they are Google's.*--source-ws-eps 1e-10", note)


def test_an_epsilon_that_transformers_carried_along_is_not_believed(tiny_npz: Path, tmp_path: Path) -> None:
    """transformers keeps entries of config.json that it does not know, and computes with 1e-8 all the same."""
    folder = converted(tiny_npz, "transformers", tmp_path / "converted")
    transformers.BitForImageClassification.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["ws_eps"] == 1e-10
    epsilon, _, note = epsilon_of(tmp_path / "saved")
    assert epsilon == 1e-8
    assert "although config.json states 1e-10" in note


def test_what_timm_saved_was_trained_with_its_epsilon(tmp_path: Path) -> None:
    epsilon, stated, note = epsilon_of(saved_by_timm(TINY, tmp_path / "saved"))
    assert (epsilon, stated) == (1e-8, False)
    assert "timm saved these weights" in note


def test_timms_network_trained_in_transformers_is_read(tmp_path: Path) -> None:
    """transformers runs the layout of timm in `TimmWrapperForImageClassification`, which adds to names and config."""
    folder = saved_by_timm(TINY, tmp_path / "saved", safe_serialization=True)
    state = {f"timm_model.{key}": value for key, value in load_file(folder / WEIGHTS).items()}
    save_file(state, folder / WEIGHTS)
    (folder / "pytorch_model.bin").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "timm_wrapper", "transformers_version": "5.23.0", "ws_eps": 1e-10}
    (folder / "config.json").write_text(json.dumps(config))
    epsilon, _, note = epsilon_of(folder)
    assert epsilon == 1e-8
    assert "although config.json states 1e-10" in note
    assert converted(folder, "google", tmp_path / "out").is_dir()


def test_a_config_of_this_project_is_believed(tiny_npz: Path, tmp_path: Path) -> None:
    for layout, options in (("transformers", ConversionOptions()), ("timm", COMPENSATE), ("flax", ConversionOptions())):
        folder = converted(tiny_npz, layout, tmp_path / layout, options=options)
        (folder / "conversion.json").unlink()
        assert epsilon_of(folder) == (1e-8 if layout == "timm" else 1e-10, True, "")


@pytest.mark.parametrize(
    ("repository", "epsilon"),
    [("google/bit-50", 1e-10), ("timm/resnetv2_50x1_bit.goog_in21k", 1e-10), ("me/bit-50", 1e-8)],
)
def test_published_conversions_of_googles_weights_are_known_by_their_repository(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: str, epsilon: float
) -> None:
    folder = in_cache(trained, repository, tmp_path / "cache", monkeypatch)
    for path in (folder, folder / WEIGHTS):
        found = convert.inspect(path)
        assert found.ws_eps == epsilon
        assert any(("holds Google's weights" in note) == (epsilon == 1e-10) for note in found.notes)
    assert convert.inspect(shutil.copytree(folder, tmp_path / "bit-50")).ws_eps == 1e-8, "a name shows nothing"
    assert convert.inspect(folder, source_ws_eps=1e-6).ws_eps == 1e-6


def test_the_user_states_it_where_the_files_do_not(trained: Path, tiny_npz: Path, tmp_path: Path) -> None:
    shutil.copy(trained / WEIGHTS, tmp_path / "alone.safetensors")
    for path in (trained, tmp_path / "alone.safetensors", tiny_npz):
        assert epsilon_of(path, Training(1e-6)) == (1e-6, True, "")
    epsilon, _, note = epsilon_of(tmp_path / "alone.safetensors")
    assert epsilon == 1e-10
    assert "assuming Google's 1e-10, not 1e-08 as in transformers; if they were trained there: --source-ws-eps" in note


@pytest.mark.parametrize("with_manifest", [True, False])
def test_a_contradiction_is_refused(tiny_npz: Path, tmp_path: Path, with_manifest: bool) -> None:
    folder = converted(tiny_npz, "transformers", tmp_path / "out")
    file = "conversion.json" if with_manifest else "config.json"
    if not with_manifest:
        (folder / "conversion.json").unlink()
    with pytest.raises(CheckpointError, match=rf"{file} states epsilon 1e-10, not 1e-08"):
        epsilon_of(folder, Training(1e-8))
    assert epsilon_of(folder, Training(1e-10))[0] == 1e-10
    arguments = ("convert", folder, "--to", "google", "--source-ws-eps", "1e-8", "--out", "new")
    assert_refused(run_here(*arguments, cwd=tmp_path), f"{file} states epsilon 1e-10", tmp_path)


@pytest.mark.parametrize("value", ["0", "1", "-1e-8", "nan", "inf", "abc", "", "1e-8x"])
def test_a_bad_value_is_one_line(tiny_npz: Path, tmp_path: Path, value: str) -> None:
    for command, files in (("convert", 1), ("inspect", 1), ("record", 1), ("compare", 2)):
        arguments = (command, *[tiny_npz] * files, "--source-ws-eps", value)
        assert_refused(run_here(*arguments, cwd=tmp_path), "--source-ws-eps", tmp_path)


@pytest.mark.parametrize("value", ["1e-8", True, 2, [1e-8]])
def test_python_refuses_it_too(tiny_npz: Path, tmp_path: Path, value: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: convert.convert(tiny_npz, out=tmp_path / "out", source_ws_eps=value),
        lambda: convert.inspect(tiny_npz, source_ws_eps=value),
        lambda: convert.verify(tiny_npz, source=tiny_npz, source_ws_eps=value),
        lambda: convert.publish(tmp_path, "me/r", dry_run=True, source_ws_eps=value),
    ]
    for call in calls:
        with pytest.raises(UsageError, match=r"invalid --source-ws-eps .*: expected a number between 0 and 1"):
            call()


def test_compare_states_it_for_the_files_that_do_not(trained: Path, tiny_npz: Path, tmp_path: Path) -> None:
    folder = converted(tiny_npz, "transformers", tmp_path / "out")
    assert convert.compare(trained, folder, source_ws_eps=1e-10).equal
    result = run_here("compare", trained, folder, "--source-ws-eps", "1e-10", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    "layout",
    [name if name in ("google", "flax") else pytest.param(name, marks=pytest.mark.long) for name in LAYOUTS],
)
def test_trained_weights_convert_to_every_layout_with_their_epsilon(trained: Path, tmp_path: Path, layout: str) -> None:
    result = convert.convert(trained, to=layout, out=tmp_path / "out")
    manifest = result.manifest
    assert (manifest.ws_eps, manifest.origin.ws_eps) == (1e-8, 1e-8)
    effect = result.verification.network.epsilon
    assert (effect is not None) == layout.startswith("google"), "bit.flax and bit.keras read it from config.json"
    if effect is not None:
        assert (effect.epsilon, effect.original) == (1e-10, 1e-8)
        assert effect.relative_l2 is not None
        assert effect.relative_l2 > 0
    assert any("taken to have been trained with epsilon 1e-08" in item for item in result.verification.warnings)
    assert convert.verify(result.folder, full=False, replay=True).passed
    assert convert.publish(result.folder, "me/r", dry_run=True).reverified


@pytest.mark.parametrize("layout", ["google", pytest.param("google-tf2", marks=pytest.mark.long)])
def test_kernels_are_scaled_down_for_googles_code(trained: Path, tmp_path: Path, layout: str) -> None:
    result = convert.convert(trained, to=layout, out=tmp_path / "out", ws_eps="compensate")
    scales = {row["scale"] for row in result.manifest.tensors if "scale" in row}
    assert list(scales) == pytest.approx([0.1], rel=1e-15)
    assert (result.manifest.ws_eps, result.manifest.origin.ws_eps) == (1e-10, 1e-8)
    assert result.verification.network.epsilon is None
    name = "bit.embedder.convolution.weight"
    with Checkpoint(result.folder) as opened:
        stem = opened.weights("stem/kernel", axes="oihw", dtype="float32")
    np.testing.assert_allclose(stem, load_file(trained / WEIGHTS)[name] / 10, rtol=1e-6)
    assert convert.verify(result.folder, full=False, replay=True).passed
    publication = convert.publish(result.folder, "me/r", dry_run=True)
    assert "with the epsilon 1e-10 compute the same function as the original weights with 1e-08" in publication.card
    assert f"$ bit convert trained --to {layout} --source-ws-eps 1e-08 --ws-eps compensate\n" in publication.card


@pytest.mark.long
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_reference_agrees_on_compensated_weights(trained: Path, tmp_path: Path, layout: str) -> None:
    result = convert.convert(trained, to=layout, out=tmp_path / "out", ws_eps="compensate", full=True)
    assert result.verification.passed
    assert len({check.implementation for check in result.verification.checks}) > 2


def test_there_and_back_gives_the_function_of_the_training(trained: Path, tmp_path: Path) -> None:
    there = converted(trained, "google", tmp_path / "there", options=COMPENSATE)
    back = converted(there, "transformers", tmp_path / "back", options=COMPENSATE)
    assert (manifest_of(back).ws_eps, manifest_of(back).origin.ws_eps) == (1e-8, 1e-8)
    assert verified(back, there).passed
    name = "bit.embedder.convolution.weight"
    np.testing.assert_allclose(load_file(back / WEIGHTS)[name], load_file(trained / WEIGHTS)[name], rtol=1e-6)


def test_a_scaled_conversion_of_another_program_is_recognized(trained: Path, tmp_path: Path) -> None:
    folder = converted(trained, "google", tmp_path / "there", options=COMPENSATE)
    (folder / "conversion.json").unlink()
    result = convert.verify(folder / "trained.npz", source=trained, full=False)
    assert result.passed
    assert any("scaled for the epsilon 1e-10 of google" in warning for warning in result.warnings)


def test_a_foreign_conversion_is_verified_with_the_stated_epsilon(tiny_npz: Path, trained: Path) -> None:
    assert convert.verify(trained, source=tiny_npz, full=False).passed, "the source's epsilon is that of both"
    assert convert.verify(trained, source=tiny_npz, full=False, source_ws_eps=1e-8).passed


def test_a_conversion_is_verified_and_pushed_without_stating_it_again(tiny_npz: Path, tmp_path: Path) -> None:
    result = convert.convert(tiny_npz, to="timm", out=tmp_path / "out", source_ws_eps=1e-8)
    assert result.verification.network.epsilon is None
    assert convert.verify(result.folder, full=False, replay=True).passed
    assert convert.verify(result.folder, full=False, source_ws_eps=1e-8).passed
    assert convert.publish(result.folder, "me/r", dry_run=True, source_ws_eps=1e-8).reverified
    for call in (convert.verify, lambda *given, **more: convert.publish(*given, "me/r", dry_run=True, **more)):
        with pytest.raises(UsageError, match=r"conversion\.json states that the source was trained with epsilon 1e-08"):
            call(result.folder, source_ws_eps=1e-10)
    with pytest.raises(CheckpointError, match="was converted as trained with epsilon 1e-08"):
        convert.convert(tiny_npz, to="timm", out=tmp_path / "out")
    assert not convert.convert(tiny_npz, to="timm", out=tmp_path / "out", source_ws_eps=1e-8).created


@pytest.mark.parametrize(("ws_eps", "origin"), [(1e-10, 1e-8), (1e-8, 1e-10)])
def test_an_edited_epsilon_is_noticed(trained: Path, tmp_path: Path, ws_eps: float, origin: float) -> None:
    folder = converted(trained, "google", tmp_path / "out")
    values = json.loads((folder / "conversion.json").read_text())
    values |= {"ws_eps": ws_eps, "origin": {**values["origin"], "ws_eps": origin}}
    (folder / "conversion.json").write_text(json.dumps(values))
    result = convert.verify(folder, full=False)
    assert any("expected" in problem and "epsilon" in problem for problem in result.problems)


def test_a_manifest_of_an_earlier_version_is_read(tiny_npz: Path, tmp_path: Path) -> None:
    folder = converted(tiny_npz, "timm", tmp_path / "out")
    values = json.loads((folder / "conversion.json").read_text())
    del values["origin"]["ws_eps"], values["origin"]["labelled"], values["options"]["labels"]
    (folder / "conversion.json").write_text(json.dumps(values))
    assert manifest_of(folder).origin.ws_eps is None
    assert verified(folder, tiny_npz).passed


def test_weights_trained_in_a_converted_folder_are_not_those_of_the_manifest(tiny_npz: Path, tmp_path: Path) -> None:
    folder = converted(tiny_npz, "transformers", tmp_path / "out")
    transformers.BitConfig.from_pretrained(folder).save_pretrained(folder)
    assert epsilon_of(folder)[0] == 1e-10, "the manifest lists the weights"
    model = in_transformers(TINY)
    model.bit.norm.bias.data += 1
    model.save_pretrained(folder)
    with Checkpoint(folder) as opened:
        assert (opened.config.ws_eps, opened.manifest) == (1e-8, None)
        assert any("describes other weights" in note for note in opened.notes)
    assert convert.convert(folder, to="google", out=tmp_path / "google").manifest.ws_eps == 1e-8


def test_other_changes_beside_a_manifest_say_what_to_do(tiny_npz: Path, tmp_path: Path) -> None:
    folder = converted(tiny_npz, "transformers", tmp_path / "out")
    state = {key: value + 1 for key, value in load_file(folder / WEIGHTS).items()}
    save_file(state, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"or delete conversion\.json if these weights were trained further"):
        convert.convert(folder, to="google", out=tmp_path / "google")


def test_recordings_of_googles_code_are_of_its_epsilon(tmp_path: Path) -> None:
    sha256 = RecordedCheckpoint.read(SHIPPED / "Synthetic-R14x1").sha256
    assert find_recordings(sha256, ws_eps=1e-10) is not None
    assert find_recordings(sha256, ws_eps=1e-8) is None


def test_recordings_with_two_epsilons_do_not_replace_each_other(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", TINY, seed=5)
    small = {"odd": (2, 1, 33, 49)}
    for ws_eps in (1e-8, 1e-10):
        with Checkpoint(tmp_path / "a.npz", training=Training(ws_eps)) as opened:
            recorder.record(opened, tmp_path / "r", silent, frameworks=(), inputs=small)
    sha256 = file_sha256(tmp_path / "a.npz")
    for ws_eps in (1e-8, 1e-10):
        found = find_recordings(sha256, [tmp_path / "r"], ws_eps)
        assert found is not None
        assert found.float64.about["ws_eps"] == ws_eps


def test_inspect_tells_the_cost_in_libraries_with_a_fixed_epsilon(trained: Path, tmp_path: Path) -> None:
    found = convert.inspect(trained)
    assert {cost.layout for cost in found.epsilon_costs} == {"google", "google-tf2"}
    assert all(cost.deviation < 0 for cost in found.epsilon_costs)
    result = run_here("inspect", os.path.relpath(trained, tmp_path), cwd=tmp_path)
    words = r"google standardizes with epsilon 1e-10, which makes the output of that filter [0-9.]+% larger"
    assert re.search(words, result.stdout)
    assert "transformers saved these weights" in result.stdout
