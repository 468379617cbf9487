from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.conversions import arrays_of, convert, verified
from support.faults import faulty_network, forge
from support.networks import TINY

import convert as api
from bit.config import BitConfig
from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.manifest import Manifest
from convert.checkpoints.options import ConversionOptions
from convert.errors import CheckpointError
from convert.files.base import file_sha256
from convert.layouts import READABLE
from convert.network.inputs import batches
from convert.network.runner import Implementation
from convert.network.taps import tap_names
from convert.progress import silent
from convert.references.recordings import Recordings, find_recordings
from convert.references.worker import ReferenceProcess
from convert.reporting.text import summary
from convert.sources.synthetic import write_npz
from convert.verification.network import compare_network
from convert.verification.results import CONVERTED, INCOMPLETE, SCHEMA, SOURCE, Check, Verification
from convert.verification.tap_errors import Candidate, Expected, compare_taps, run_both_modes
from convert.verification.verify import Settings, verify

State = dict[str, NDArray[np.float32]]
Synthetic = Callable[[str], Path]
Folder = Callable[[str], Path]


@pytest.mark.parametrize("layout", list(READABLE))
def test_a_right_conversion_passes_every_check(synthetic: Synthetic, copied: Folder, layout: str) -> None:
    folder = copied(layout)
    result = verified(folder, synthetic("R14x1"))
    assert result.passed
    taps = len(tap_names(BitConfig.from_architecture("R14x1")))
    assert len(result.checks) == 2 * taps, "the oracle in float64, two inputs"
    assert {check.input for check in result.checks} == {"square", "odd"}
    assert max(check.error for check in result.checks if check.dtype == "float64") < 1e-12
    assert result.tensors_exact == 4 * 10 + 5, "nine arrays and a projection a unit, stem, norm and head"
    report = json.loads((folder / "verification.json").read_text())
    assert report["passed"] is True
    assert report["schema"] == SCHEMA
    assert report["files"]["conversion.json"] == file_sha256(folder / "conversion.json")
    assert len(report["checks"]) == len(result.checks)
    assert "verification.html" not in report["files"]
    assert (folder / "verification.html").exists()


def test_a_recorded_checkpoint_is_verified_without_its_source(copied: Folder) -> None:
    result = verified(copied("timm"), None)
    assert result.passed
    assert result.tensors_exact == 0
    assert any("bytes" in warning for warning in result.warnings)


def test_without_a_recording_source_and_converted_file_must_agree_at_every_tap(tiny: Path, tiny_npz: Path) -> None:
    result = verified(tiny, tiny_npz, ("pytorch",))
    assert result.passed
    assert {(check.implementation, check.dtype) for check in result.checks} == {
        ("oracle", "float64"),
        ("bit (PyTorch)", "float64"),
        ("bit (PyTorch)", "float32"),
    }
    assert any("no recording of the original code" in warning for warning in result.warnings)
    float32 = [check.tolerance for check in result.checks if check.dtype == "float32"]
    assert 1e-8 < min(float32) <= max(float32) < 1e-4, "derived from the oracle's own run in float32"


def test_without_a_recording_and_a_source_nothing_can_be_verified(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match="--source"):
        verified(tiny, None)


def test_a_folder_that_was_not_converted_here_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"conversion\.json"):
        api.verify(tmp_path)


def test_another_source_is_refused(tiny: Path, tmp_path: Path) -> None:
    write_npz(tmp_path / "tiny.npz", TINY.replace(depths=(1, 1)))
    with pytest.raises(CheckpointError, match="is not what"):
        verified(tiny, tmp_path / "tiny.npz")


def test_verifying_writes_nothing(tiny: Path, tiny_npz: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in tiny.iterdir()}
    manifest = Manifest.read(tiny)
    assert manifest is not None
    with Checkpoint(tiny_npz) as source:
        assert verify(tiny, manifest, source, Settings(), silent).passed
    assert {path.name: path.stat().st_mtime_ns for path in tiny.iterdir()} == before


def test_a_changed_file_is_seen_by_its_hash(tiny: Path, tiny_npz: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps({**config, "drop_path_rate": 0.1}))
    result = verified(tiny, tiny_npz)
    changed = "config.json has changed since it was written: the SHA-256 differs from conversion.json"
    assert changed in result.problems
    assert not result.passed


def test_a_missing_file_is_named(tiny: Path, tiny_npz: Path) -> None:
    (tiny / "config.json").unlink()
    assert "config.json is missing" in verified(tiny, tiny_npz).problems


