"""Folders with hostile files load or are refused with one line, in bounded memory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.conversions import convert
from support.odd import assert_one_line

from bit import BitForImageClassification


@pytest.fixture
def folder(tiny_npz: Path, tmp_path: Path) -> Path:
    return convert(tiny_npz, "transformers", tmp_path / "tiny")


def change_config(folder: Path, **values: Any) -> None:
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stated, **values}))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        BitForImageClassification.from_pretrained(folder)
    assert_one_line(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_sizes": ["A", "A"], "width_factor": 1_500_000_000}, "hidden_sizes is"),
        ({"depths": [500, 500]}, "config.json describes 1000 units"),
        ({"ws_eps": 1}, "ws_eps is 1"),
        ({"id2label": {"0": [[[[]]]]}}, "id2label"),
        ({"num_labels": 10**400, "id2label": None}, "num_labels is 1000"),
    ],
)
def test_a_hostile_config_is_refused(folder: Path, values: dict[str, Any], message: str) -> None:
    change_config(folder, **values)
    refused(folder, message)


def test_weights_that_are_not_floating_point_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    for dtype in (torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn):
        save_file({**state, "bit.norm.bias": torch.zeros(256, dtype=dtype)}, path)
        refused(folder, "bit.norm.bias' is .*; expected bfloat16, float16, float32, float64")


def test_weights_of_several_dtypes_run_in_one_that_holds_all(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file({**state, "bit.norm.bias": state["bit.norm.bias"].double()}, path)
    model = BitForImageClassification.from_pretrained(folder)
    assert model(torch.zeros(1, 3, 64, 64).double()).logits.dtype == torch.float64
    save_file({**state, "bit.norm.bias": state["bit.norm.bias"].half()}, path)
    assert {value.dtype for value in BitForImageClassification.from_pretrained(folder).parameters()} == {torch.float32}


def test_names_in_a_message_are_escaped_and_counted(folder: Path) -> None:
    path = folder / "model.safetensors"
    extra = {f"\x1b[31m{number}\n{'x' * 1000}": torch.zeros(1) for number in range(100)}
    save_file({**load_file(path), **extra}, path)
    with pytest.raises(ValueError, match="and 88 more") as caught:
        BitForImageClassification.from_pretrained(folder)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 3000


def test_pipes_are_not_opened(folder: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        refused(folder, f"{name} is not a regular file")


def test_shards_that_hold_a_tensor_twice_or_are_elsewhere_are_refused(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    (folder / "b.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "b.safetensors"}}))
    refused(folder, "which another shard holds too")
    for name in ("../tiny/b.safetensors", "/etc/passwd", "a\0", "", ".", "\x1b[31m"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises((ValueError, FileNotFoundError)):
            BitForImageClassification.from_pretrained(folder)


def test_timms_stages_are_counted_before_they_are_listed(tiny_npz: Path, tmp_path: Path) -> None:
    """A stage number of nine digits listed as many names."""
    folder = convert(tiny_npz, "timm", tmp_path / "timm")
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file({**state, "stages.999999999.blocks.0.norm1.bias": torch.zeros(1)}, path)
    refused(folder, "the names count 1000000000 stages")
    save_file({**state, "bit.norm.bias": state["norm.bias"].clone()}, path)
    refused(folder, "the file holds a tensor twice")
