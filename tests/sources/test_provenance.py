"""A source has an address only if hashes show that it was fetched there."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from support.conversions import convert

from convert.checkpoints.manifest import Manifest
from convert.files.base import File
from convert.published.catalogue import published
from convert.sources.provenance import address, repository_of
from convert.sources.remote import RemoteFile

URL = published()["BiT-M-R50x1-ILSVRC2012"].url
DATA = b"weights"
SHA256 = hashlib.sha256(DATA).hexdigest()
FILES = {"BiT-M-R50x1-ILSVRC2012.npz": File(len(DATA), SHA256)}
COMMIT = "0a" * 20


def download(folder: Path, **changes: Any) -> Path:
    """Write a file with the description that a checked download leaves beside it."""
    path = folder / "BiT-M-R50x1-ILSVRC2012.npz"
    path.write_bytes(DATA)
    facts = {"url": URL, "size": len(DATA), "md5": "mB==", "sha256": SHA256, "modified_ns": 1, **changes}
    RemoteFile(**facts).save(path)
    return path


def test_a_checked_download_of_google_has_the_url(tmp_path: Path) -> None:
    assert address(download(tmp_path), FILES) == URL


@pytest.mark.parametrize(
    "changes",
    [
        {"url": "https://mirror.example/bit_models/BiT-M-R50x1-ILSVRC2012.npz"},
        {"url": URL + "?generation=1"},
        {"url": "https://storage.googleapis.com/bit_models/other.npz"},
        {"sha256": "0" * 64},
        {"sha256": None},
        {"size": 8},
        {"md5": None},
    ],
)
def test_anything_else_has_none(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert address(download(tmp_path, **changes), FILES) is None


def test_a_name_shows_nothing(tmp_path: Path) -> None:
    path = tmp_path / "BiT-M-R50x1-ILSVRC2012.npz"
    path.write_bytes(DATA)
    assert address(path, FILES) is None


def test_a_snapshot_of_the_hub_has_the_repository_and_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--timm--resnetv2_50x1_bit.goog_in21k" / "snapshots" / COMMIT
    blobs = folder.parents[1] / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    index = hashlib.sha1(f"blob {len(DATA)}\0".encode() + DATA, usedforsecurity=False).hexdigest()
    for name, blob in {"model.safetensors": SHA256, "index.json": index}.items():
        (blobs / blob).write_bytes(DATA)
        (folder / name).symlink_to(os.path.relpath(blobs / blob, folder))
    files = dict.fromkeys(("model.safetensors", "index.json"), File(len(DATA), SHA256))
    found = address(folder, files)
    assert found == f"hf:timm/resnetv2_50x1_bit.goog_in21k@{COMMIT}"
    assert repository_of(found) == "timm/resnetv2_50x1_bit.goog_in21k"
    assert address(folder / "model.safetensors", {"model.safetensors": files["model.safetensors"]}) == found
    (folder / "index.json").unlink()
    (folder / "index.json").write_bytes(DATA)
    assert address(folder, files) is None, "a file that somebody put there"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "other"))
    assert address(folder, {"model.safetensors": files["model.safetensors"]}) is None, "not the cache of this machine"


@pytest.mark.parametrize("place", [None, URL, "hf:me/x", f"hf:me/x@{COMMIT} ", f"hf:me/x/y@{COMMIT}"])
def test_other_addresses_are_of_no_repository(place: str | None) -> None:
    assert repository_of(place) is None


def test_a_conversion_of_a_local_file_records_no_address(tiny_npz: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(convert(tiny_npz, "timm", tmp_path / "timm"))
    assert manifest is not None
    assert (manifest.source.address, manifest.origin.address) == (None, None)


def test_the_address_of_the_first_file_is_kept_by_later_conversions(tiny_npz: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.npz"
    path.write_bytes(tiny_npz.read_bytes())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    RemoteFile(URL, size=path.stat().st_size, crc32c="AAAA", sha256=digest).save(path)
    first = Manifest.read(convert(path, "timm", tmp_path / "timm"))
    second = Manifest.read(convert(tmp_path / "timm", "google", tmp_path / "google"))
    assert first is not None
    assert second is not None
    assert (first.source.address, first.origin.address) == (URL, URL)
    assert (second.source.address, second.origin.address) == (None, URL)