@pytest.mark.parametrize("layout", ["transformers", "timm"])
def test_a_config_that_fits_the_manifest_but_not_the_weights_is_seen(
    tiny_npz: Path, tmp_path: Path, layout: str
) -> None:
    folder = convert(tiny_npz, layout, tmp_path / "out")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "num_classes": 7, "depths": [9, 9, 9, 9]}))
    forge(folder, "config.json")
    result = verified(folder, tiny_npz)
    assert not result.passed
    assert any("config.json" in problem for problem in result.problems)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"layout": "timm"}, "conversion.json: layout does not match the weights"),
        ({"architecture": "R152x4"}, "conversion.json: architecture does not match the weights"),
        ({"classes": 7}, "conversion.json: classes does not match the weights"),
        ({"tensors": []}, "conversion.json: tensors does not match the weights"),
    ],
)
def test_the_manifest_must_match_the_weights(
    tiny: Path, tiny_npz: Path, changes: dict[str, object], problem: str
) -> None:
    values = json.loads((tiny / "conversion.json").read_text())
    (tiny / "conversion.json").write_text(json.dumps({**values, **changes}))
    result = verified(tiny, tiny_npz)
    assert problem in result.problems
    assert not result.passed


def test_the_manifest_must_list_the_weights(tiny: Path, tiny_npz: Path) -> None:
    values = json.loads((tiny / "conversion.json").read_text())
    del values["files"]["model.safetensors"]
    (tiny / "conversion.json").write_text(json.dumps(values))
    result = verified(tiny, tiny_npz)
    assert "model.safetensors is not listed in conversion.json" in result.problems
    assert not result.passed
    (tiny / "conversion.json").write_text(json.dumps({**values, "files": {}}))
    with pytest.raises(CheckpointError, match="files is empty"):
        verified(tiny, tiny_npz)


def test_a_manifest_with_malformed_tensors_is_refused(tiny: Path) -> None:
    values = json.loads((tiny / "conversion.json").read_text())
    (tiny / "conversion.json").write_text(json.dumps({**values, "tensors": [{"target": ["x"]}]}))
    with pytest.raises(CheckpointError, match="is damaged"):
        Manifest.read(tiny)


def test_a_damaged_weights_file_fails_and_the_report_no_longer_passes(tiny: Path, tiny_npz: Path) -> None:
    assert verified(tiny, tiny_npz).passed
    path = tiny / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert not verified(tiny, tiny_npz).passed
    assert not json.loads((tiny / "verification.json").read_text())["passed"]


