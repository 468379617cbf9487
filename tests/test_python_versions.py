"""The pinned versions can be installed on every Python that the project names."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CORE, DEVELOPMENT = ("3.11", "3.12", "3.13", "3.14"), ("3.11", "3.12", "3.13")
"""TensorFlow has no release for Python 3.14."""


def constraints(version: str) -> list[str]:
    """The pins for one Python. pip itself judges markers by the Python that it runs on."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    chosen = [pin for pin in pins if pin.marker is None or pin.marker.evaluate({"python_version": version})]
    return [f"{pin.name}{pin.specifier}" for pin in chosen]


def requirements(extra: str | None) -> list[str]:
    """The core's requirements, and those of an extra with the extras that it names."""
    wanted = [Requirement(line) for line in PROJECT["dependencies"]]
    pending = [] if extra is None else [extra]
    while pending:
        for requirement in map(Requirement, PROJECT["optional-dependencies"][pending.pop()]):
            if requirement.name == PROJECT["name"]:
                pending += sorted(requirement.extras)
            else:
                wanted.append(requirement)
    return sorted({str(requirement) for requirement in wanted})


def test_every_python_from_3_11_on_has_one_pin_a_package() -> None:
    for version in CORE:
        names = [Requirement(line).name for line in constraints(version)]
        assert len(names) == len(set(names))
        assert "h5py" in names


def test_the_classifiers_name_the_same_pythons() -> None:
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    assert tuple(named) == CORE
    assert PROJECT["requires-python"] == ">=3.11"


@pytest.mark.long  # asks the package registry
@pytest.mark.parametrize(
    ("version", "extra"), [*((version, None) for version in CORE), *((version, "dev") for version in DEVELOPMENT)]
)
def test_the_pins_have_wheels(version: str, extra: str | None, tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("\n".join(constraints(version)))
    (tmp_path / "requirements.txt").write_text("\n".join(requirements(extra)))
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--only-binary=:all:"]
    command += ["--python-version", version, "--target", str(tmp_path / "target")]
    command += ["--constraint", "constraints.txt", "--requirement", "requirements.txt"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
