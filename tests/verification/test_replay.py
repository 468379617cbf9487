"""A conversion gives the same bytes wherever and whenever it is repeated, and a replay shows it."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import run_here
from support.conversions import VERIFIED_LAYOUTS

import convert
from convert.checkpoints.manifest import REPORT_NAMES, Manifest
from convert.files.base import file_sha256
from convert.layouts import LAYOUTS, READABLE
from convert.network.oracle import standardize
from convert.reporting import html
from convert.reporting.text import summary

RENDER = html.render
"""The page; it is left empty in other tests than those of the reports."""
EVERY_CASE = """
import os, sys
from pathlib import Path
import convert
os.umask(int(sys.argv[3], 8))
for layout in sys.argv[4:]:
    for options in ({}, {"dtype": "bfloat16"}, {"head": "new:7"}, {"ws_eps": "compensate"}):
        if layout not in ("onnx", "keras-saved") or "dtype" not in options:
            name = "-".join((layout, *options))
            convert.convert(sys.argv[1], layout, Path(sys.argv[2], name), verify=False, **options)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def converted(source: Path, out: Path, layout: str = "transformers", **options: Any) -> Path:
    return convert.convert(source, layout, out, verify=False, **options).folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in REPORT_NAMES}


def edit_manifest(folder: Path, **changes: object) -> None:
    values = json.loads((folder / "conversion.json").read_text())
    (folder / "conversion.json").write_text(json.dumps({**values, **changes}, indent=2) + "\n")


def run_every_case(source: Path, out: Path, umask: str, wrapper: list[str], **environment: str) -> dict[str, str]:
    """Convert to every layout in a process of its own; return the SHA-256 of every file."""
    command = [*wrapper, sys.executable, "-c", EVERY_CASE, str(source), str(out), umask, *LAYOUTS]
    subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True)
    return {str(path.relative_to(out)): file_sha256(path) for path in sorted(out.rglob("*")) if path.is_file()}


CHANGED = {
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "TZ": "Asia/Kathmandu",
    "PYTHONHASHSEED": "1",
    "OMP_NUM_THREADS": "2",
}


def test_locale_time_zone_umask_and_cores_change_no_byte(tiny_npz: Path, tmp_path: Path) -> None:
    usual = run_every_case(
        tiny_npz, tmp_path / "usual", "022", [], LC_ALL="C.UTF-8", TZ="UTC", PYTHONHASHSEED="0", OMP_NUM_THREADS="1"
    )
    core = min(os.sched_getaffinity(0))
    one_core = ["taskset", "-c", str(core)] if shutil.which("taskset") else []
    changed = run_every_case(tiny_npz, tmp_path / "changed", "077", one_core, **CHANGED)
    assert changed == usual
    assert {name.partition("/")[0] for name in usual} >= {*LAYOUTS}
    for folder, file_mode, folder_mode in (("usual", 0o644, 0o755), ("changed", 0o600, 0o700)):  # as the umask is
        for path in (tmp_path / folder).rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) == (file_mode if path.is_file() else folder_mode)


