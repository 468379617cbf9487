"""What the README says to type, typed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.conversions import convert

from bit.config import BitConfig
from convert.layouts import LAYOUTS

README = (Path(__file__).parent.parent.parent / "README.md").read_text("utf-8")


def layout_table() -> str:
    """The layouts as a table, from their own tables; `python tests/test_readme.py` prints it."""
    config = BitConfig()
    lines = ["| layout | whose names | files | kernels | head | norms | epsilon |", "|---|---|---|---|---|---|---|"]
    for layout in LAYOUTS.values():
        names = [layout.weights_name.format(name="NAME"), *layout.companions(config, "float32", "NAME", "google")]
        axes = (layout.rows[kind].axes for kind in ("unit/conv1/kernel", "head/kernel", "norm/scale"))
        shapes = (f"`[{', '.join(letters)}]`" for letters in axes)
        epsilon = "standardized" if layout.folded else f"{layout.ws_eps:g}"
        files = ", ".join(f"`{name}`" for name in names)
        lines.append(f"| `{layout.name}` | {layout.library} | {files} | {' | '.join(shapes)} | {epsilon} |")
    return "\n".join(lines)


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
    makefile = (Path(__file__).parent.parent.parent / "Makefile").read_text("utf-8")
    targets = re.findall(r"^([a-z-]+):.*## (.*)", makefile, re.MULTILINE)
    rows = [f"| `{target}` | {what} |" for target, what in targets if target != "help"]
    assert "\n".join(rows) in README


def test_every_file_that_is_linked_exists() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (Path(__file__).parent.parent.parent / link).exists(), link


def test_the_table_of_layouts_is_that_of_the_layouts() -> None:
    assert layout_table() in README, f"the README should have\n{layout_table()}"


if __name__ == "__main__":
    print(layout_table())
