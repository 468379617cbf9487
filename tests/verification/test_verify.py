from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.conversions import convert, verified
from support.faults import forge, plant_weights
from support.networks import TINY

from bit.config import BitConfig
from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.manifest import Manifest, Origin
from convert.checkpoints.options import ConversionOptions
from convert.errors import CheckpointError
from convert.files.base import file_sha256
from convert.layouts import READABLE
from convert.network.taps import tap_names
from convert.progress import silent
from convert.references import recordings
from convert.references.registry import CONVERTED
from convert.reporting.text import summary
from convert.sources.synthetic import write_npz
from convert.verification.candidate import Candidate
from convert.verification.tap_errors import TapComparison
from convert.verification.verify import Verification, verify

State = dict[str, NDArray[np.float32]]
Synthetic = Callable[[str], Path]


@pytest.mark.parametrize("layout", list(READABLE))
def test_a_right_conversion_passes_every_check(synthetic: Synthetic, tmp_path: Path, layout: str) -> None:
    folder = convert(synthetic("R14x1"), layout, tmp_path / "out")
    result = verified(folder, synthetic("R14x1"))
    assert result.passed
    taps = len(tap_names(BitConfig.from_architecture("R14x1")))
    assert len(result.checks) == 2 * taps, "the definition in float64, two inputs"
    assert {check.input for check in result.checks} == {"square", "odd"}
    assert max(check.error for check in result.checks if check.dtype == "float64") < 1e-12
    assert result.tensors_proven == 4 * 10 + 5, "nine arrays and a projection a unit, stem, norm and head"
    written = json.loads((folder / "verification.json").read_text())
    assert written["passed"] is True
    assert written["files"]["conversion.json"] == file_sha256(folder / "conversion.json")
    assert len(written["checks"]) == len(result.checks)
    assert "verification.html" not in written["files"]
    assert (folder / "verification.html").exists()


def test_without_its_source_a_recorded_checkpoint_is_still_verified(synthetic: Synthetic, tmp_path: Path) -> None:
    result = verified(convert(synthetic("R14x1"), "timm", tmp_path / "out"), None)
    assert result.passed
    assert result.tensors_proven == 0
    assert any("bytes" in warning for warning in result.warnings)


def test_without_records_source_and_written_file_must_agree_at_every_tap(tiny_npz: Path, tmp_path: Path) -> None:
    result = verified(convert(tiny_npz, "transformers", tmp_path / "out"), tiny_npz, torch=True)
    assert result.passed
    assert {(check.implementation, check.dtype) for check in result.checks} == {
        ("definition", "float64"),
        ("bit (PyTorch)", "float64"),
        ("bit (PyTorch)", "float32"),
    }
    assert any("no recorded output of the original code" in warning for warning in result.warnings)
    float32 = [check.tolerance for check in result.checks if check.dtype == "float32"]
    assert 1e-8 < min(float32) <= max(float32) < 1e-4, "derived from the definition's own run in float32"


def test_without_records_and_source_nothing_can_be_said(tiny_npz: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--source"):
        verified(convert(tiny_npz, "transformers", tmp_path / "out"), None)


def test_a_folder_that_was_not_converted_here_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="only folders that bit convert wrote"):
        verified(tmp_path, None)


def test_another_source_is_refused(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "transformers", tmp_path / "out")
    write_npz(tmp_path / "tiny.npz", BitConfig.from_architecture("R14x1", num_labels=5))
    with pytest.raises(CheckpointError, match="is not what"):
        verified(folder, tmp_path / "tiny.npz")


def swap(state: State) -> None:
    first, second = "bit.encoder.stages.0.layers.0.norm2.weight", "bit.encoder.stages.0.layers.0.norm3.weight"
    state[first], state[second] = state[second], state[first]


def one_percent(state: State) -> None:
    state["bit.encoder.stages.2.layers.0.conv2.weight"][0, 0, 0, 0] *= 1.01


def flip(state: State) -> None:
    kernel = state["bit.encoder.stages.1.layers.0.conv2.weight"]
    kernel[...] = kernel[:, :, ::-1, ::-1].copy()


def transpose(state: State) -> None:
    kernel = state["bit.encoder.stages.3.layers.0.conv2.weight"]
    kernel[...] = kernel.transpose(0, 1, 3, 2).copy()


