"""A folder that differs from what was verified is not published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.hub import HubServer
from support.pushing import REPOSITORY, content, edit, local, push

from convert.errors import CheckpointError, ConvertError, UsageError, VerificationError
from convert.progress import silent
from convert.publishing.gate import Content, check_folder

# The second: huggingface_hub hands files to its HTTP client in a deprecated way.
pytestmark = [
    pytest.mark.usefixtures("pushes_at_once"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]


def test_the_gate_returns_manifest_report_and_every_file(folder: Path) -> None:
    verified = check_folder(folder, silent)
    assert verified.manifest.layout == "transformers"
    assert verified.verification == json.loads((folder / "verification.json").read_text())
    assert {name: file.read() for name, file in verified.files.items()} == local(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json", "conversion.json"])
def test_a_byte_changed_after_the_verification_is_refused(server: HubServer, folder: Path, name: str) -> None:
    path = folder / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x20  # white space or a bracket of JSON, a bit of weights
    path.write_bytes(data)
    with pytest.raises(ConvertError, match=f"{name} (was changed after the verification|is damaged)"):
        push(server, folder)
    assert server.requests == []


OVER = "verification.json has 1 of .* comparisons over the tolerance"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda report: report.update(passed=False), "does not report a pass"),
        (lambda report: report.update(passed="true"), r"is damaged \(Expected `bool`, got `str` - at `\$.passed`"),
        (lambda report: report.update(problems=["a tensor differs"]), r"reports a problem \(a tensor differs\)"),
        (lambda report: report.pop("problems"), "is damaged .*missing required field `problems`"),
        (lambda report: report.update(checks=[]), "has no comparisons"),
        (lambda report: report["checks"][3].update(error=1.0), OVER),
        (lambda report: report["checks"][3].update(error=-1.0), OVER),
        (lambda report: report["checks"][3].update(error=None), OVER),
        (lambda report: report["checks"][3].update(tolerance=None), OVER),
        (lambda report: report["checks"][3].update(error=float("nan")), "is damaged"),
        (lambda report: report["checks"][3].update(tolerance=float("inf")), "is damaged"),
        (lambda report: report["checks"][3].update(error=True, tolerance=True), r"is damaged .*checks\[3\].error"),
        (lambda report: report["checks"][3].update(passed=False), OVER),
        (lambda report: report["checks"][3].pop("tolerance"), "is damaged .*missing required field `tolerance`"),
        (lambda report: report["checks"].append("fine"), r"is damaged \(Expected `object`, got `str`"),
        (lambda report: report["pixels"][0].update(error=9.0), OVER),
        (lambda report: report.pop("pixels"), "is damaged .*missing required field `pixels`"),
        (
            lambda report: report.update(verifier="bit-convert 0.0.1"),
            "comes from bit-convert 0.0.1, not from bit-convert",
        ),
        (lambda report: report.update(files={}), "lists no files"),
        (lambda report: report["files"].pop("config.json"), "config.json was added after the verification"),
        (lambda report: report["files"].update({"gone.bin": "0" * 64}), "gone.bin is missing"),
        (lambda report: report.update(schema=1), "has schema 1, but this version reads schema 2; run bit verify"),
        (lambda report: report.pop("schema"), "has schema 1, but this version reads schema 2; run bit verify"),
    ],
)
def test_a_report_of_anything_but_a_pass_is_refused(
    server: HubServer, folder: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    edit(folder, change)
    with pytest.raises(VerificationError, match=message) as raised:
        push(server, folder)
    assert raised.value.problems
    assert server.requests == []


def test_an_added_file_or_folder_is_refused(server: HubServer, folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"x")
    (folder / "more").mkdir()
    with pytest.raises(VerificationError, match=r"more is not a file \(and 1 more\); run bit verify") as raised:
        push(server, folder)
    assert raised.value.problems == ("more is not a file", "pytorch_model.bin was added after the verification")


def test_a_folder_that_was_not_verified_is_refused(server: HubServer, folder: Path) -> None:
    (folder / "verification.json").write_text("[" * 10000)
    with pytest.raises(VerificationError, match=r"verification\.json is damaged"):
        push(server, folder)
    (folder / "verification.json").unlink()
    with pytest.raises(VerificationError, match="is not verified; run bit verify"):
        push(server, folder)
    (folder / "conversion.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no conversion.json"):
        push(server, folder)


def test_a_conversion_of_an_older_schema_is_refused(server: HubServer, folder: Path) -> None:
    manifest = json.loads((folder / "conversion.json").read_text())
    (folder / "conversion.json").write_text(json.dumps({**manifest, "schema": 1}))
    with pytest.raises(ConvertError, match=r"convert (it )?again"):
        push(server, folder)


def test_a_page_that_the_verification_did_not_write_is_refused(server: HubServer, folder: Path) -> None:
    (folder / "verification.html").write_text("<p>passed</p>")
    with pytest.raises(VerificationError, match=r"verification\.html is not the page that the verification wrote"):
        push(server, folder)
    (folder / "verification.html").unlink()
    with pytest.raises(VerificationError, match=r"verification\.html is not the page"):
        push(server, folder)


def test_a_card_in_the_folder_is_pushed_instead_of_a_new_one(server: HubServer, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\n---\nmine\n")
    assert push(server, folder).card.endswith("mine\n")
    assert content(server.repositories[REPOSITORY]) == local(folder)


def test_an_extra_file_cannot_replace_a_verified_one(server: HubServer, folder: Path) -> None:
    with pytest.raises(UsageError, match=r"config.json would replace a file of the folder"):
        push(server, folder, extra={"config.json": b"{}"})


def test_a_content_has_gits_name_for_bytes_in_memory_and_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hello").write_bytes(b"hello\n")
    in_memory = Content.of(tmp_path / "hello")
    monkeypatch.setattr("convert.publishing.gate.IN_MEMORY", 0)
    on_disk = Content.of(tmp_path / "hello")
    assert (in_memory.data, on_disk.data) == (b"hello\n", tmp_path / "hello")
    assert in_memory.git_oid() == on_disk.git_oid() == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert in_memory.sha256 == on_disk.sha256
