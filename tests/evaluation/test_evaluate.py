"""Evaluations through the Python API; each checkpoint takes a process, so that few are run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.conversions import LABELS
from support.conversions import convert as convert_file
from support.networks import TINY
from support.pictures import save_classes, save_picture

import convert
from bit import BitForImageClassification, BitImageProcessorPil
from bit.image_folder import read_images
from convert.checkpoints.training import DataUsed, Training, TrainingCurve
from convert.errors import CheckpointError, UsageError
from convert.evaluation.libraries import Runner
from convert.sources.synthetic import write_npz

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")


def computed(folder: Path, data: Path, classes: tuple[str, ...]) -> np.ndarray[Any, Any]:
    """Return the logits of these classes, computed here by `bit` in PyTorch."""
    images, processor = read_images(data), BitImageProcessorPil.from_profile("google")
    pixels = processor([images.open(index) for index in range(len(images))], return_tensors="pt")["pixel_values"]
    model = BitForImageClassification.from_pretrained(folder)
    with torch.inference_mode():
        logits = model(pixels).logits.double().numpy()
    return logits[:, [list(LABELS.values()).index(name) for name in classes]]


def test_two_libraries_are_scored_and_compared(tiny_npz: Path, graph: Path, labelled: Path, tmp_path: Path) -> None:
    data = save_classes(tmp_path / "data", tuple(LABELS.values()), each=1)
    seen: list[tuple[str, int, int]] = []
    found = convert.evaluate([graph, tiny_npz], data, batch=4, progress=lambda *step: seen.append(step))
    first, second = found.runs
    assert (first.library, second.library) == ("ONNX Runtime", "bit (PyTorch)")
    assert (first.notes, second.notes) == ((), (f"the names of the classes are those of {graph}",))
    assert (found.pairs[0].same_first_class, found.pairs[0].explained) == (5, True)
    logits = computed(labelled, data, tuple(sorted(LABELS.values())))
    labels = np.arange(5)
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert first.scores.top1 == (logits.argmax(1) == labels).mean()
    assert first.scores.nll == pytest.approx(-logs[labels, labels].mean(), rel=1e-4)
    assert (first.scores.top5, sum(part.images for part in first.scores.bins)) == (None, 5)
    assert first.preprocessing == second.preprocessing
    assert first.images_per_second > 0
    assert 50e6 < first.memory < second.memory < 4e9
    assert (seen[-1], found.complete) == ((f"{tiny_npz} (bit (PyTorch))", 5, 5), True)
    json.dumps(found.to_dict(), allow_nan=False)


def test_equal_weights_agree_and_a_planted_change_is_seen(
    graph: Path, labelled: Path, pictures: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    other = shutil.copytree(labelled, tmp_path / "transformers")
    state = load_file(other / "model.safetensors")
    kernel = state["bit.encoder.stages.0.layers.0.conv1.weight"]
    state["bit.encoder.stages.0.layers.0.conv1.weight"] = np.ascontiguousarray(kernel[::-1])
    save_file(state, other / "model.safetensors", metadata={"format": "pt"})
    planted = convert_file(other, "onnx", tmp_path / "planted")
    found = convert.evaluate([graph, graph, planted], pictures)
    same, changed = found.pairs
    assert (same.same_first_class, same.largest_difference, same.explained) == (9, 0, True)
    assert same.disagreements == ()
    assert not changed.explained
    assert changed.relative_l2 > 10 * changed.tolerance
    assert changed.same_first_class == 9 - len(changed.disagreements)
    names = ("cat", "dog", "newt")
    before, after = (computed(folder, pictures, names) for folder in (labelled, other))
    assert changed.largest_difference == pytest.approx(np.abs(before - after).max(), rel=1e-4)
    differing = np.flatnonzero(before.argmax(1) != after.argmax(1))
    assert [item.image for item in changed.disagreements] == [read_images(pictures).name(int(i)) for i in differing]
    for item, place in zip(changed.disagreements, differing, strict=True):
        two = np.sort(before[place])[-2:]
        assert (item.first.label, item.second.label) == (names[before[place].argmax()], names[after[place].argmax()])
        assert item.first.margin == pytest.approx(two[1] - two[0], abs=1e-4)


def test_each_folder_may_be_given_the_pixels_that_it_states(graph: Path, labelled: Path, tmp_path: Path) -> None:
    data = save_classes(tmp_path / "data", ("cat", "dog"), each=1)
    other = convert_file(labelled, "onnx", tmp_path / "timm", options=convert_options(profile="timm"))
    used = DataUsed("data", 4, 2, 2, "0" * 64, read_images(data).fingerprint())
    record = Training("labelled", "0" * 64, used, {}, (), {}, TrainingCurve([], [], []))
    (other / "training.json").write_text(json.dumps(record.to_dict()))
    found = convert.evaluate([graph, other], data, preprocessing="each")
    assert [run.notes[1:] for run in found.runs] == [(), ("these are the validation images of its training",)]
    assert ["128×128" in run.preprocessing for run in found.runs] == [True, False]
    assert "other pixels" in found.pairs[0].causes
    assert (found.pairs[0].tolerance, found.warnings) == (None, ())


def convert_options(**options: Any) -> Any:
    from convert.checkpoints.options import ConversionOptions

    return ConversionOptions(**options)


def test_a_library_that_is_missing_or_fails_leaves_the_others(
    graph: Path, tiny_npz: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = save_classes(tmp_path / "data", tuple(LABELS.values()), each=1)
    damaged = shutil.copytree(graph, tmp_path / "damaged")
    content = bytearray((damaged / "model.onnx").read_bytes())
    place = content.index(b"Conv")
    content[place : place + 4] = b"Vonc"
    (damaged / "model.onnx").write_bytes(content)
    monkeypatch.setattr(Runner, "missing", property(lambda runner: "torch" if runner.name == "pytorch" else None))
    found = convert.evaluate([tiny_npz, damaged, graph], data)
    assert [run.checkpoint for run in found.runs] == [str(graph)]
    missing, failed = found.not_run
    assert (missing.library, missing.reason) == (
        "bit (PyTorch)",
        "torch is not installed; run make setup, or pip install -e '.[torch]'",
    )
    assert failed.checkpoint == str(damaged)
    assert "the graph is not the one that bit convert writes" in failed.reason
    assert (found.complete, found.pairs) == (False, ())


def test_outputs_that_are_not_finite_are_not_scored(tmp_path: Path, pictures: Path) -> None:
    write_npz(tmp_path / "tiny.npz", TINY.replace(num_labels=3))
    arrays = dict(np.load(tmp_path / "tiny.npz"))
    arrays["resnet/head/conv2d/bias"][1] = np.nan
    np.savez(tmp_path / "tiny.npz", **arrays)
    folder = convert_file(tmp_path / "tiny.npz", "onnx", tmp_path / "onnx", allow_nonfinite=True)
    (failed,) = convert.evaluate(folder, pictures).not_run
    assert failed.reason.endswith("the outputs are not finite numbers")


def test_checkpoints_and_classes_that_do_not_fit_are_refused(
    labelled: Path, pictures: Path, tiny_npz: Path, tmp_path: Path
) -> None:
    write_npz(tmp_path / "headless.npz", TINY.replace(num_labels=0))
    write_npz(tmp_path / "gray.npz", TINY.replace(num_channels=1))
    six = save_classes(tmp_path / "six", "abcdef", each=1)
    one = save_classes(tmp_path / "one", "a")
    for checkpoint, data, message, kind in (
        (tmp_path / "headless.npz", pictures, "has no head, so it cannot classify", CheckpointError),
        (tmp_path / "gray.npz", pictures, "takes images with 1 channels", CheckpointError),
        (tiny_npz, pictures, "head for 5 classes without names; the data has 3 classes", UsageError),
        (labelled, six, "head for 5 classes, and none is named 'a', 'b'", UsageError),
        (labelled, one, "holds images of one class", UsageError),
        (labelled, tmp_path / "absent", "there is no folder", UsageError),
        (tmp_path / "absent.npz", pictures, "there is no file", CheckpointError),
    ):
        with pytest.raises(kind, match=message):
            convert.evaluate(checkpoint, data)
    for options, message in (
        ({"preprocessing": "none"}, "unknown preprocessing 'none'; choose from same, each, library"),
        ({"batch": 0}, "a batch of 0 images"),
        ({"bacth": 8}, "unknown option 'bacth'"),
        ({"split": "best"}, "has no splits"),
    ):
        with pytest.raises(UsageError, match=message):
            convert.evaluate(labelled, pictures, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no checkpoint was named"):
        convert.evaluate([], pictures)


@pytest.mark.long
def test_every_layout_gives_the_same_classes_by_its_own_library(tiny_npz: Path, labelled: Path, tmp_path: Path) -> None:
    """Those with Google's epsilon among themselves within rounding, and transformers and timm, too."""
    data = save_classes(tmp_path / "data", sorted(LABELS.values()), each=4)
    write_npz(tmp_path / "tiny.npz", TINY)
    layouts = ("google", "google-tf2", "flax", "keras", "keras-saved", "onnx", "transformers", "timm")
    folders = [convert_file(tmp_path / "tiny.npz", layout, tmp_path / layout) for layout in layouts]
    found = convert.evaluate(folders, data, batch=8)
    assert found.not_run == ()
    assert [run.ws_eps for run in found.runs] == [1e-10] * 6 + [1e-8] * 2
    assert [run.library for run in found.runs][2:] == [
        "bit.flax (JAX)",
        "bit.keras (TensorFlow)",
        "Keras (TensorFlow)",
        "ONNX Runtime",
        "transformers",
        "timm",
    ]
    assert len({run.scores.top1 for run in found.runs}) == 1
    for pair in found.pairs:
        assert (pair.same_first_class, pair.explained) == (20, True), pair
    assert max(pair.relative_l2 for pair in found.pairs[:5]) < 2e-5