def bias(state: State) -> None:
    state["classifier.1.bias"] += np.float32(1e-4)


def permute_head(state: State) -> None:
    state["classifier.1.weight"][[3, 4]] = state["classifier.1.weight"][[4, 3]]


@pytest.mark.parametrize(
    ("fault", "tap"),
    [
        (swap, "block1/unit01"),
        (one_percent, "block3/unit01"),
        (flip, "block2/unit01"),
        (transpose, "block4/unit01"),
        (bias, "logits"),
        (permute_head, "logits"),
    ],
)
def test_a_planted_fault_is_caught_at_the_tap_where_it_begins(
    synthetic: Synthetic, tmp_path: Path, fault: Callable[[State], None], tap: str
) -> None:
    folder = convert(synthetic("R14x1"), "transformers", tmp_path / "out")
    plant_weights(folder, fault)
    result = verified(folder, None, torch=fault is flip)
    assert not result.passed
    assert any(check.implementation == "bit (PyTorch)" for check in result.checks) == (fault is flip)
    runs = {(check.implementation, check.dtype) for check in result.checks if check.dtype == "float64"}
    for run in runs:
        first = next(c for c in result.checks if (c.implementation, c.dtype) == run and not c.passed)
        assert first.tap == tap
    assert not json.loads((folder / "verification.json").read_text())["passed"]


@pytest.mark.parametrize("fault", [swap, one_percent, bias])
def test_a_fault_shows_in_the_bytes_too(synthetic: Synthetic, tmp_path: Path, fault: Callable[[State], None]) -> None:
    folder = convert(synthetic("R14x1"), "transformers", tmp_path / "out")
    plant_weights(folder, fault)
    result = verified(folder, synthetic("R14x1"))
    assert any("does not give back the bytes" in problem for problem in result.problems)


def test_a_changed_file_is_seen_by_its_hash(synthetic: Synthetic, tmp_path: Path) -> None:
    folder = convert(synthetic("R14x1"), "transformers", tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "drop_path_rate": 0.1}))
    result = verified(folder, None)
    assert "config.json has changed since it was written: its SHA-256 is not the recorded one" in result.problems
    assert not result.passed


def test_a_missing_file_is_named(synthetic: Synthetic, tmp_path: Path) -> None:
    folder = convert(synthetic("R14x1"), "transformers", tmp_path / "out")
    (folder / "config.json").unlink()
    assert "config.json is missing" in verified(folder, None).problems


@pytest.mark.parametrize("layout", ["transformers", "timm"])
def test_a_config_that_fits_its_record_but_not_the_weights_is_seen(
    synthetic: Synthetic, tmp_path: Path, layout: str
) -> None:
    folder = convert(synthetic("R14x1"), layout, tmp_path / "out")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "num_classes": 7, "depths": [9, 9, 9, 9]}))
    forge(folder, "config.json")
    result = verified(folder, None)
    assert not result.passed
    assert any("config.json" in problem for problem in result.problems)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"layout": "timm"}, "conversion.json has other layout than the weights"),
        ({"architecture": "R152x4"}, "conversion.json has other architecture than the weights"),
        ({"classes": 7}, "conversion.json has other classes than the weights"),
        ({"tensors": []}, "conversion.json has other tensors than the weights"),
        ({"tensors": [{"target": ["x"]}]}, "conversion.json has other tensors than the weights"),
        ({"files": {}}, "model.safetensors is not among the files that conversion.json lists"),
    ],
)
def test_what_the_record_claims_is_held_to_the_weights(
    synthetic: Synthetic, tmp_path: Path, changes: dict[str, object], problem: str
) -> None:
    folder = convert(synthetic("R14x1"), "transformers", tmp_path / "out")
    values = json.loads((folder / "conversion.json").read_text())
    (folder / "conversion.json").write_text(json.dumps({**values, **changes}))
    result = verified(folder, None)
    assert problem in result.problems
    assert not result.passed


def test_a_damaged_weights_file_fails_and_is_no_longer_said_to_have_passed(
    synthetic: Synthetic, tmp_path: Path
) -> None:
    folder = convert(synthetic("R14x1"), "transformers", tmp_path / "out")
    assert verified(folder, None).passed
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert not verified(folder, None).passed
    assert not json.loads((folder / "verification.json").read_text())["passed"]


