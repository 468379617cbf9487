"""A folder that differs from what was verified is not published."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt
from safetensors.numpy import load_file, save_file
from support.conversions import convert, verified
from support.hub import HubServer
from support.mutants import mutated
from support.networks import TINY
from support.pushing import REPOSITORY, content, edit, local, push

from convert import api
from convert.checkpoints.options import ConversionOptions
from convert.errors import CheckpointError, ConvertError, UsageError, VerificationError
from convert.files.base import file_sha256
from convert.progress import silent
from convert.publishing.card import card
from convert.publishing.gate import Checked, Content, Gate, check_folder
from convert.publishing.publish import PublishOptions
from convert.references.registry import IMPLEMENTATIONS, REFERENCES
from convert.sources.synthetic import write_npz

MUTANTS = 150
"""Records tried of each kind; thousands were tried when the schemas were written."""
Report = dict[str, Any]
Synthetic = Callable[[str], Path]
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


def test_zeros_with_a_new_hash_in_the_report_are_refused(folder: Path) -> None:
    zero(folder)
    with pytest.raises(VerificationError, match=r"model\.safetensors has changed since it was written"):
        check_folder(folder, silent)


def test_zeros_with_a_new_hash_in_every_file_are_found_by_the_repeated_verification(
    server: HubServer, folder: Path
) -> None:
    """The gate alone cannot see them, which a push that does not repeat the verification says."""
    zero(folder)
    change_manifest(folder, lambda manifest: manifest["files"].update({"model.safetensors": stated(folder)}))
    assert not push(server, folder, dry_run=True).reverified
    with pytest.raises(VerificationError, match=r"does not convert back to .* of the source \(and \d+ more\)"):
        push(server, folder, reverify=True)
    assert server.sent() == []


def test_a_push_repeats_the_verification(server: HubServer, folder: Path) -> None:
    assert PublishOptions().reverify
    pushed = push(server, folder, reverify=True)
    assert pushed.reverified
    assert "the quick verification (files, bytes and the oracle) was repeated, and passed" in pushed.card
    other = push(server, folder, "me/other")
    assert not other.reverified
    assert "The verification was not repeated" in other.card


def test_a_verification_that_cannot_be_repeated_is_refused(
    server: HubServer, folder: Path, tiny_npz: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(folder, tmp_path / "further" / "away" / "tiny")
    with pytest.raises(CheckpointError, match=r"is missing; name it with --source, or leave .* with --no-reverify"):
        push(server, moved, reverify=True)
    assert push(server, moved, reverify=True, source=tiny_npz).reverified


def test_a_figure_that_was_measured_otherwise_is_refused(server: HubServer, folder: Path) -> None:
    edit(folder, lambda report: report["epsilon"].update(relative_l2=1e-9))
    with pytest.raises(VerificationError, match="another effect of the epsilon than was measured again"):
        push(server, folder, reverify=True)


@pytest.mark.usefixtures("small_inputs")
@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("timm", ConversionOptions(dtype="bfloat16")),
        ("timm", ConversionOptions("new:3")),
        ("google", ConversionOptions("drop")),
        ("transformers", ConversionOptions(ws_eps="compensate")),
    ],
    ids=str,
)
def test_what_a_verification_writes_passes(
    tiny_npz: Path, tmp_path: Path, layout: str, options: ConversionOptions
) -> None:
    folder = convert(tiny_npz, layout, tmp_path / "out", options=options)
    assert verified(folder, tiny_npz).passed
    assert check_folder(folder, silent, Gate(reverify=True)).checked == Checked(reverified=True)
    edit(folder, lambda report: [check.update(tolerance=3 * check["tolerance"]) for check in report["checks"]])
    with pytest.raises(VerificationError, match="is derived"):
        check_folder(folder, silent)


@pytest.mark.usefixtures("small_inputs")
def test_rounded_weights_need_the_source(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "timm", tmp_path / "out", options=ConversionOptions(dtype="float16"))
    assert verified(folder, tiny_npz).passed
    moved = shutil.copytree(folder, tmp_path / "further" / "away" / "out")
    with pytest.raises(VerificationError, match="follow from the source; name it with --source"):
        check_folder(moved, silent)
    assert check_folder(moved, silent, Gate(source=tiny_npz)).manifest.name == "tiny"
    other = tmp_path / "other.npz"
    write_npz(other, TINY.replace(num_labels=7))
    with pytest.raises(CheckpointError, match=r"other\.npz is not what .* was converted from"):
        check_folder(moved, silent, Gate(source=other))


def test_a_recording_gives_the_tolerances_without_the_source(synthetic: Synthetic, tmp_path: Path) -> None:
    folder = convert(synthetic("R14x1"), "timm", tmp_path / "out")
    assert verified(folder, None).passed
    found = check_folder(folder, silent, Gate(reverify=True, source=None)).checked
    assert found.reverified
    edit(folder, lambda report: report["recordings"].update({"pytorch-f32.safetensors": "0" * 64}))
    with pytest.raises(VerificationError, match="was compared with other recordings"):
        check_folder(folder, silent)


def test_an_emptied_cache_leaves_a_conversion_verified(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIT_CACHE", str(tmp_path / "cache"))
    folder = api.convert(tiny_npz, out=tmp_path / "out").folder
    assert json.loads((folder / "verification.json").read_text())["recordings"]
    shutil.rmtree(tmp_path / "cache")
    assert check_folder(folder, silent, Gate(reverify=True)).checked.reverified
    assert not api.convert(tiny_npz, out=tmp_path / "out").created


@pytest.mark.usefixtures("small_inputs")
def test_a_conversion_in_shards_passes(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "transformers", tmp_path / "out", max_shard_size="200KB")
    assert verified(folder, tiny_npz).passed
    assert len(check_folder(folder, silent, Gate(reverify=True)).manifest.files) > 4


def test_each_reference_has_the_name_that_reports_give_it() -> None:
    for name in REFERENCES:
        module = find_spec(f"convert.references.{name.replace('-', '_')}")
        assert module is not None
        assert module.origin is not None
        assert f'"{IMPLEMENTATIONS[name]}"' in Path(module.origin).read_text()


@pytest.mark.long  # PyTorch and JAX, each in a process
def test_the_report_of_every_mode_passes_and_misses_none(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "transformers", tmp_path / "out")
    assert verified(folder, tiny_npz, ("pytorch", "flax")).passed
    check_folder(folder, silent, Gate(reverify=True))
    report = json.loads((folder / "verification.json").read_text())
    for run in {(check["implementation"], check["mode"]) for check in report["checks"] if check["dtype"] == "float64"}:
        edit(folder, lambda values: values.update(checks=[c for c in report["checks"] if run != key(c)]))  # noqa: B023
        with pytest.raises(VerificationError, match=f"has no .*run .*{re.escape(run[0])}"):
            check_folder(folder, silent)
    edit(folder, lambda values: values.update(checks=report["checks"]))
    edit(folder, lambda values: [c.update(tolerance=1e-2) for c in values["checks"] if c["dtype"] == "float32"])
    with pytest.raises(VerificationError, match=r"an error of 1\.0e-02"):
        check_folder(folder, silent)


def key(check: Report) -> tuple[str, str] | None:
    return (check["implementation"], check["mode"]) if check["dtype"] == "float64" else None


def zero(folder: Path) -> None:
    """Replace every weight by zero, and put the new hash into `verification.json`."""
    path = folder / "model.safetensors"
    tensors = {name: np.zeros_like(values) for name, values in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    edit(folder, lambda report: report["files"].update({path.name: stated(folder)["sha256"]}))


def stated(folder: Path) -> Report:
    path = folder / "model.safetensors"
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def change_manifest(folder: Path, change: Callable[[Report], Any]) -> None:
    """Change the content of `conversion.json`, and put the new hash into `verification.json`."""
    manifest = json.loads((folder / "conversion.json").read_text())
    change(manifest)
    (folder / "conversion.json").write_text(json.dumps(manifest))
    digest = file_sha256(folder / "conversion.json")
    edit(folder, lambda report: report["files"].update({"conversion.json": digest}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.update(converter="<img src=x onerror=alert(1)>"), "converter is not bit-convert"),
        (lambda manifest: manifest.update(architecture="<img src=x>"), "architecture does not match the weights"),
        (lambda manifest: manifest.update(layout="flax"), "layout does not match the weights"),
        (lambda manifest: manifest.update(classes=6), "classes does not match the weights"),
        (lambda manifest: [row.update(dtype="float16") for row in manifest["tensors"]], "tensors does not match"),
        (lambda manifest: manifest["tensors"].pop(), "tensors does not match the weights"),
        (lambda manifest: manifest["files"].pop("config.json"), r"config.json is not listed in conversion.json"),
        (lambda manifest: manifest["options"].update(profile="timm"), "preprocessor_config.json does not fit"),
    ],
)
def test_a_manifest_that_the_weights_contradict_is_refused(
    folder: Path, change: Callable[[Report], Any], message: str
) -> None:
    change_manifest(folder, change)
    with pytest.raises(ConvertError, match=message):
        check_folder(folder, silent)


@pytest.mark.parametrize("text", ['{"size": {"height": 32, "width": 32}}', "{", "[]"])
def test_preprocessing_that_the_manifest_contradicts_is_refused(folder: Path, text: str) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(text)
    file = {"bytes": len(text), "sha256": file_sha256(path)}
    edit(folder, lambda report: report["files"].update({path.name: file["sha256"]}))
    change_manifest(folder, lambda manifest: manifest["files"].update({path.name: file}))
    with pytest.raises(VerificationError, match=r"preprocessor_config.json does not fit conversion.json"):
        check_folder(folder, silent)


@pytest.mark.parametrize("name", ["conversion.json", "verification.json"])
def test_whatever_a_record_holds_is_a_pass_or_one_line(verified_tiny: Path, tmp_path: Path, name: str) -> None:
    """The manifest comes with a report that vouches for it, as a forger would write."""
    folder = shutil.copytree(verified_tiny, tmp_path / "tiny")
    records = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    random = Random(7)
    messages = []
    for _ in range(MUTANTS):
        data = mutated(records[name], random)
        (folder / name).write_bytes(data)
        if name == "conversion.json":
            report = json.loads(records["verification.json"])
            report["files"][name] = hashlib.sha256(data).hexdigest()
            (folder / "verification.json").write_text(json.dumps(report))
        try:
            found = check_folder(folder, silent)
            text = card(found.manifest, found.verification, "me/tiny")
            assert "<img" not in MarkdownIt().render(text)
            messages.append("pass")
        except ConvertError as error:
            messages.append(str(error))
    assert "pass" in messages
    assert any("cannot be published" in message for message in messages)
    assert [message for message in messages if len(message.splitlines()) != 1 or len(message) > 2000] == []


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
