"""Small hostile files beside weights: one `error:` line and exit status 2, in little memory."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.command import assert_refused, run_here
from support.conversions import convert, with_config

CONFIGS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "text instead of sizes": lambda values: dumped(
        {**values, "hidden_sizes": ["A", "A"], "width_factor": 1_500_000_000}
    ),
    "many stages": lambda values: dumped({**values, "hidden_sizes": [256] * 1_000_000, "depths": [1] * 1_000_000}),
    "a large number": lambda values: dumped({**values, "num_channels": 10**400}),
    "a number of too many digits": lambda values: dumped(values).replace(b": 32", b": " + b"9" * 5000),
    "deep labels": lambda values: b'{"id2label": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "labels as a list": lambda values: dumped({**values, "id2label": ["a", "b", "c", "d", "e"]}),
    "a label of a megabyte": lambda values: dumped({**values, "id2label": {"0": "x" * 1_000_000}}),
    "escapes in a value": lambda values: dumped({**values, "hidden_act": "\x1b[2J\n" * 100_000}),
    "an epsilon of NaN": lambda values: dumped({**values, "ws_eps": float("nan")}),
    "an epsilon of true": lambda values: dumped({**values, "ws_eps": True}),
    "a name twice": lambda values: b'{"num_channels": 3, "num_channels": 3}',
    "half of a surrogate pair": lambda values: dumped({**values, "id2label": {"0": "\ud800"}}),
    "a large file": lambda values: b'{"a": "' + b"x" * (9 << 20) + b'"}',
    "no object": lambda values: b"[]",
    "no UTF-8": lambda values: b'{"a": "\xff"}',
}
PREPROCESSING: dict[str, Any] = {
    "a large size": {"size": 30_000},
    "a large crop": {"crop_size": {"height": 30_000, "width": 30_000}, "do_center_crop": True},
    "a fraction": {"size": 224.5},
    "a negative size": {"size": -1},
    "NaN": {"size": float("nan")},
    "a large mean": {"image_mean": [10**400] * 3},
    "text": {"do_resize": "\x1b[2J"},
}


def dumped(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode()


def grown() -> int:
    """Return the most memory that this process has had, in mebibytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


@pytest.fixture
def folder(tiny_npz: Path, tmp_path: Path) -> Path:
    """A folder of transformers' layout as another program writes it."""
    return with_config(convert(tiny_npz, "transformers", tmp_path / "tiny"))


@pytest.mark.parametrize("config", CONFIGS)
def test_a_hostile_config_is_one_line_in_every_command(folder: Path, tmp_path: Path, config: str) -> None:
    path, image, before = folder / "config.json", folder.parent / "a.png", grown()
    image.touch()
    path.write_bytes(CONFIGS[config](json.loads(path.read_bytes())))
    for arguments in (
        ["inspect", folder],
        ["convert", folder, "--to", "google"],
        ["classify", image, "--model", folder],
    ):
        result = run_here(*arguments, cwd=tmp_path)
        assert_refused(result, "", tmp_path)
        assert result.stderr.rstrip("\n").isprintable()
        assert len(result.stderr) < 1500
    assert grown() - before < 1000  # with the import of PyTorch


@pytest.mark.parametrize("settings", PREPROCESSING)
def test_hostile_preprocessing_is_one_line(folder: Path, tmp_path: Path, settings: str) -> None:
    path, before = folder / "preprocessor_config.json", grown()
    path.write_bytes(dumped({**json.loads(path.read_bytes()), **PREPROCESSING[settings]}))
    (tmp_path / "a.png").touch()
    result = run_here("classify", "a.png", "--model", folder, cwd=tmp_path)
    assert_refused(result, "preprocessor_config.json", tmp_path)
    assert result.stderr.rstrip("\n").isprintable()
    assert grown() - before < 1000  # with the import of PyTorch


def test_pipes_are_not_waited_for(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    refused = run_here("classify", "a.png", "--model", folder, cwd=tmp_path)
    assert_refused(refused, "a.png is not a regular file", tmp_path)
    for name in ("preprocessor_config.json", "config.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        refused = run_here("classify", "a.png", "--model", folder, cwd=tmp_path)
        assert_refused(refused, f"{name} is not a regular file", tmp_path)
