"""Repositories on the Hub as sources, over HTTP with the real client."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import assert_refused, bit
from support.conversions import bits_of, convert
from support.hub import hub

from convert.sources.resolve import hub_name


@pytest.mark.parametrize("layout", ["transformers", "timm", "google-tf2"])
def test_a_repository_converts_under_its_own_name(tiny_npz: Path, tmp_path: Path, layout: str) -> None:
    folder = convert(tiny_npz, layout, tmp_path / "out")
    (folder / "conversion.json").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"the same again, as a pickle")
    with hub({"me/tiny": folder}) as server:
        arguments = ("convert", "hf:me/tiny", "--to", "google")
        result = bit(*arguments, cwd=tmp_path, HF_HOME=str(tmp_path / "cache"), **server.environment)
    assert result.returncode == 0, result.stderr
    assert bits_of(tmp_path / "converted" / "tiny" / "google") == bits_of(tiny_npz)


def test_what_is_not_on_the_hub_gets_one_line(tmp_path: Path) -> None:
    with hub({}) as server:
        result = bit("inspect", "hf:me/nothing", cwd=tmp_path, HF_HOME=str(tmp_path / "cache"), **server.environment)
    assert_refused(result, "hf:me/nothing could not be fetched: ", tmp_path)


@pytest.mark.long  # huggingface_hub tries for half a minute
def test_a_hub_that_is_away_gets_one_line(tmp_path: Path) -> None:
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "cache")}
    result = bit("inspect", "hf:me/tiny@main", cwd=tmp_path, **environment)
    assert_refused(result, "hf:me/tiny could not be fetched: ", tmp_path)


def test_a_name_on_the_hub_ends_with_the_repositorys() -> None:
    assert hub_name("hf:timm/resnetv2_50x1_bit.goog_in21k@refs/pr/1") == "resnetv2_50x1_bit.goog_in21k"
    assert hub_name("BiT-M-R50x1") is None


@pytest.mark.parametrize("layout", ["transformers", "timm"])
def test_a_model_loads_from_a_repository(tiny_npz: Path, tmp_path: Path, layout: str) -> None:
    folder = convert(tiny_npz, layout, tmp_path / "out")
    (folder / "conversion.json").unlink()
    program = "from bit import BitForImageClassification as M; print(M.from_pretrained('me/tiny').config.depths)"
    with hub({"me/tiny": folder}) as server:
        environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), **server.environment}
        found = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
    assert found.stdout == "(2, 1)\n", found.stderr