@pytest.mark.long
def test_the_pipelines_of_transformers_and_timm_prepare_images(synthetic: Any, tmp_path: Path) -> None:
    """With the settings of one profile, both see what the folder states, but for their own resizing."""
    (tmp_path / "a.npz").symlink_to(synthetic("R50x1"))
    data = tmp_path / "data"
    for label in range(2):
        save_picture(data / str(label) / "x.png", label, (300, 260, 3))
    folders = []
    for layout in ("transformers", "timm"):
        options = convert_options(head="new:2", profile="timm")
        folders.append(convert_file(tmp_path / "a.npz", layout, tmp_path / layout, options=options))
    own = convert.evaluate(folders, data, preprocessing="library")
    assert [run.preprocessing for run in own.runs] == ["by the library's own pipeline"] * 2
    assert own.pairs[0].tolerance is None
    assert own.not_run == ()


@pytest.mark.long
def test_a_head_for_several_labels_is_scored_with_sigmoids(labelled: Path, pictures: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(labelled, tmp_path / "several")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "problem_type": "multi_label_classification"}))
    found = convert.evaluate([folder, labelled], pictures)
    assert [run.sigmoid for run in found.runs] == [True, False]
    assert "the head is for several labels" in found.runs[0].notes[0]
    assert found.runs[0].scores.top1 == found.runs[1].scores.top1
    assert found.runs[0].scores.nll != found.runs[1].scores.nll
    assert found.pairs[0].largest_difference == 0
