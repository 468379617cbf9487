"""What is not as it was verified is not published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.hub import HubServer
from support.pushing import REPOSITORY, content, edit, local, push

from convert.errors import CheckpointError, VerificationError

# The second is how huggingface_hub hands files to its HTTP client.
pytestmark = [
    pytest.mark.usefixtures("pushes_at_once"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json", "conversion.json"])
def test_a_changed_byte_after_the_verification_is_refused(server: HubServer, folder: Path, name: str) -> None:
    path = folder / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x20  # of JSON white space or a bracket, of weights a bit
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{name} (has changed since|is damaged)"):
        push(server, folder)
    assert server.requests == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda report: report.update(passed=False), "does not say that it passed"),
        (lambda report: report.update(passed="true"), "does not say that it passed"),
        (lambda report: report.update(problems=["a tensor differs"]), "tells of problems"),
        (lambda report: report.pop("problems"), "tells of problems"),
        (lambda report: report.update(checks=[]), "holds no comparison"),
        (lambda report: report["checks"][3].update(error=1.0), "1 of .* over their tolerance"),
        (lambda report: report["checks"][3].update(error=None), "1 of .* over their tolerance"),
        (lambda report: report["checks"][3].update(error=float("nan")), "1 of .* over their tolerance"),
        (lambda report: report["checks"][3].update(tolerance=float("inf")), "1 of .* over their tolerance"),
        (lambda report: report["checks"][3].update(error=True, tolerance=True), "1 of .* over their tolerance"),
        (lambda report: report["checks"][3].update(passed=False), "1 of .* over their tolerance"),
        (lambda report: report["checks"].append("fine"), "1 of .* over their tolerance"),
        (lambda report: report["pixels"][0].update(error=9.0), "1 of .* over their tolerance"),
        (lambda report: report.pop("pixels"), "1 of .* over their tolerance"),
        (lambda report: report.update(verifier="bit-convert 0.0.1"), "was not written by bit-convert"),
        (lambda report: report.update(files={}), "lists no files"),
        (lambda report: report["files"].pop("config.json"), "config.json was not there then"),
        (lambda report: report["files"].update({"gone.bin": "0" * 64}), "gone.bin is missing"),
    ],
)
def test_a_report_of_anything_but_a_pass_is_refused(
    server: HubServer, folder: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    edit(folder, change)
    with pytest.raises(VerificationError, match=message):
        push(server, folder)
    assert server.requests == []


def test_a_file_or_folder_that_was_added_is_refused(server: HubServer, folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"x")
    (folder / "more").mkdir()
    with pytest.raises(VerificationError) as raised:
        push(server, folder)
    assert raised.value.problems == ("more is no file", "pytorch_model.bin was not there then")


def test_a_folder_that_was_not_verified_is_refused(server: HubServer, folder: Path) -> None:
    (folder / "verification.json").write_text("[" * 10000)
    with pytest.raises(VerificationError, match="does not say that it passed"):
        push(server, folder)
    (folder / "verification.json").unlink()
    with pytest.raises(VerificationError, match="never verified; bit verify"):
        push(server, folder)
    (folder / "conversion.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no conversion.json"):
        push(server, folder)


def test_another_page_than_the_verification_wrote_is_refused(server: HubServer, folder: Path) -> None:
    (folder / "verification.html").write_text("<p>passed</p>")
    with pytest.raises(VerificationError, match=r"verification\.html is not the page that was written then"):
        push(server, folder)
    (folder / "verification.html").unlink()
    with pytest.raises(VerificationError, match=r"verification\.html is not the page"):
        push(server, folder)


def test_a_card_of_ones_own_is_pushed_too(server: HubServer, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\n---\nmine\n")
    push(server, folder)
    assert content(server.repositories[REPOSITORY]) == local(folder)


def test_nothing_extra_takes_the_place_of_a_verified_file(server: HubServer, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json is in the folder already"):
        push(server, folder, extra={"config.json": b"{}"})
