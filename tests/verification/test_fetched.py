"""Repositories on the Hub: own ones are converted again, those of others compared with a source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support import hub_here
from support.command import assert_refused, run_here
from support.conversions import convert
from support.hub import HubServer
from support.hub_repositories import Blob, Repository
from support.networks import TINY

from bit.config import BitConfig
from convert.sources.synthetic import write_npz

NAME = "me/tiny"


@pytest.fixture
def hub(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    hub_here.use(server, tmp_path / "cache", monkeypatch)
    return server


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_repository_of_another_program_is_compared_with_a_source(
    hub: HubServer, tiny_npz: Path, tmp_path: Path
) -> None:
    folder = convert(tiny_npz, "timm", tmp_path / "timm")
    (folder / "conversion.json").unlink()
    hub.repositories[NAME] = Repository.of(folder)
    arguments = ("verify", f"hf:{NAME}", "--quick")
    result = run_here(*arguments, "--source", tiny_npz, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "bytes: all 34 tensors convert back" in result.stdout
    before = files_in(tmp_path / "cache")
    assert_refused(run_here(*arguments, cwd=tmp_path), "name the checkpoint with --source", tmp_path)
    write_npz(tmp_path / "other.npz", TINY, seed=1)
    result = run_here(*arguments, "--source", "other.npz", "--report", "page.json", cwd=tmp_path)
    assert result.returncode == 1
    assert json.loads((tmp_path / "page.json").read_text())["verdict"] == "differs"
    assert files_in(tmp_path / "cache") == before


def test_an_own_repository_is_converted_again_from_the_source_that_it_names(hub: HubServer, tmp_path: Path) -> None:
    source = tmp_path / "elsewhere" / "Synthetic-R14x1.npz"
    source.parent.mkdir()
    write_npz(source, BitConfig.from_architecture("R14x1"))
    folder = convert(source, "timm", tmp_path / "timm")
    repository = hub.repositories[NAME] = Repository.of(folder)
    result = run_here("verify", f"hf:{NAME}", "--quick", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "✓ bytes: all 45 tensors convert back" in result.stdout
    assert "replay: converting again from the source writes the same bytes of all 3 files" in result.stdout
    assert (tmp_path / "checkpoints" / "Synthetic-R14x1.npz").exists(), "generated, as the name says"
    config = json.loads((folder / "config.json").read_text())
    changed = Blob.of(json.dumps({**config, "num_features": 1}).encode())
    repository.commit("main", {**repository.files, "config.json": changed})
    result = run_here("verify", f"hf:{NAME}", "--quick", cwd=tmp_path)
    assert result.returncode == 1
    assert "✗ config.json has changed since it was written" in result.stdout
    assert "✗ replay: config.json is not what converting again writes" in result.stdout


def test_without_the_source_an_own_repository_says_what_was_not_compared(
    hub: HubServer, tiny_npz: Path, tmp_path: Path
) -> None:
    folder = convert(tiny_npz, "timm", tmp_path / "timm")
    repository = hub.repositories[NAME] = Repository.of(folder)
    arguments = ("verify", f"hf:{NAME}", "--quick", "--recordings", "none")
    result = run_here(*arguments, cwd=tmp_path)
    assert result.returncode == 3
    assert "! bytes were not compared: conversion.json names no address of the source" in result.stdout
    assert run_here(*arguments, "--source", tiny_npz, cwd=tmp_path).returncode == 0
    changed = {**repository.files, "config.json": Blob.of(b"{}"), "notes/a.txt": Blob.of(b"a")}
    repository.commit("main", changed)
    result = run_here(*arguments, cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert "✗ config.json has changed" in result.stdout
    shutil.copy(tiny_npz, tmp_path / "other.npz")
    write_npz(tmp_path / "other.npz", TINY, seed=1)
    assert_refused(run_here(*arguments, "--source", "other.npz", cwd=tmp_path), "is not what", tmp_path)


def test_another_version_is_compared_but_not_converted_again(hub: HubServer, tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "timm", tmp_path / "timm")
    manifest = json.loads((folder / "conversion.json").read_text())
    (folder / "conversion.json").write_text(json.dumps({**manifest, "converter": "bit-convert 0.0.1"}))
    hub.repositories[NAME] = Repository.of(folder)
    result = run_here("verify", f"hf:{NAME}", "--quick", "--source", tiny_npz, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "not converted again" in result.stderr
    assert "replay" not in result.stdout


def test_a_missing_repository_is_one_line(hub: HubServer, tiny_npz: Path, tmp_path: Path) -> None:
    result = run_here("verify", "hf:me/nothing", "--source", tiny_npz, cwd=tmp_path)
    assert_refused(result, "hf:me/nothing could not be fetched", tmp_path)
