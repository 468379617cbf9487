"""Fixtures that many tests share: small seeded checkpoints and a Hub on the loopback."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import support.one_thread  # noqa: F401
from hypothesis import settings
from support.networks import TINY

from bit.config import BitConfig
from convert.network.inputs import batches
from convert.references.worker import ENVIRONMENT, compiled_folder
from convert.sources.synthetic import write_npz

if TYPE_CHECKING:
    from support.hub import HubServer

settings.register_profile("seeded", derandomize=True, deadline=None, max_examples=30)
settings.load_profile("seeded")


def pytest_configure(config: pytest.Config) -> None:
    """Compile a network once for all processes and runs of the tests, before JAX reads the environment."""
    cache: pytest.Cache | None = getattr(config, "cache", None)  # pytest may run without it
    if cache is not None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled_folder(cache.mkdir("bit"))))
        os.environ.update({name: value for name, value in ENVIRONMENT.items() if name.startswith("JAX_")})


@pytest.fixture(autouse=True)
def undrawn_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the page of a verification empty but in its own tests: drawing it takes a second."""
    if request.node.path.parent.name != "reporting":
        monkeypatch.setattr("convert.reporting.html.render", lambda *values: "")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run networks without a recording on smaller images, where their size proves nothing."""
    small = {"square": (1, 2, 64, 64), "odd": (2, 1, 49, 65)}
    for module in ("verification.network", "publishing.consistency"):
        monkeypatch.setattr(f"convert.{module}.INPUTS", small)
    monkeypatch.setattr("convert.verification.comparison.batches", partial(batches, small))


@pytest.fixture(autouse=True)
def unsynced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave it to the system when bytes reach the disk, except where that is tested: a third of a small conversion."""
    if request.node.path.name != "test_atomic.py":
        monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep recordings that conversions make out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of `TINY` in google's layout, not to be changed."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.npz"
    write_npz(path, TINY)
    return path


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The seeded checkpoint of a published architecture, generated once, not to be changed."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def path(architecture: str) -> Path:
        file = folder / f"Synthetic-{architecture}.npz"
        if not file.exists():
            write_npz(file, BitConfig.from_architecture(architecture))
        return file

    return path


@pytest.fixture(scope="session")
def verified_tiny(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified conversion of `tiny_npz` for transformers, not to be changed."""
    from support.conversions import convert, verified

    folder = convert(tiny_npz, "transformers", tmp_path_factory.mktemp("verified") / "tiny")
    assert verified(folder, tiny_npz).passed
    return folder


@pytest.fixture
def folder(verified_tiny: Path, tmp_path: Path) -> Path:
    """A converted and verified folder, to be pushed."""
    return shutil.copytree(verified_tiny, tmp_path / "tiny")


@pytest.fixture
def server() -> Iterator[HubServer]:
    """A Hub on the loopback that knows one account."""
    from support.hub import hub
    from support.pushing import TOKEN, account

    with hub() as running:
        running.tokens[TOKEN] = account()
        yield running


@pytest.fixture
def pushes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Xet, and without the seconds between attempts."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
