"""What the README says to type, typed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from test_conversion import convert

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")


def test_the_python_blocks_run_as_printed(
    synthetic: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for layout in ("transformers", "timm"):
        convert(synthetic("R50x1"), layout, tmp_path / "converted" / "Synthetic-R50x1" / layout)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_every_make_target_is_listed() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text("utf-8")
    targets = re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)
    assert f"`{' '.join(target for target in targets if target != 'help')}`" in README


def test_every_file_that_is_linked_exists() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (Path(__file__).parent.parent / link).exists(), link
