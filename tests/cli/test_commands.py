"""The command as a user runs it: exit status, what it prints, and what is left behind."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.command import BIT, assert_refused, bit
from support.conversions import arrays_of
from support.networks import TINY
from support.npy import as_nan

from bit.config import BitConfig
from convert.files.base import file_sha256
from convert.sources.synthetic import write_npz

FRAMEWORKS = {"torch", "jax", "flax", "tensorflow", "keras", "timm", "transformers", "scipy"}


def test_convert_then_verify_then_convert_on(tiny_npz: Path, tmp_path: Path) -> None:
    result = bit("convert", tiny_npz, cwd=tmp_path)
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
    assert "verified" in result.stdout
    assert "held to recorded outputs of definition of bit-convert" in result.stdout
    assert bit("verify", folder, "--quick", cwd=tmp_path).returncode == 0
    assert bit("convert", folder, "--to", "google", cwd=tmp_path).returncode == 0
    assert file_sha256(tmp_path / "converted" / "tiny" / "google" / "tiny.npz") == file_sha256(tiny_npz)


def test_a_recorded_checkpoint_is_verified_without_a_warning(tmp_path: Path) -> None:
    result = bit("convert", "Synthetic-R14x1", cwd=tmp_path)
    assert result.returncode == 0
    assert "warning" not in result.stderr
    assert "held to recorded outputs of google-research/big_transfer" in result.stdout
    assert "transformers itself standardizes weights with epsilon 1e-08 instead of 1e-10" in result.stdout
    assert (tmp_path / "checkpoints" / "Synthetic-R14x1.npz").exists()


def test_a_failed_verification_names_the_first_tap_and_exits_with_1(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    assert bit("convert", "Synthetic-R14x1", cwd=tmp_path).returncode == 0
    path = tmp_path / "converted" / "Synthetic-R14x1" / "transformers" / "model.safetensors"
    state = load_file(path)
    state["bit.encoder.stages.1.layers.0.conv2.weight"] *= np.linspace(1, 2, 3, dtype=np.float32)
    save_file(state, path, metadata={"format": "pt"})
    result = bit("verify", path.parent, "--quick", cwd=tmp_path)
    assert result.returncode == 1
    assert "the first tap that diverges is block2/unit01" in result.stdout
    assert "model.safetensors has changed since it was written" in result.stdout
    assert "does not give back the bytes of resnet/block2/unit01/b/standardized_conv2d/kernel" in result.stdout
    assert "verification failed" in result.stdout


def test_json_is_all_that_is_printed(tiny_npz: Path, tmp_path: Path) -> None:
    answer = json.loads(bit("convert", tiny_npz, "--json", cwd=tmp_path).stdout)
    assert answer["verification"]["passed"] is True
    assert answer["conversion"]["architecture"] == TINY.architecture
    assert json.loads(bit("verify", answer["folder"], "--quick", "--json", cwd=tmp_path).stdout)["passed"] is True


def test_json_lists_every_problem(tmp_path: Path) -> None:
    arrays = {key: array for key, array in arrays_of(TINY).items() if "/a/group_norm/" not in key}
    np.savez(tmp_path / "a.npz", **arrays)
    result = bit("convert", "a.npz", "--json", cwd=tmp_path)
    assert result.returncode == 2
    problems = json.loads(result.stdout)["problems"]
    assert len(problems) == 6
    assert all(problem.startswith("missing resnet/block") for problem in problems)


def test_not_verified_means_no_verdict(tiny_npz: Path, tmp_path: Path) -> None:
    result = bit("convert", tiny_npz, "--no-verify", "--out", "out", cwd=tmp_path)
    assert result.returncode == 0
    assert not (tmp_path / "out" / "verification.json").exists()
    assert "not verified" in result.stderr


def test_an_existing_output_needs_force(tiny_npz: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    result = bit("convert", tiny_npz, "--out", "out", cwd=tmp_path)
    assert_refused(result, "--force", tmp_path)
    assert bit("convert", tiny_npz, "--out", "out", "--force", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("arguments", [[], ["--no-verify"], ["--to", "google"]])
def test_no_framework_is_imported_even_to_verify(tiny_npz: Path, tmp_path: Path, arguments: list[str]) -> None:
    script = (
        "import sys; from convert.cli import main\n"
        "try: main()\n"
        f"finally: print('imported:', *({FRAMEWORKS!r} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, "convert", str(tiny_npz), "--out", "out", *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "imported:"
    assert (tmp_path / "out").is_dir()


def test_help_imports_neither_numpy_nor_rich() -> None:
    script = "import sys, click, convert.cli; print(*({'numpy', 'rich', 'huggingface_hub'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() in ("", "numpy")


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("absent.npz", "there is no file 'absent.npz'"),
        ("BiT-M-R101x33", "did you mean BiT-M-R101x3"),
        ("Synthetic-R51x1", "did you mean Synthetic-R50x1"),
        ("", "there is no file ''"),
        (".", "must hold one file of weights"),
        ("/dev/zero", "is not a regular file"),
    ],
)
def test_a_checkpoint_that_is_none_gets_one_line(tmp_path: Path, checkpoint: str, message: str) -> None:
    assert_refused(bit("convert", checkpoint, cwd=tmp_path), message, tmp_path)


def test_a_name_that_lies_gets_one_line(tmp_path: Path) -> None:
    write_npz(tmp_path / "BiT-S-R50x3.npz", BitConfig.from_architecture("R14x1", num_labels=2))
    assert_refused(bit("convert", "BiT-S-R50x3.npz", cwd=tmp_path), "says R50x3, but its arrays are", tmp_path)


def test_a_name_that_cannot_be_fetched_says_where_to_put_the_file(tmp_path: Path) -> None:
    result = bit("convert", "BiT-M-R101x3", cwd=tmp_path, BIT_MIRROR="http://127.0.0.1:9/bit_models")
    assert_refused(result, "http://127.0.0.1:9/bit_models/BiT-M-R101x3.npz cannot be reached", tmp_path)
    assert "put it at checkpoints/BiT-M-R101x3.npz" in result.stderr


def test_a_published_name_uses_the_file_that_was_put_there(tmp_path: Path) -> None:
    write_npz(tmp_path / "checkpoints" / "BiT-M-R50x1.npz", BitConfig(num_labels=3))
    result = bit("convert", "BiT-M-R50x1", "--no-verify", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "converted" / "BiT-M-R50x1" / "transformers" / "model.safetensors").exists()


def test_a_disk_that_fills_up_gets_one_line(tiny_npz: Path, tmp_path: Path) -> None:
    limit = tiny_npz.stat().st_size // 2
    result = subprocess.run(
        [str(BIT), "convert", str(tiny_npz)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert_refused(result, "File too large", tmp_path)


def test_a_folder_that_cannot_be_written_gets_one_line(tiny_npz: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_refused(bit("convert", tiny_npz, "--out", "file/out", cwd=tmp_path), "file", tmp_path)


@pytest.mark.parametrize("damage", ["not json", "[]", "{}", '{"name": 1}'])
def test_a_damaged_record_gets_one_line(tmp_path: Path, damage: str) -> None:
    (tmp_path / "conversion.json").write_text(damage)
    assert_refused(bit("verify", ".", cwd=tmp_path), "conversion.json is damaged", tmp_path)
    assert_refused(bit("convert", ".", cwd=tmp_path), "conversion.json is damaged", tmp_path)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(tmp_path: Path, sent: signal.Signals) -> None:
    write_npz(tmp_path / "a.npz", BitConfig.from_architecture("R26x1"))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background hands on that it is ignored
    process = subprocess.Popen([str(BIT), "convert", "a.npz"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "converting …\n"
    process.send_signal(sent)
    process.communicate()
    assert process.returncode == 128 + sent
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_killed_at_any_moment_it_leaves_nothing_or_all_and_the_next_run_is_right(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", BitConfig.from_architecture("R14x1", num_labels=10))
    out = tmp_path / "converted" / "a" / "transformers"
    for delay in np.linspace(0.15, 0.6, 10):
        process = subprocess.Popen(
            [str(BIT), "convert", "a.npz", "--no-verify", "--force"], cwd=tmp_path, stderr=subprocess.DEVNULL
        )
        time.sleep(float(delay))
        process.kill()
        process.communicate()
        assert not out.exists() or (out / "conversion.json").exists()
    assert bit("convert", "a.npz", "--force", cwd=tmp_path).returncode == 0
    assert [path.name for path in out.parent.iterdir()] == ["transformers"], "what was killed is cleaned up"


def test_on_a_terminal_there_is_a_bar_and_elsewhere_there_are_lines(tiny_npz: Path, tmp_path: Path) -> None:
    main, side = pty.openpty()
    command = [str(BIT), "convert", str(tiny_npz), "--no-verify"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=side, env={**os.environ, "TERM": "xterm", "COLUMNS": "80"})
    process.wait()
    os.close(side)
    shown = os.read(main, 1 << 16).decode()
    os.close(main)
    assert "━" in shown
    assert "\x1b[" in shown
    plain = bit("convert", tiny_npz, "--no-verify", "--out", "out", cwd=tmp_path).stderr
    assert plain.splitlines()[0] == "converting …"
    assert "\x1b" not in plain


def test_force_replaces_conversions_alone(tiny_npz: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    result = bit("convert", tiny_npz, "--out", "mine", "--force", cwd=tmp_path)
    assert_refused(result, "holds other things than a conversion (thesis.tex)", tmp_path)
    assert bit("convert", tiny_npz, "--out", "out", "--no-verify", cwd=tmp_path).returncode == 0
    assert_refused(bit("convert", "out", "--out", "out", "--force", cwd=tmp_path), "is to be converted", tmp_path)
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    result = bit("convert", tiny_npz, "--out", "out", "--force", cwd=tmp_path)
    assert_refused(result, "holds other things than a conversion (thesis.tex)", tmp_path)
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_a_link_does_not_hide_that_the_output_holds_the_source(tiny_npz: Path, tmp_path: Path) -> None:
    assert bit("convert", tiny_npz, "--out", "out", "--no-verify", cwd=tmp_path).returncode == 0
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "model.safetensors").symlink_to("../out/model.safetensors")
    assert_refused(bit("convert", "link", "--out", "out", "--force", cwd=tmp_path), "is to be converted", tmp_path)


def test_an_existing_output_is_noticed_before_anything_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    result = bit("convert", "Synthetic-R50x1", "--out", "out", cwd=tmp_path)
    assert_refused(result, "--force", tmp_path)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert"], "Missing argument 'CHECKPOINT'"),
        (["convert", "x", "--to", "keras1"], "'keras1' is not one of"),
        (["convert", "x", "--frobnicate"], "No such option"),
        (["explode"], "No such command 'explode'"),
        (["verify", "nowhere"], "there is no folder 'nowhere'"),
        (["verify", "~nobody-at-all/x"], "~nobody-at-all/x"),
        (["convert", "~nobody-at-all/x.npz"], "~nobody-at-all/x.npz"),
    ],
)
def test_wrong_usage_gets_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    assert_refused(bit(*arguments, cwd=tmp_path), message, tmp_path)


def test_a_reader_that_goes_away_changes_nothing(tiny_npz: Path, tmp_path: Path) -> None:
    for stream in ("2>&1 >/dev/null | true", "2>/dev/null | true", ">&-", "2>&-", ">/dev/full"):
        command = f'"{BIT}" convert "{tiny_npz}" --force {stream}; exit ${{PIPESTATUS[0]}}'
        assert subprocess.run(["bash", "-c", command], cwd=tmp_path).returncode == 0


def test_a_terminal_without_unicode_still_gets_its_verdict(tiny_npz: Path, tmp_path: Path) -> None:
    result = bit("convert", tiny_npz, cwd=tmp_path, PYTHONIOENCODING="latin-1")
    assert result.returncode == 0
    assert "verified" in result.stdout


def test_what_was_converted_can_be_verified_by_its_name(tmp_path: Path) -> None:
    assert bit("convert", "Synthetic-R14x1", "--to", "timm", "--no-verify", cwd=tmp_path).returncode == 0
    result = bit("verify", "Synthetic-R14x1", "--to", "timm", "--quick", cwd=tmp_path)
    assert result.returncode == 0
    assert result.stdout.splitlines()[-1] == "verified"


def test_a_missing_weights_file_fails_the_verification(tmp_path: Path) -> None:
    assert bit("convert", "Synthetic-R14x1", "--no-verify", cwd=tmp_path).returncode == 0
    (tmp_path / "converted" / "Synthetic-R14x1" / "transformers" / "model.safetensors").unlink()
    result = bit("verify", "Synthetic-R14x1", "--quick", cwd=tmp_path)
    assert result.returncode == 1
    assert "model.safetensors is missing" in result.stdout


@pytest.mark.parametrize("name", ["..", "", ".", "a/b", "a\0b", "\ud800", 7])
def test_a_name_in_a_record_is_never_a_path(tiny_npz: Path, tmp_path: Path, name: object) -> None:
    assert bit("convert", tiny_npz, "--out", "out", "--no-verify", cwd=tmp_path).returncode == 0
    record = tmp_path / "out" / "conversion.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "name": name}))
    assert_refused(bit("convert", "out", "--to", "timm", cwd=tmp_path), "conversion.json is damaged", tmp_path)


def test_a_verified_output_is_not_replaced_by_one_that_fails(tiny_npz: Path, tmp_path: Path) -> None:
    assert bit("convert", tiny_npz, "--out", "out", cwd=tmp_path).returncode == 0
    as_nan(tmp_path / "nan.npz")
    result = bit("convert", "nan.npz", "--out", "out", "--force", "--allow-nonfinite", cwd=tmp_path)
    assert result.returncode == 1
    assert "out was kept as it was" in result.stderr
    assert json.loads((tmp_path / "out" / "verification.json").read_text())["passed"]
    assert bit("convert", "nan.npz", "--allow-nonfinite", "--out", "new", cwd=tmp_path).returncode == 1
    assert (tmp_path / "new").is_dir()


def test_a_weights_file_in_a_converted_folder_keeps_its_name_and_records(tmp_path: Path) -> None:
    assert bit("convert", "Synthetic-R14x1", "--no-verify", cwd=tmp_path).returncode == 0
    path = tmp_path / "converted" / "Synthetic-R14x1" / "transformers" / "model.safetensors"
    result = bit("convert", path, "--to", "timm", cwd=tmp_path)
    assert "converted/Synthetic-R14x1/timm" in result.stdout
    assert "recorded outputs of google-research" in result.stdout


def test_bare_bit_prints_its_help(tmp_path: Path) -> None:
    result = bit(cwd=tmp_path)
    assert result.stdout.startswith("Usage: bit [OPTIONS] COMMAND [ARGS]...\n\n")
    assert result.stderr == ""


def test_something_else_called_conversion_json_beside_a_file_is_no_matter(tiny_npz: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.npz").write_bytes(tiny_npz.read_bytes())
    (tmp_path / "conversion.json").write_text('{"hello": 1}')
    assert bit("convert", "tiny.npz", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("tensors", [None, [1], [{"target": 7}], {"a": 1}])
def test_rows_in_a_record_that_are_none_get_one_line(tiny_npz: Path, tmp_path: Path, tensors: object) -> None:
    assert bit("convert", tiny_npz, "--out", "out", "--no-verify", cwd=tmp_path).returncode == 0
    record = tmp_path / "out" / "conversion.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "tensors": tensors}))
    assert_refused(bit("verify", "out", cwd=tmp_path), "conversion.json is damaged", tmp_path)
