"""The subcommands: exit status, output, and what is left behind."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.command import assert_refused, run_here
from support.conversions import arrays_of
from support.networks import TINY
from support.npy import as_nan

from bit.config import BitConfig
from convert.cli.main import main
from convert.files.base import file_sha256
from convert.layouts import LAYOUTS
from convert.network.dtypes import BY_NAME
from convert.references import recorder
from convert.references.registry import REFERENCES
from convert.sources.synthetic import write_npz


def convert_tiny(tiny_npz: Path, folder: Path, *options: str) -> Path:
    """Convert `tiny_npz` to `out` in a folder without verifying it."""
    result = run_here("convert", tiny_npz, "--out", "out", "--no-verify", *options, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "out"


def test_convert_then_verify_then_convert_back(tiny_npz: Path, tmp_path: Path) -> None:
    result = run_here("convert", tiny_npz, cwd=tmp_path, BIT_CACHE=str(tmp_path / "cache"))
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "converted" / "tiny" / "transformers"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "conversion.json",
        "model.safetensors",
        "preprocessor_config.json",
        "verification.html",
        "verification.json",
    ]
    assert "verified" in result.stdout.splitlines()
    assert "reference: recorded outputs of oracle of bit-convert" in result.stdout
    assert [path.name for path in (tmp_path / "cache" / "recordings").iterdir()] == ["tiny"]
    assert run_here("verify", folder, "--quick", cwd=tmp_path).returncode == 0
    assert run_here("convert", folder, "--to", "google", cwd=tmp_path).returncode == 0
    assert file_sha256(tmp_path / "converted" / "tiny" / "google" / "tiny.npz") == file_sha256(tiny_npz)


def test_a_seeded_checkpoint_is_verified_without_a_warning_and_leaves_two_folders(tmp_path: Path) -> None:
    result = run_here("convert", "Synthetic-R14x1", cwd=tmp_path)
    assert result.returncode == 0
    assert "warning" not in result.stderr
    assert "reference: recorded outputs of google-research/big_transfer" in result.stdout
    assert "transformers standardizes weights with epsilon 1e-08, this checkpoint expects 1e-10" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "converted"]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["Synthetic-R14x1.npz"]


def test_success_shows_the_report_and_how_to_load_the_result(tiny_npz: Path, tmp_path: Path) -> None:
    lines = run_here("convert", tiny_npz, "--to", "flax", cwd=tmp_path).stdout.splitlines()
    assert lines[0].startswith(f"converted/tiny/flax: {TINY.architecture}, 5 classes, ")
    assert lines[-4:] == [
        "report: converted/tiny/flax/verification.html (open it in a browser)",
        "load it with:",
        "  import bit.flax",
        '  model = bit.flax.load("converted/tiny/flax")',
    ]
    assert all(layout.export.loading for layout in LAYOUTS.values())


def test_a_second_conversion_says_that_it_exists_and_is_verified(tiny_npz: Path, tmp_path: Path) -> None:
    first = run_here("convert", tiny_npz, cwd=tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    second = run_here("convert", tiny_npz, cwd=tmp_path)
    assert second.returncode == 0
    assert "this conversion exists already; --force converts again (with make: ARGS=--force)" in second.stdout
    assert [line for line in second.stdout.splitlines() if "exists" not in line] == first.stdout.splitlines()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written


def test_a_failed_verification_names_the_first_tap_and_exits_with_1(tiny_npz: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = convert_tiny(tiny_npz, tmp_path) / "model.safetensors"
    state = load_file(path)
    state["bit.encoder.stages.1.layers.0.conv2.weight"] *= np.linspace(1, 2, 3, dtype=np.float32)
    save_file(state, path, metadata={"format": "pt"})
    result = run_here("verify", path.parent, "--quick", cwd=tmp_path)
    assert result.returncode == 1
    assert "taps differ, first at block2/unit01" in result.stdout
    assert "model.safetensors has changed" in result.stdout
    assert "resnet/block2/unit01/b/standardized_conv2d/kernel" in result.stdout
    assert "verification failed" in result.stdout
    assert "load it with" not in result.stdout


def test_json_is_all_that_is_printed(tiny_npz: Path, tmp_path: Path) -> None:
    answer = json.loads(run_here("convert", tiny_npz, "--json", cwd=tmp_path).stdout)
    assert answer["verification"]["passed"] is True
    assert answer["conversion"]["architecture"] == TINY.architecture
    assert answer["created"] is True
    again = json.loads(run_here("convert", tiny_npz, "--json", cwd=tmp_path).stdout)
    assert again == {**answer, "created": False}
    verified = json.loads(run_here("verify", answer["folder"], "--quick", "--json", cwd=tmp_path).stdout)
    assert verified["passed"] is True


def test_json_lists_every_problem(tmp_path: Path) -> None:
    arrays = {key: array for key, array in arrays_of(TINY).items() if "/a/group_norm/" not in key}
    np.savez(tmp_path / "a.npz", **arrays)
    result = run_here("convert", "a.npz", "--json", cwd=tmp_path)
    assert result.returncode == 2
    answer = json.loads(result.stdout)
    assert answer["error"] in result.stderr
    assert len(answer["problems"]) == 6
    assert all(problem.startswith("missing resnet/block") for problem in answer["problems"])


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_reports_errors_as_json(command: str, tmp_path: Path) -> None:
    arguments = {
        "classify": ["a.png", "--model", "nowhere"],
        "compare": ["nowhere", "nowhere"],
        "list": ["BiT-M-R51x1"],
        "push": ["nowhere", "me/x"],
    }
    result = run_here(command, *arguments.get(command, ["nowhere"]), "--json", cwd=tmp_path)
    assert result.returncode == 2
    answer = json.loads(result.stdout)
    assert answer.keys() == {"error", "problems"}
    assert f"error: {answer['error']}" in result.stderr


def test_the_recording_is_printed_as_json(tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "record", functools.partial(recorder.record, frameworks=()))
    result = run_here("record", tiny_npz, "--recordings", "here", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["folder"] == "here/tiny"
    assert sorted(path.stem for path in (tmp_path / "here" / "tiny").glob("*.safetensors")) == answer["recordings"]


def test_no_verify_gives_no_verdict(tiny_npz: Path, tmp_path: Path) -> None:
    result = run_here("convert", tiny_npz, "--no-verify", "--out", "out", cwd=tmp_path)
    assert result.returncode == 0
    assert not (tmp_path / "out" / "verification.json").exists()
    assert "not verified" in result.stderr
    assert "verified" not in result.stdout
    answer = json.loads(
        run_here("convert", tiny_npz, "--no-verify", "--out", "out", "--force", "--json", cwd=tmp_path).stdout
    )
    assert answer["verification"] is None


def test_an_existing_output_needs_force(tiny_npz: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    result = run_here("convert", tiny_npz, "--out", "out", cwd=tmp_path)
    assert_refused(result, "replace it with --force (with make: ARGS=--force)", tmp_path)
    assert run_here("convert", tiny_npz, "--out", "out", "--force", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("absent.npz", "'absent.npz'"),
        ("BiT-M-R101x33", "did you mean BiT-M-R101x3"),
        ("Synthetic-R51x1", "did you mean Synthetic-R50x1"),
        ("", "''"),
        (".", "must hold exactly one file of weights"),
        ("/dev/zero", "is not a regular file"),
    ],
)
def test_an_invalid_checkpoint_is_one_error_line(tmp_path: Path, checkpoint: str, message: str) -> None:
    assert_refused(run_here("convert", checkpoint, cwd=tmp_path), message, tmp_path)


def test_a_name_that_contradicts_the_tensors_is_one_error_line(tmp_path: Path) -> None:
    write_npz(tmp_path / "BiT-S-R50x3.npz", BitConfig.from_architecture("R14x1", num_labels=2))
    assert_refused(run_here("convert", "BiT-S-R50x3.npz", cwd=tmp_path), "states R50x3, but the tensors are", tmp_path)


def test_a_name_that_cannot_be_fetched_says_where_to_put_the_file(tmp_path: Path) -> None:
    result = run_here("convert", "BiT-M-R101x3", cwd=tmp_path, BIT_MIRROR="http://127.0.0.1:9/bit_models")
    assert_refused(result, "http://127.0.0.1:9/bit_models/BiT-M-R101x3.npz", tmp_path)
    assert "checkpoints/BiT-M-R101x3.npz" in result.stderr


def test_a_published_name_uses_the_file_that_was_put_there(tmp_path: Path) -> None:
    write_npz(tmp_path / "checkpoints" / "BiT-M-R50x1.npz", BitConfig(num_labels=3))
    result = run_here("convert", "BiT-M-R50x1", "--no-verify", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "converted" / "BiT-M-R50x1" / "transformers" / "model.safetensors").exists()


def test_a_folder_that_cannot_be_written_is_one_error_line(tiny_npz: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_refused(run_here("convert", tiny_npz, "--out", "file/out", cwd=tmp_path), "file", tmp_path)


@pytest.mark.parametrize("damage", ["not json", "[]", "{}", '{"name": 1}'])
def test_a_damaged_manifest_is_one_error_line(tmp_path: Path, damage: str) -> None:
    (tmp_path / "conversion.json").write_text(damage)
    assert_refused(run_here("verify", ".", cwd=tmp_path), "conversion.json is damaged", tmp_path)
    assert_refused(run_here("convert", ".", cwd=tmp_path), "conversion.json is damaged", tmp_path)


def test_force_replaces_conversions_alone(tiny_npz: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    result = run_here("convert", tiny_npz, "--out", "mine", "--force", cwd=tmp_path)
    assert_refused(result, "holds files that are not part of a conversion (thesis.tex)", tmp_path)
    out = convert_tiny(tiny_npz, tmp_path)
    result = run_here("convert", "out", "--out", "out", "--force", cwd=tmp_path)
    assert_refused(result, "is to be converted", tmp_path)
    (out / "thesis.tex").write_text("precious")
    result = run_here("convert", tiny_npz, "--out", "out", "--force", cwd=tmp_path)
    assert_refused(result, "holds files that are not part of a conversion (thesis.tex)", tmp_path)
    assert (out / "thesis.tex").exists()


def test_a_link_does_not_hide_that_the_output_holds_the_source(tiny_npz: Path, tmp_path: Path) -> None:
    convert_tiny(tiny_npz, tmp_path)
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "model.safetensors").symlink_to("../out/model.safetensors")
    result = run_here("convert", "link", "--out", "out", "--force", cwd=tmp_path)
    assert_refused(result, "is to be converted", tmp_path)


def test_an_existing_output_is_noticed_before_anything_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    result = run_here("convert", "Synthetic-R50x1", "--out", "out", cwd=tmp_path)
    assert_refused(result, "--force", tmp_path)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert"], "Missing argument 'CHECKPOINT'; see bit convert --help"),
        (["convert", "x", "--to", "keras1"], "'keras1'"),
        (["convert", "x", "--to", "keras1"], "did you mean keras?"),
        (["convert", "x", "--dtype", "fp16"], "did you mean float16?"),
        (["convert", "x", "--reference", "pytroch"], "did you mean pytorch?"),
        (["convert", "x", "--frobnicate"], "No such option '--frobnicate'"),
        (["verify", "x", "--frobnicate"], "see bit verify --help"),
        (["explode"], "No such command 'explode'"),
        (["explode"], "see bit --help"),
        (["verify", "nowhere"], "there is no folder 'nowhere'"),
        (["verify", "~nobody-at-all/x"], "~nobody-at-all/x"),
        (["convert", "~nobody-at-all/x.npz"], "~nobody-at-all/x.npz"),
    ],
)
def test_wrong_usage_is_one_error_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    assert_refused(run_here(*arguments, cwd=tmp_path), message, tmp_path)


def test_help_lists_every_layout_dtype_and_reference(tmp_path: Path) -> None:
    words = set(run_here("convert", "--help", cwd=tmp_path).stdout.replace(",", " ").replace(".", " ").split())
    assert words >= {*LAYOUTS, *BY_NAME, *REFERENCES}


def test_the_list_of_commands_cuts_no_sentence(tmp_path: Path) -> None:
    result = run_here("--help", cwd=tmp_path)
    assert "..." not in result.stdout.split("Commands:")[1]


def test_a_conversion_can_be_verified_by_the_name_of_its_checkpoint(tiny_npz: Path, tmp_path: Path) -> None:
    assert run_here("convert", tiny_npz, "--to", "timm", "--no-verify", cwd=tmp_path).returncode == 0
    result = run_here("verify", "tiny", "--to", "timm", "--quick", cwd=tmp_path)
    assert result.returncode == 0
    assert result.stdout.splitlines()[-2:] == [
        "verified",
        "report: converted/tiny/timm/verification.html (open it in a browser)",
    ]


def test_a_missing_weights_file_fails_the_verification(tiny_npz: Path, tmp_path: Path) -> None:
    (convert_tiny(tiny_npz, tmp_path) / "model.safetensors").unlink()
    result = run_here("verify", "out", "--quick", cwd=tmp_path)
    assert result.returncode == 1
    assert "model.safetensors is missing" in result.stdout


@pytest.mark.parametrize("name", ["..", "", ".", "a/b", "a\0b", "\ud800", 7])
def test_a_name_in_a_manifest_is_never_a_path(tiny_npz: Path, tmp_path: Path, name: object) -> None:
    manifest = convert_tiny(tiny_npz, tmp_path) / "conversion.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "name": name}))
    assert_refused(run_here("convert", "out", "--to", "timm", cwd=tmp_path), "conversion.json is damaged", tmp_path)


def test_a_verified_output_is_not_replaced_by_one_that_fails(tiny_npz: Path, tmp_path: Path) -> None:
    assert run_here("convert", tiny_npz, "--out", "out", cwd=tmp_path).returncode == 0
    as_nan(tmp_path / "nan.npz")
    result = run_here("convert", "nan.npz", "--out", "out", "--force", "--allow-nonfinite", cwd=tmp_path)
    assert result.returncode == 1
    assert "out was kept as it was" in result.stderr
    assert json.loads((tmp_path / "out" / "verification.json").read_text())["passed"]


def test_a_weights_file_in_a_converted_folder_keeps_its_name_and_recordings(
    synthetic: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").symlink_to(synthetic("R14x1").parent)
    assert run_here("convert", "Synthetic-R14x1", "--no-verify", cwd=tmp_path).returncode == 0
    path = tmp_path / "converted" / "Synthetic-R14x1" / "transformers" / "model.safetensors"
    result = run_here("convert", path, "--to", "timm", cwd=tmp_path)
    assert "converted/Synthetic-R14x1/timm" in result.stdout
    assert "recorded outputs of google-research" in result.stdout


def test_bare_bit_prints_its_help(tmp_path: Path) -> None:
    result = run_here(cwd=tmp_path)
    assert result.stdout.startswith("Usage: bit [OPTIONS] COMMAND [ARGS]...\n\n")
    assert result.stderr == ""


def test_an_unrelated_conversion_json_beside_a_file_is_ignored(tiny_npz: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.npz").write_bytes(tiny_npz.read_bytes())
    (tmp_path / "conversion.json").write_text('{"hello": 1}')
    assert run_here("convert", "tiny.npz", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("tensors", [None, [1], [{"target": 7}], {"a": 1}])
def test_invalid_tensor_rows_in_a_manifest_are_one_error_line(tiny_npz: Path, tmp_path: Path, tensors: object) -> None:
    manifest = convert_tiny(tiny_npz, tmp_path) / "conversion.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "tensors": tensors}))
    assert_refused(run_here("verify", "out", cwd=tmp_path), "conversion.json is damaged", tmp_path)