@pytest.mark.long  # it downloads 20 MB
def test_another_version_of_numpy_changes_no_byte(tiny_npz: Path, tmp_path: Path) -> None:
    other = "2.0.2" if not np.__version__.startswith("2.0.") else "2.2.6"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
    installed = subprocess.run(
        [*command, "--target", str(tmp_path / "numpy"), f"numpy=={other}"], capture_output=True, text=True
    )
    if installed.returncode:
        pytest.skip(f"NumPy {other} cannot be installed: {installed.stderr.strip().splitlines()[-1]}")
    path = os.pathsep.join(filter(None, (str(tmp_path / "numpy"), os.environ.get("PYTHONPATH"))))
    version = [sys.executable, "-c", "import numpy; print(numpy.__version__)"]
    found = subprocess.run(version, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert found.stdout.strip() == other
    ours = run_every_case(tiny_npz, tmp_path / "ours", "022", [])
    assert run_every_case(tiny_npz, tmp_path / "other", "022", [], PYTHONPATH=path) == ours


def test_standardized_kernels_have_the_same_bits_in_any_order_in_memory() -> None:
    """Sums of NumPy follow the memory; the standardized kernels of an ONNX file must not."""
    kernel = np.random.default_rng(0).standard_normal((3, 3, 131, 32))
    expected = standardize(kernel, 1e-10)
    for axes in ((3, 2, 1, 0), (2, 0, 1, 3)):
        laid_out = np.ascontiguousarray(kernel.transpose(axes)).transpose(np.argsort(axes))
        assert not laid_out.flags.c_contiguous
        np.testing.assert_array_equal(standardize(laid_out, 1e-10), expected)
    np.testing.assert_allclose(expected.mean(axis=(0, 1, 2)), 0, atol=1e-15)
    np.testing.assert_allclose(expected.var(axis=(0, 1, 2)), 1, rtol=1e-9)


def test_only_the_path_of_the_source_differs_in_another_place(tiny_npz: Path, tmp_path: Path) -> None:
    here, there = converted(tiny_npz, tmp_path / "here"), converted(tiny_npz, tmp_path / "deep" / "down" / "there")
    first, second = contents(here), contents(there)
    manifests = [Manifest.read(folder) for folder in (here, there)]
    assert first.pop("conversion.json") != second.pop("conversion.json")
    assert first == second
    assert manifests[0] is not None
    assert manifests[1] is not None
    assert manifests[0].reproducible
    assert manifests[1].in_place_of(manifests[0]).text() == manifests[0].text()


@pytest.mark.parametrize("layout", VERIFIED_LAYOUTS)
def test_a_replay_passes_and_keeps_nothing(tiny_npz: Path, tmp_path: Path, temporary: Path, layout: str) -> None:
    folder = converted(tiny_npz, tmp_path / "out", layout, **({"head": "new:7"} if layout in READABLE else {}))
    verification = convert.verify(folder, full=False, replay=True)
    assert verification.passed, verification.problems
    assert verification.replay is not None
    compared = {*contents(folder)} - {"README.md"}  # which a model card may have replaced
    assert {*verification.replay.identical} == compared
    assert not list(temporary.iterdir())
    stored = json.loads((folder / "verification.json").read_text())
    assert stored["replay"] == {"identical": sorted(compared), "different": []}
    count = len(verification.replay.identical)
    line = f"replay: converting again from the source writes the same bytes of all {count} files"
    assert any(line in text for text in summary(verification))
    manifest = Manifest.read(folder)
    assert manifest is not None
    assert f"wrote the same bytes of {count} of {count} files" in RENDER(verification, manifest)


def test_split_weights_are_replayed_with_the_same_sizes(tiny_npz: Path, tmp_path: Path, temporary: Path) -> None:
    folder = converted(tiny_npz, tmp_path / "out", max_shard_size="100KB", dtype="bfloat16")
    verification = convert.verify(folder, full=False, replay=True)
    assert verification.passed, verification.problems
    assert len(list(folder.glob("*.safetensors"))) > 1


def test_a_difference_is_a_failure_that_names_the_file(tiny_npz: Path, tmp_path: Path, temporary: Path) -> None:
    """The numbers are right, and the manifest was edited to fit: nothing but a replay sees it."""
    folder = converted(tiny_npz, tmp_path / "out")
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text())))
    files = json.loads((folder / "conversion.json").read_text())["files"]
    files["config.json"] = {"bytes": config.stat().st_size, "sha256": file_sha256(config)}
    edit_manifest(folder, files=files)
    assert convert.verify(folder, full=False).passed
    verification = convert.verify(folder, full=False, replay=True)
    assert not verification.passed
    assert verification.replay is not None
    assert verification.replay.different == ("config.json", "conversion.json")
    assert verification.problems[0] == "replay: config.json is not what converting again writes"
    assert not list(temporary.iterdir())


def test_a_replay_that_shows_nothing_is_refused(tiny_npz: Path, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(tiny_npz.read_bytes())
    folder = converted(tmp_path / "a.npz", tmp_path / "out")
    (tmp_path / "a.npz").rename(tmp_path / "b.npz")
    with pytest.raises(convert.CheckpointError, match=r"the source \.\./a\.npz .* is missing; name it with --source"):
        convert.verify(folder, full=False, replay=True)
    assert convert.verify(folder, full=False, replay=True, source=tmp_path / "b.npz").passed
    edit_manifest(folder, reproducible=False)
    with pytest.raises(convert.CheckpointError, match=r"conversion\.json does not call the conversion reproducible"):
        convert.verify(folder, full=False, replay=True, source=tmp_path / "b.npz")
    edit_manifest(folder, reproducible=True, converter="bit-convert 0.0.9")
    with pytest.raises(convert.CheckpointError, match=r"was written by bit-convert 0\.0\.9, and only that version"):
        convert.verify(folder, full=False, replay=True, source=tmp_path / "b.npz")


def test_what_a_killed_replay_left_is_removed_by_the_next(tiny_npz: Path, tmp_path: Path, temporary: Path) -> None:
    (temporary / ".bit-replay.partial-dead" / "bit-replay").mkdir(parents=True)
    (temporary / ".bit-replay.partial-dead" / "bit-replay" / "model.safetensors").write_text("half")
    assert convert.verify(converted(tiny_npz, tmp_path / "out"), full=False, replay=True).passed
    assert not list(temporary.iterdir())


def test_the_command_exits_with_1_for_a_difference_and_names_the_file(tiny_npz: Path, tmp_path: Path) -> None:
    folder = converted(tiny_npz, tmp_path / "out")
    passed = run_here("verify", folder, "--quick", "--replay", cwd=tmp_path)
    assert (passed.returncode, passed.stderr.count("error:")) == (0, 0)
    assert "✓ replay: converting again from the source writes the same bytes of all 4 files" in passed.stdout
    edit_manifest(folder, max_shard_size="5GB")
    failed = run_here("verify", folder, "--quick", "--replay", cwd=tmp_path)
    assert failed.returncode == 1
    assert "✗ replay: conversion.json is not what converting again writes" in failed.stdout
