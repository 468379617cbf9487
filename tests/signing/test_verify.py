"""Signing, verifying and converting again at the command line: a signed folder stays as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.command import run_here
from support.pushing import local
from support.signing import PASSWORD, Signed, write_key

import convert
from convert.errors import UsageError


@pytest.fixture
def workplace(tiny_npz: Path, folders: Signed, tmp_path: Path) -> Path:
    """A folder with the source where the manifest of a signed folder expects it."""
    shutil.copy(tiny_npz, tmp_path / "tiny.npz")
    shutil.copytree(folders.place / "tiny", tmp_path / "tiny")
    return tmp_path


def test_sign_and_verify_at_the_command_line(folder: Path, tmp_path: Path) -> None:
    private, public = write_key(tmp_path, password=PASSWORD)
    refused = run_here("sign", folder, "--key", private, cwd=tmp_path)
    assert refused.returncode == 2
    assert "is encrypted: set BIT_KEY_PASSWORD" in refused.stderr
    done = run_here("sign", folder, "--key", private, cwd=tmp_path, BIT_KEY_PASSWORD=PASSWORD)
    assert done.returncode == 0, done.stderr
    assert "signed by the key SHA256:" in done.stdout
    assert PASSWORD not in done.stdout + done.stderr
    as_json = run_here("sign", folder, "--key", private, "--json", cwd=tmp_path, BIT_KEY_PASSWORD=PASSWORD)
    assert json.loads(as_json.stdout)["files"].keys() == local(folder).keys() - {"model.sig"}
    checked = run_here("verify", folder, "--public-key", public, "--quick", "--json", cwd=tmp_path)
    assert json.loads(checked.stdout)["signature"]["signer"] == json.loads(as_json.stdout)["signer"]


def test_the_current_folder_is_not_taken_away(folder: Path, tmp_path: Path) -> None:
    private, _ = write_key(tmp_path)
    before = local(folder)
    result = run_here("sign", ".", "--key", private, cwd=folder)
    assert result.returncode == 2
    assert "leave the folder, and name it from outside" in result.stderr
    assert local(folder) == before


@pytest.mark.parametrize("arguments", [(), ("--sigstore", "--key", "signer1.pem")])
def test_a_signer_is_named_once(folder: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    write_key(tmp_path)
    result = run_here("sign", folder, *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert "name either --key KEY or --sigstore" in result.stderr


def test_whom_to_trust_is_named_in_one_way(folders: Signed) -> None:
    for options in (
        {},
        {"identity": "a@example.com"},
        {"public_key": folders.public, "identity": "a@example.com", "identity_provider": "https://example.com"},
    ):
        with pytest.raises(UsageError, match="--public-key"):
            convert.check_signature(folders.place / "tiny", **options)  # type: ignore[arg-type]


def test_verifying_a_signed_folder_changes_nothing_in_it(workplace: Path, folders: Signed) -> None:
    folder, before = workplace / "tiny", local(workplace / "tiny")
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    options = ("--quick", "--source", workplace / "tiny.npz")
    unchecked = run_here("verify", folder, *options, cwd=workplace)
    assert unchecked.returncode == 0, unchecked.stderr
    assert "is signed, but the signature was not checked" in unchecked.stderr
    assert "report:" not in unchecked.stdout
    checked = run_here(
        "verify", folder, *options, "--public-key", folders.public, "--report", "new.json", cwd=workplace
    )
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.startswith("✓ signed by")
    assert "report: new.json" in checked.stdout
    assert json.loads((workplace / "new.json").read_text())["passed"] is True
    page = run_here("verify", folder, *options, "--report", "new.html", cwd=workplace)
    assert (workplace / "new.html").is_file(), page.stderr
    assert local(folder) == before
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    inside = run_here("verify", folder, *options, "--report", "tiny/new.json", cwd=workplace)
    assert inside.returncode == 2
    assert "is in the signed folder, which stays as it is" in inside.stderr
    assert local(folder) == before


def test_convert_leaves_a_signed_folder_or_replaces_it(workplace: Path, folders: Signed) -> None:
    before = local(workplace / "tiny")
    again = run_here("convert", "tiny.npz", "--out", "tiny", cwd=workplace)
    assert again.returncode == 0, again.stderr
    assert "exists already" in again.stdout
    assert local(workplace / "tiny") == before
    forced = run_here("convert", "tiny.npz", "--out", "tiny", "--force", cwd=workplace)
    assert forced.returncode == 0, forced.stderr
    assert local(workplace / "tiny").keys() == before.keys() - {"model.sig", "conversion.intoto.json"}


def test_a_card_written_by_hand_is_not_replaced(workplace: Path) -> None:
    (workplace / "tiny" / "README.md").write_text("mine")
    forced = run_here("convert", "tiny.npz", "--out", "tiny", "--force", cwd=workplace)
    assert forced.returncode == 2
    assert "README.md" in forced.stderr
    assert (workplace / "tiny" / "README.md").read_text() == "mine"