def test_values_that_are_not_finite_never_pass_and_leave_valid_json(tmp_path: Path) -> None:
    arrays = arrays_of(TINY)
    arrays["resnet/head/conv2d/bias"][0] = np.nan
    np.savez(tmp_path / "a.npz", **arrays)
    folder = convert(tmp_path / "a.npz", "timm", tmp_path / "out", allow_nonfinite=True)
    assert not verified(folder, tmp_path / "a.npz").passed
    text = (folder / "verification.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["tensors_exact"] == 34


def test_zero_comparisons_do_not_pass() -> None:
    assert not Verification("a", "timm", "R50x1", 10).passed


def compared(folder: Path, recordings: Recordings, ws_eps: float | None = None) -> tuple[Check, ...]:
    """Run the oracle on a folder, and check the taps against recordings."""
    images = batches(recordings.float64.inputs)
    with Checkpoint(folder) as checkpoint:
        if ws_eps is not None:
            checkpoint.config = checkpoint.config.replace(ws_eps=ws_eps)
        expected = Expected(Candidate(CONVERTED, checkpoint), recordings, None, images, silent)
        taps = run_both_modes(checkpoint.oracle(), expected, isolated=False)
        return compare_taps(checkpoint.oracle(), expected, taps).checks


@pytest.fixture
def recordings(synthetic: Synthetic) -> Recordings:
    found = find_recordings(file_sha256(synthetic("R14x1")))
    assert found is not None
    return found


def test_a_wrong_epsilon_fails_from_the_first_convolution_on(converted: Folder, recordings: Recordings) -> None:
    checks = compared(converted("timm"), recordings, ws_eps=1e-8)
    assert checks
    assert not any(check.passed for check in checks)


def test_a_tap_missing_from_the_recording_or_from_the_run_fails(converted: Folder, recordings: Recordings) -> None:
    taps = dict(recordings.float64.taps)
    taps["odd", "block9/unit01"] = taps.pop(("odd", "block2/unit01"))
    incomplete = dataclasses.replace(recordings, float64=dataclasses.replace(recordings.float64, taps=taps))
    checks = compared(converted("timm"), incomplete)
    assert {check.tap for check in checks if not check.passed} == {"block2/unit01", "block9/unit01"}


def test_the_difference_that_the_librarys_epsilon_makes_is_stated(copied: Folder) -> None:
    effect = verified(copied("timm"), None).network.epsilon
    assert effect is not None
    assert (effect.library, effect.epsilon, effect.tap) == ("timm", 1e-8, "logits")
    assert effect.relative_l2 is not None
    assert 1e-5 < effect.relative_l2 < 1e-2
    assert verified(copied("google"), None).network.epsilon is None


def test_other_class_names_than_those_of_the_source_are_a_problem(tiny: Path, tiny_npz: Path) -> None:
    folder = tiny
    values = json.loads((folder / "config.json").read_text())
    labels = {str(index): f"invented {index}" for index in range(5)}
    del values["num_labels"]
    new = {**values, "id2label": labels, "label2id": {label: int(index) for index, label in labels.items()}}
    (folder / "config.json").write_text(json.dumps(new))
    forge(folder, "config.json")
    result = verified(folder, tiny_npz)
    assert "class names do not match the source" in result.problems
    assert not result.passed


def test_a_damaged_companion_file_is_a_problem(tiny: Path, tiny_npz: Path) -> None:
    (tiny / "preprocessor_config.json").write_text("{broken")
    result = verified(tiny, tiny_npz)
    assert "preprocessor_config.json does not match the weights" in result.problems


def test_other_weights_beside_the_verified_ones_are_a_problem(tiny_npz: Path, right_tiny: Path, tmp_path: Path) -> None:
    """A library might load them instead, as transformers prefers one file to an index."""
    folder = convert(tiny_npz, "transformers", tmp_path / "out", max_shard_size="100KB")
    assert verified(folder, tiny_npz).passed
    shutil.copy(right_tiny / "model.safetensors", folder)
    with Checkpoint(folder / "model.safetensors.index.json"):
        pass
    result = verified(folder, tiny_npz)
    assert not result.passed
    assert "model.safetensors was not written by the conversion and holds weights: remove it" in result.problems


@pytest.mark.parametrize("options", [ConversionOptions(dtype="bfloat16"), ConversionOptions(ws_eps="compensate")])
def test_values_that_are_not_finite_have_no_tolerance(tmp_path: Path, options: ConversionOptions) -> None:
    arrays = arrays_of(TINY)
    arrays["resnet/block1/unit01/a/group_norm/beta"][:] = np.nan
    np.savez(tmp_path / "a.npz", **arrays)
    folder = convert(tmp_path / "a.npz", "timm", tmp_path / "out", allow_nonfinite=True, options=options)
    result = verified(folder, tmp_path / "a.npz", ("pytorch",))
    assert not any(
        check.passed for check in result.checks if check.tap != "root_block/conv" and check.tap != "root_block"
    )
    json.loads((folder / "verification.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"origin": {"sha256": "0" * 64}}, "origin does not match the source"),
        ({"tensors": [{"transform": "oihw -> hwio"}]}, "tensor rows do not match the conversion plan"),
        ({"tensors": [{"source": "another"}]}, "tensor rows do not match the conversion plan"),
    ],
)
def test_a_manifest_that_contradicts_the_source_fails(
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


def test_recorded_roundings_are_reported(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "timm", tmp_path / "out", options=ConversionOptions(dtype="float16"))
    result = verified(folder, tiny_npz)
    assert result.roundings == ("float16",)
    assert any("to float16" in line for line in summary(result))
    values = json.loads((folder / "conversion.json").read_text())
    values["origin"]["roundings"] = ["0.9"]
    (folder / "conversion.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="rounding"):
        Manifest.read(folder)


@pytest.mark.long
def test_a_head_that_was_added_is_run_by_references_too(tmp_path: Path) -> None:
    write_npz(tmp_path / "body.npz", TINY.replace(num_labels=0))
    folder = convert(tmp_path / "body.npz", "transformers", tmp_path / "out", options=ConversionOptions(head="new:3"))
    result = verified(folder, tmp_path / "body.npz", ("pytorch", "transformers"))
    assert result.passed, [check for check in result.checks if not check.passed]
    assert any(check.tap == "logits" and check.implementation == "transformers" for check in result.checks)


def test_without_a_reference_that_must_run_the_verification_is_incomplete(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "google", tmp_path / "out")
    result = verified(folder, tiny_npz, ("onnxruntime",), required=("onnxruntime",))
    assert result.incomplete == (
        "onnxruntime did not run: it reads neither the converted layout nor the layout of the source",
    )
    assert (result.verdict, result.problems) == (INCOMPLETE, ())


def test_a_network_with_other_strides_is_a_failure_not_a_crash(synthetic: Synthetic, converted: Folder) -> None:
    def unstrided(network: Any) -> None:
        network.bit.encoder.stages[1].layers[0].conv2.stride = (1, 1)
        network.bit.encoder.stages[1].layers[0].downsample.conv.stride = (1, 1)

    with Checkpoint(converted("transformers")) as checkpoint, Checkpoint(synthetic("R14x1")) as source:
        network = faulty_network(checkpoint, unstrided)
        sides = Candidate(CONVERTED, checkpoint), Candidate(SOURCE, source)
        result = compare_network(*sides, None, (), silent, others=[network])
    assert next(check for check in result.checks if not check.passed).tap == "block2/unit01"
    assert result.findings[0].part == "block2/unit01"


def test_a_reference_that_crashes_leaves_the_verification_incomplete(
    tiny: Path, tiny_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(process: ReferenceProcess, dtype: str) -> Implementation:
        raise CheckpointError(f"pytorch could not be run in {dtype}: out of memory")

    monkeypatch.setattr(ReferenceProcess, "load", crash)
    result = verified(tiny, tiny_npz, ("pytorch",))
    assert "out of memory" in result.network.not_run["pytorch"]
    assert result.network.crashed == ("pytorch",)
    assert any("pytorch failed" in reason for reason in result.incomplete)
    assert (result.verdict, result.problems) == (INCOMPLETE, ())
    assert not result.passed
    assert result.checks, "the oracle ran"
    assert all(check.passed for check in result.checks)