def test_values_that_are_not_finite_never_pass_and_leave_valid_json(tmp_path: Path) -> None:
    from support.conversions import arrays_of

    arrays = arrays_of(TINY)
    arrays["resnet/head/conv2d/bias"][0] = np.nan
    np.savez(tmp_path / "a.npz", **arrays)
    folder = convert(tmp_path / "a.npz", "timm", tmp_path / "out", allow_nonfinite=True)
    assert not verified(folder, tmp_path / "a.npz").passed
    text = (folder / "verification.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["tensors_proven"] == 34


def test_nothing_compared_is_no_pass() -> None:
    assert not Verification("a", "timm", "R50x1", 10).passed


def test_a_wrong_epsilon_fails_from_the_first_convolution_on(synthetic: Synthetic, tmp_path: Path) -> None:
    folder = convert(synthetic("R14x1"), "timm", tmp_path / "out")
    records = recordings.find(file_sha256(synthetic("R14x1")))
    with Checkpoint(folder) as written:
        written.config = written.config.replace(ws_eps=1e-8)
        comparison = TapComparison(records, None, 3, silent)
        subject = Candidate(CONVERTED, written, Origin("Synthetic-R14x1", ""))
        comparison.run(subject.definition(), subject)
    assert not any(check.passed for check in comparison.checks)


def test_a_tap_missing_from_the_record_or_from_the_run_fails(synthetic: Synthetic, tmp_path: Path) -> None:
    folder = convert(synthetic("R14x1"), "timm", tmp_path / "out")
    records = recordings.find(file_sha256(synthetic("R14x1")))
    assert records is not None
    taps = dict(records.truth.taps)
    taps["odd", "block9/unit01"] = taps.pop(("odd", "block2/unit01"))
    short = recordings.Recordings(
        records.name, recordings.Recording("x", "y", records.truth.inputs, taps), records.float32
    )
    with Checkpoint(folder) as written:
        comparison = TapComparison(short, None, 3, silent)
        subject = Candidate(CONVERTED, written, Origin("Synthetic-R14x1", ""))
        comparison.run(subject.definition(), subject)
    assert {check.tap for check in comparison.checks if not check.passed} == {"block2/unit01", "block9/unit01"}


def test_the_difference_that_the_librarys_epsilon_makes_is_stated(synthetic: Synthetic, tmp_path: Path) -> None:
    result = verified(convert(synthetic("R14x1"), "timm", tmp_path / "out"), None)
    assert result.trials.epsilon is not None
    assert (result.trials.epsilon.library, result.trials.epsilon.epsilon) == ("timm", 1e-8)
    assert 1e-5 < result.trials.epsilon.relative_l2 < 1e-2
    assert verified(convert(synthetic("R14x1"), "google", tmp_path / "google"), None).trials.epsilon is None


def test_other_names_of_classes_than_the_sources_are_a_problem(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "transformers", tmp_path / "out")
    values = json.loads((folder / "config.json").read_text())
    labels = {str(index): f"invented {index}" for index in range(5)}
    del values["num_labels"]
    new = {**values, "id2label": labels, "label2id": {label: int(index) for index, label in labels.items()}}
    (folder / "config.json").write_text(json.dumps(new))
    forge(folder, "config.json")
    result = verified(folder, tiny_npz)
    assert "the names of the classes are not those of the source" in result.problems
    assert not result.passed


def test_a_damaged_file_beside_the_weights_is_a_problem(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "transformers", tmp_path / "out")
    (folder / "preprocessor_config.json").write_text("{broken")
    result = verified(folder, tiny_npz)
    assert "preprocessor_config.json does not say what these weights imply" in result.problems


def test_weights_beside_the_verified_ones_are_a_problem(tiny_npz: Path, tmp_path: Path) -> None:
    """A library might load them instead, as transformers prefers one file to an index."""
    folder = convert(tiny_npz, "transformers", tmp_path / "out", max_shard_size="100KB")
    assert verified(folder, tiny_npz).passed
    other = convert(tiny_npz, "transformers", tmp_path / "other")
    shutil.copy(other / "model.safetensors", folder)
    with Checkpoint(folder / "model.safetensors.index.json"):
        pass
    result = verified(folder, tiny_npz)
    assert not result.passed
    assert "model.safetensors was not written by the conversion, and holds weights" in result.problems


@pytest.mark.parametrize("changes", [ConversionOptions(dtype="bfloat16"), ConversionOptions(ws_eps="compensate")])
def test_values_that_are_not_finite_have_no_budget(tmp_path: Path, changes: ConversionOptions) -> None:
    from support.conversions import arrays_of

    arrays = arrays_of(TINY)
    arrays["resnet/block1/unit01/a/group_norm/beta"][:] = np.nan
    np.savez(tmp_path / "a.npz", **arrays)
    folder = convert(tmp_path / "a.npz", "timm", tmp_path / "out", allow_nonfinite=True, changes=changes)
    result = verified(folder, tmp_path / "a.npz", torch=True)
    assert not any(
        check.passed for check in result.checks if check.tap != "root_block/conv" and check.tap != "root_block"
    )
    json.loads((folder / "verification.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"origin": {"sha256": "0" * 64}}, "names another origin than its source"),
        ({"tensors": [{"transform": "oihw -> hwio"}]}, "tells another way of the tensors"),
        ({"tensors": [{"source": "another"}]}, "tells another way of the tensors"),
    ],
)
def test_a_record_that_tells_another_story_than_the_source_fails(
    tiny_npz: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = convert(tiny_npz, "timm", tmp_path / "out")
    values = json.loads((folder / "conversion.json").read_text())
    for name, part in change.items():
        target = values[name][0] if isinstance(part, list) else values[name]
        target.update(part[0] if isinstance(part, list) else part)
    (folder / "conversion.json").write_text(json.dumps(values))
    result = verified(folder, tiny_npz)
    assert not result.passed
    assert any(message in problem for problem in result.problems)


def test_roundings_that_the_record_claims_are_said(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "timm", tmp_path / "out", changes=ConversionOptions(dtype="float16"))
    result = verified(folder, tiny_npz)
    assert result.roundings == ("float16",)
    assert any("rounded to float16" in line for line in summary(result))
    values = json.loads((folder / "conversion.json").read_text())
    values["origin"]["roundings"] = ["0.9"]
    (folder / "conversion.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="a rounding"):
        Manifest.read(folder)


def test_a_head_that_was_added_is_run_by_references_too(tmp_path: Path) -> None:
    write_npz(tmp_path / "body.npz", TINY.replace(num_labels=0))
    folder = convert(tmp_path / "body.npz", "transformers", tmp_path / "out", changes=ConversionOptions(head="new:3"))
    with Checkpoint(tmp_path / "body.npz") as source:
        result = verify(folder, source, silent, ("pytorch", "transformers"))
    assert result.passed, [check for check in result.checks if not check.passed]
    assert any(check.tap == "logits" and check.implementation == "transformers" for check in result.checks)


def test_a_reference_that_must_run_and_cannot_fails_the_verification(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "google", tmp_path / "out")
    with Checkpoint(tiny_npz) as source:
        result = verify(folder, source, silent, ("onnxruntime",), required=("onnxruntime",))
    assert any("onnxruntime was asked for, and not run" in problem for problem in result.problems)


def test_a_network_of_other_sizes_inside_is_a_failure_not_a_crash(synthetic: Synthetic, tmp_path: Path) -> None:
    from support.faults import faulty_network

    from convert.verification.network import compare_network

    def unstrided(network: Any) -> None:
        network.bit.encoder.stages[1].layers[0].conv2.stride = (1, 1)
        network.bit.encoder.stages[1].layers[0].downsample.conv.stride = (1, 1)

    folder = convert(synthetic("R14x1"), "transformers", tmp_path / "out")
    with Checkpoint(folder) as written, Checkpoint(synthetic("R14x1")) as source:
        assert written.record is not None
        subject = Candidate(CONVERTED, written, written.record.origin)
        network = faulty_network(written, unstrided)
        trials = compare_network(subject, Candidate.source(source), None, (), silent, others=[network])
    assert next(check for check in trials.checks if not check.passed).tap == "block2/unit01"
    assert trials.findings[0].part == "block2/unit01"
