"""Every page of documentation does what it says: code blocks run, command lines parse, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from support.conversions import convert

from convert.cli.main import main
from convert.layouts import LAYOUTS

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "bit/README.md",
    "SECURITY.md",
    "convert/README.md",
    "convert/SECURITY.md",
    "convert/publishing/README.md",
    "convert/signing/README.md",
    "convert/verification/README.md",
    "reference_outputs/README.md",
    "tests/README.md",
)
OTHER_COMMANDS = {"cd", "git", "hf", "model_signing", "openssl", "pip", "pre-commit", "python", "torchrun"}
"""Commands in console blocks that are not ours."""

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)


def command_lines() -> list[tuple[str, str]]:
    """Every line after a prompt, with the page that it is on; a backslash continues a line."""
    return [
        (page, line.removeprefix("$ "))
        for page in PAGES
        for block in blocks(page, "console")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("$ ")
    ]


@pytest.fixture(scope="module")
def workplace(synthetic: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the conversions that a page loads; R14x1, which runs faster, stands for R50x1 where it can."""
    folder = tmp_path_factory.mktemp("documentation")
    for layout in ("transformers", "timm", "flax", "keras"):
        architecture = "R50x1" if layout == "timm" else "R14x1"  # timm knows none smaller
        convert(synthetic(architecture), layout, folder / "converted" / "Synthetic-R50x1" / layout)
    (folder / "checkpoints").mkdir()
    for architecture in ("R14x1", "R50x1"):
        (folder / "checkpoints" / f"Synthetic-{architecture}.npz").symlink_to(synthetic(architecture))
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_python_blocks_of_a_page_run_one_after_the_other(
    page: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("BIT_CACHE", str(workplace / "cache"))
    names: dict[str, object] = {}
    for number, block in enumerate(blocks(page, "python"), 1):
        exec(compile(block, f"{page}, block {number}", "exec"), names)


def test_pages_show_python() -> None:
    assert {page for page in PAGES if blocks(page, "python")} >= {"README.md", "bit/README.md", "convert/README.md"}


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_a_command_line_is_one_that_the_command_line_accepts(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets), page
        return
    words[0] = words[0].removeprefix(".venv/bin/")
    if words[0] != "bit":
        assert words[0] in OTHER_COMMANDS, page
        return
    command = main
    assert isinstance(command, click.Group)
    with click.Context(command, info_name="bit") as context:
        if words[1].startswith("-"):
            assert words[1] in ("--help", "--version", "-h")
            return
        subcommand = command.get_command(context, words[1])
        assert subcommand is not None, f"{page}: {line}"
        if "--help" not in words:
            subcommand.make_context(words[1], words[2:], parent=context)


def test_there_are_command_lines_of_every_subcommand() -> None:
    lines = [line.split() for _, line in command_lines()]
    assert isinstance(main, click.Group)
    assert {line[1] for line in lines if line[0] == "bit"} >= set(main.commands)


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_links_exists(page: str) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text("utf-8")):
        assert (ROOT / page).parent.joinpath(link).exists(), link


def test_every_make_target_is_listed_with_what_it_does() -> None:
    makefile, page = ((ROOT / name).read_text("utf-8") for name in ("Makefile", "CONTRIBUTING.md"))
    for target, purpose in re.findall(r"^([a-z-]+):.*## (.*)", makefile, re.MULTILINE):
        assert target == "help" or f"| `{target}` | {purpose} |" in page


def test_the_table_of_layouts_has_every_layout_with_its_files() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for layout in LAYOUTS.values():
        weights = layout.export.weights_name.format(name="NAME")
        assert re.search(rf"^\| `{layout.name}` \|.*`{re.escape(weights)}`", readme, re.MULTILINE), layout.name


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= 800
