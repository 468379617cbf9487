"""A signed folder that differs in anything from what the signer left is refused, in one line and without a network."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
from support.command import run_here
from support.pushing import local
from support.signing import Signed, trust
from support.tampering import TAMPERS, tampered

from convert.errors import VerificationError
from convert.progress import silent
from convert.signing.check import check_folder_signature


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every connection fail."""

    def refuse(*values: object) -> None:
        raise AssertionError("a check with a key needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_what_was_signed_passes_and_says_what_it_shows(folders: Signed) -> None:
    before = {path: path.stat().st_mtime_ns for path in folders.place.rglob("*")}
    for name in ("tiny", "timm", "old"):
        signature = check_folder_signature(folders.place / name, trust(folders.public), silent)
        assert signature.files.keys() == local(folders.place / name).keys() - {"model.sig"}
        assert signature.comparisons == 16, "8 taps of 2 inputs"
    assert {path: path.stat().st_mtime_ns for path in folders.place.rglob("*")} == before


def assert_all_refused(folders: Signed, tmp_path: Path, count: int) -> None:
    for what in tampered(folders, tmp_path / "tiny", count):
        with pytest.raises(VerificationError) as raised:
            pytest.fail(check_folder_signature(tmp_path / "tiny", trust(folders.public), silent).words + what)
        message = str(raised.value)
        assert len(message.splitlines()) == 1, what
        assert message.isprintable(), what
        assert len(message) < 1000, what


def test_every_kind_of_tampering_is_noticed(folders: Signed, tmp_path: Path) -> None:
    assert_all_refused(folders, tmp_path, 5 * len(TAMPERS))


@pytest.mark.long  # a minute
def test_a_thousand_random_changes_are_all_noticed(folders: Signed, tmp_path: Path) -> None:
    assert_all_refused(folders, tmp_path, 1000)


def test_the_command_reports_each_in_one_line(folders: Signed, tmp_path: Path) -> None:
    for what in tampered(folders, tmp_path / "tiny", len(TAMPERS), seed=1):
        options = ("--public-key", folders.public, "--quick")
        result = run_here("verify", tmp_path / "tiny", *options, cwd=tmp_path)
        errors = [line for line in result.stderr.splitlines() if not line.endswith("…")]
        assert result.returncode in (1, 2), what
        assert len(errors) == 1, (what, result.stderr)
        assert errors[0].startswith("error: "), what
        assert result.stdout == "", what


def test_a_folder_with_the_name_of_an_unsigned_file_is_refused(folders: Signed, tmp_path: Path) -> None:
    shutil.copytree(folders.place / "tiny", tmp_path / "tiny")
    (tmp_path / "tiny" / ".gitattributes").mkdir()
    with pytest.raises(VerificationError, match=r"\.gitattributes is not a regular file"):
        check_folder_signature(tmp_path / "tiny", trust(folders.public), silent)


def test_a_whole_folder_of_another_signer_is_refused(folders: Signed) -> None:
    with pytest.raises(VerificationError, match="is not a signature by the key SHA256:"):
        check_folder_signature(folders.place / "foreign", trust(folders.public), silent)


def test_an_unsigned_folder_is_refused(verified_tiny: Path, folders: Signed) -> None:
    with pytest.raises(VerificationError, match="it is not signed"):
        check_folder_signature(verified_tiny, trust(folders.public), silent)


def test_nothing_is_read_of_a_folder_before_the_signature_is_checked(
    folders: Signed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folders.place / "tiny", tmp_path / "tiny")
    (tmp_path / "tiny" / "conversion.json").write_text("[" * 100)
    monkeypatch.setattr("convert.checkpoints.manifest.Manifest.read", lambda *values: pytest.fail("it was read"))
    with pytest.raises(VerificationError, match=r"conversion\.json was changed after it was signed"):
        check_folder_signature(tmp_path / "tiny", trust(folders.public), silent)


def test_a_folder_that_another_version_signed_still_passes(folders: Signed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convert.signing.check.VERIFIER", "bit-convert 9")
    monkeypatch.setattr("convert.signing.check.statements", lambda *values: pytest.fail("it makes other statements"))
    assert check_folder_signature(folders.place / "tiny", trust(folders.public), silent).comparisons == 16
