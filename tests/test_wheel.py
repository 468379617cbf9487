"""The wheel works by itself: outside the checkout, with its data, its types and its command."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MYPY = """\
[mypy]
strict = true

[mypy-flax.*,jax.*,keras.*,onnx.*,tensorflow.*,torch.*]
follow_imports = skip
"""
"""The user's configuration: the frameworks, most of what there is to check, are not followed, as if not installed."""
USERS_SCRIPT = '''\
"""A script as a user writes it, checked by mypy --strict."""

from pathlib import Path

import bit
import convert


def smallest(folder: Path) -> float:
    result: convert.ConversionResult = convert.convert("Synthetic-R14x1", to="timm", out=folder, dtype="bfloat16")
    assert result.verification is not None
    checks = result.verification.checks
    names: list[str] = [published.name for published in convert.zoo("*R50x1*")]
    print(bit.__version__, result.manifest.architecture, result.folder.name, len(names))
    try:
        convert.verify(folder)
    except convert.VerificationError as error:
        print(error.problems)
    return min(check.error for check in checks)
'''


def run(*command: str | Path, cwd: Path) -> str:
    result = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel and the dependencies of this one, but without the checkout."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    here = next(path for path in sys.path if path.endswith("site-packages"))
    (packages / "dependencies.pth").write_text(f"{here}\n")  # a .pth file there, of the checkout, is not followed
    return python


def test_it_holds_two_packages_with_their_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"bit", "convert"}
    assert {
        "bit/py.typed",
        "convert/py.typed",
        "convert/published/label_sets/imagenet21k.tsv",
        "convert/publishing/card.md.jinja",
        "convert/reference_outputs/Synthetic-R50x1/pytorch-f64.safetensors",
        "convert/reference_outputs/training/R14x1-schedule.safetensors",
        "convert/reporting/evaluation.html.jinja",
        "convert/reporting/report.html.jinja",
        "convert/reporting/style.css",
    } <= set(names)


def test_the_command_converts_and_verifies_and_leaves_nothing_else(python: Path, tmp_path: Path) -> None:
    output = run(python.with_name("bit"), "convert", "Synthetic-R14x1", "--json", cwd=tmp_path)
    result = json.loads(output)
    assert result["verification"]["passed"] is True
    assert "recorded outputs of google-research/big_transfer" in json.dumps(result["verification"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "converted"]
    assert (tmp_path / "converted/Synthetic-R14x1/transformers/verification.html").stat().st_size > 10_000


def test_python_m_bit_is_the_command(python: Path, tmp_path: Path) -> None:
    assert run(python, "-m", "bit", "--version", cwd=tmp_path) == run(
        python.with_name("bit"), "--version", cwd=tmp_path
    )


def test_importing_convert_imports_neither_numpy_nor_a_framework(python: Path, tmp_path: Path) -> None:
    code = "import convert, sys; print(convert.__file__); print(*sys.modules)"
    file, modules = run(python, "-c", code, cwd=tmp_path).splitlines()
    assert not Path(file).is_relative_to(ROOT)
    assert not {"numpy", "torch", "jax", "tensorflow", "keras", "timm", "transformers"} & set(modules.split())


def test_a_users_script_passes_mypy_strict(python: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(USERS_SCRIPT)
    (tmp_path / "mypy.ini").write_text(MYPY)
    run(sys.executable, "-m", "mypy", "--python-executable", python, "script.py", cwd=tmp_path)
