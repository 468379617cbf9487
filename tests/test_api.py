"""The Python API: results, errors, progress, and what importing it costs."""

from __future__ import annotations

import functools
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.networks import TINY

import bit
import convert
from convert import api
from convert.network.dtypes import BY_NAME
from convert.references import recorder
from convert.references.registry import REFERENCES
from convert.sources.synthetic import write_npz

SCRIPT = """
import convert

result = convert.convert("Synthetic-R14x1", to="timm", out="out", head="drop", dtype="float16", full=False)
print(result.folder.name, result.manifest.name, result.verification.passed, result.warnings)
for item in convert.zoo("BiT-M-*", architecture="R50x1"):
    print(item.name.upper())
print(convert.compare("a.npz", "b.npz", taps=False).equal, convert.inspect("a.npz").architecture)
print(convert.record("a.npz").name, convert.publish("out", "me/x", dry_run=True, private=True).state)


def show(task: str, done: int, total: int) -> None:
    print(task, done, total)


try:
    convert.verify("out", progress=show)
except convert.VerificationError as error:
    print(error.result, error.problems)
"""
FAULTS = ('convert.convert("x", heda="drop")', "convert.zoo(3)", "convert.verfy", 'convert.publish("out")')


def test_importing_convert_imports_neither_numpy_nor_a_framework() -> None:
    wanted = (
        "{'numpy', 'torch', 'jax', 'tensorflow', 'keras', 'timm', 'transformers', 'onnx', 'rich', 'huggingface_hub'}"
    )
    script = f"import sys, convert; convert.VerificationError; print(*({wanted} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_every_public_name_exists_and_is_documented() -> None:
    for name in convert.__all__:
        assert name == "__version__" or inspect.getdoc(getattr(convert, name)), name
        assert name in dir(convert)
    assert convert.__version__ == bit.__version__
    with pytest.raises(AttributeError, match="no attribute 'konvert'"):
        convert.konvert  # noqa: B018


def test_no_function_has_more_than_six_parameters() -> None:
    for name in convert.__all__:
        if inspect.isfunction(function := getattr(convert, name)):
            assert len(inspect.signature(function).parameters) <= 6, name


@pytest.mark.long  # the type checker reads every dependency
def test_a_script_is_type_checked(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("\n".join((SCRIPT, *FAULTS)))
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file", "/dev/null", "script.py"]
    environment = {**os.environ, "MYPYPATH": str(Path(__file__).parent.parent)}
    result = subprocess.run(mypy, cwd=tmp_path, env=environment, capture_output=True, text=True)
    errors = [line for line in result.stdout.splitlines() if "error:" in line]
    assert [int(line.split(":")[1]) for line in errors] == [
        len(SCRIPT.splitlines()) + number for number in range(2, 2 + len(FAULTS))
    ], result.stdout


def test_convert_returns_folder_manifest_and_verification(tiny_npz: Path, here: Path) -> None:
    result = convert.convert(tiny_npz, to="timm", out=here / "out")
    assert result.folder == here / "out"
    assert (result.folder / "model.safetensors").is_file()
    assert (result.manifest.name, result.manifest.layout) == ("tiny", "timm")
    assert result.manifest.architecture == TINY.architecture
    assert result.verification.passed
    assert result.created
    assert result.source == tiny_npz
    assert json.loads((result.folder / "verification.json").read_text())["passed"]


def test_nothing_is_printed_and_progress_is_called(
    tiny_npz: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, int, int]] = []
    convert.convert(tiny_npz, out="out")
    convert.convert(tiny_npz, out="out", force=True, progress=lambda *call: calls.append(call))
    assert capfd.readouterr() == ("", "")
    tasks = list(dict.fromkeys(task for task, _, _ in calls))
    assert tasks[:3] == ["converting", "comparing bytes", "comparing oracle float64"]
    assert all(0 <= done <= total for _, done, total in calls if total)


def test_a_conversion_in_an_empty_folder_writes_checkpoints_and_converted_there(
    here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("BIT_CACHE", str(cache))
    assert convert.convert("Synthetic-R14x1").verification.passed
    assert sorted(path.name for path in here.iterdir()) == ["checkpoints", "converted"]
    assert convert.cache_folder() == cache
    assert not list(cache.iterdir()), "outputs of Google's code are shipped with the project"


def test_recordings_of_a_conversion_go_to_the_cache_folder(
    tiny_npz: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIT_CACHE", str(here / "cache"))
    assert convert.convert(tiny_npz).verification.network.reference.startswith("recorded outputs of oracle")
    assert [path.name for path in (here / "cache" / "recordings").iterdir()] == ["tiny"]
    monkeypatch.delenv("BIT_CACHE")
    assert convert.cache_folder().name == "bit-convert"


def test_the_same_conversion_again_is_returned_as_it_is(tiny_npz: Path, here: Path) -> None:
    first = convert.convert(tiny_npz)
    written = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    second = convert.convert(tiny_npz)
    assert not second.created
    assert (second.manifest, second.verification) == (first.manifest, first.verification)
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == written
    assert convert.convert(tiny_npz, force=True).created


def test_the_same_conversion_is_verified_again_with_the_implementations_that_are_asked_for(
    tiny_npz: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = convert.convert(tiny_npz)
    asked: list[tuple[str, ...]] = []

    def verify(*arguments: object) -> convert.Verification:
        asked.append(arguments[3].references)
        return first.verification

    monkeypatch.setattr("convert.verifying.verify_conversion", verify)
    assert not convert.convert(tiny_npz, references=["pytorch"]).created
    assert not convert.convert(tiny_npz, full=True).created
    assert asked == [("pytorch",), tuple(REFERENCES)]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": "float16"}, "was converted with dtype unchanged"),
        ({"head": "drop"}, "was converted with head keep"),
        ({"profile": "timm"}, "was converted with profile google"),
        ({"max_shard_size": "100KB"}, "was converted with other options"),
        ({"to": "flax"}, "holds the layout transformers"),
    ],
)
def test_another_conversion_in_the_same_folder_is_refused(
    tiny_npz: Path, here: Path, options: convert.api.ConvertOptions, reason: str
) -> None:
    convert.convert(tiny_npz, out="out", verify=False)
    with pytest.raises(convert.CheckpointError, match=f"out exists and {reason}; replace it with --force"):
        convert.convert(tiny_npz, out="out", **options)


def test_a_conversion_of_another_file_in_the_same_folder_is_refused(tiny_npz: Path, here: Path) -> None:
    convert.convert(tiny_npz, out="out")
    write_npz(here / "tiny.npz", TINY.replace(num_labels=7))
    with pytest.raises(convert.CheckpointError, match=r"was converted from a different file than tiny\.npz"):
        convert.convert("tiny.npz", out="out")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "verification.json").unlink(), "it was not verified"),
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json"),
        (lambda folder: (folder / "conversion.json").write_text("{}"), "is not a complete conversion of this version"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    ],
)
def test_a_folder_that_was_changed_is_not_taken_for_a_conversion(
    tiny_npz: Path, here: Path, damage: Callable[[Path], object], reason: str
) -> None:
    damage(convert.convert(tiny_npz).folder)
    with pytest.raises(convert.CheckpointError, match=f"{reason}.*--force"):
        convert.convert(tiny_npz)


def test_a_failed_verification_raises_with_the_result(
    tiny_npz: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import convert.api as api

    def faulty(*arguments: object) -> convert.Manifest:
        manifest = write(*arguments)
        path = arguments[1].path / "model.safetensors"
        state = load_file(path)
        state["classifier.1.bias"] = state["classifier.1.bias"] + np.float32(1)
        save_file(state, path, metadata={"format": "pt"})
        return manifest

    write = api.write
    monkeypatch.setattr(api, "write", faulty)
    with pytest.raises(convert.VerificationError, match=r"the verification of out failed: ") as caught:
        convert.convert(tiny_npz, out="out")
    result = caught.value.result
    assert isinstance(result, convert.ConversionResult)
    assert not result.verification.passed
    assert caught.value.problems == result.verification.problems
    assert (here / "out" / "verification.json").is_file(), "the folder is kept, to be looked at"


def test_without_verification_the_result_has_not_passed(tiny_npz: Path, here: Path) -> None:
    result = convert.convert(tiny_npz, verify=False)
    assert not result.verification.passed
    assert not (result.folder / "verification.json").exists()
    assert convert.verify(result.folder, full=False).passed
    assert (result.folder / "verification.html").exists()


def test_verify_returns_a_failure(tiny_npz: Path, here: Path) -> None:
    folder = convert.convert(tiny_npz, verify=False).folder
    (folder / "config.json").write_text("{}")
    assert not convert.verify("tiny", full=False).passed
    with pytest.raises(convert.CheckpointError, match="there is no folder 'elsewhere'"):
        convert.verify("elsewhere")
    with pytest.raises(convert.CheckpointError, match=r"holds no conversion\.json"):
        convert.verify(here)


def test_verify_finds_a_source_that_was_moved(tiny_npz: Path, here: Path) -> None:
    (here / "a.npz").write_bytes(tiny_npz.read_bytes())
    folder = convert.convert("a.npz", verify=False).folder
    (here / "a.npz").rename(here / "b.npz")
    with pytest.raises(convert.CheckpointError, match="name it with --source"):
        convert.verify(folder, full=False, recordings="nothing")
    assert convert.verify(folder, full=False, source="b.npz").passed


def test_inspect_compare_and_record(tiny_npz: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert convert.inspect(tiny_npz).architecture == TINY.architecture
    folder = convert.convert(tiny_npz, verify=False).folder
    difference = convert.compare(tiny_npz, folder)
    assert difference.equal
    assert difference.taps
    assert not convert.compare(tiny_npz, folder, taps=False).taps
    monkeypatch.setattr(recorder, "record", functools.partial(recorder.record, frameworks=()))
    assert convert.record(tiny_npz, recordings="here") == Path("here/tiny")


def test_the_zoo_is_filtered() -> None:
    assert len(convert.zoo()) > 300
    found = convert.zoo("BiT-M-*", architecture="R50x1", data="ImageNet-21k", classes=21843)
    assert {item.architecture for item in found} == {"R50x1"}
    with pytest.raises(convert.ConvertError, match="did you mean BiT-M-R50x1"):
        convert.zoo("BiT-M-R51x1")


@pytest.mark.parametrize("name", ["BiT-M-R50x1", "resnetv2_50x1_bit.goog_in21k", "timm/resnetv2_50x1_bit.goog_in21k"])
def test_the_folder_of_a_published_checkpoint_has_googles_name(name: str, here: Path) -> None:
    expected = Path("converted/BiT-M-R50x1/timm")
    (here / expected).mkdir(parents=True)
    assert api.converted_folder(name, "timm") == expected


def test_a_dry_run_of_publishing_needs_no_network(tiny_npz: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    folder = convert.convert(tiny_npz).folder
    publication = convert.publish(folder, "me/tiny", dry_run=True)
    assert publication.state == "planned"
    assert publication.files.keys() == {*(path.name for path in folder.iterdir()), "README.md"}
    assert "tiny" in publication.card
    assert convert.publish("tiny", "me/tiny", dry_run=True) == publication
    (folder / "config.json").write_text("{}")
    with pytest.raises(convert.VerificationError):
        convert.publish(folder, "me/tiny", dry_run=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: convert.convert(path, to="pytorch"), "unknown layout 'pytorch'"),
        (lambda path: convert.convert(path, to="transformer"), "did you mean transformers"),
        (lambda path: convert.convert(path, dtype="fp16"), "did you mean float16"),
        (lambda path: convert.convert(path, head="no"), "head"),
        (lambda path: convert.convert(path, ws_eps="1e-8"), "ws_eps"),
        (lambda path: convert.convert(path, profile="googel"), "did you mean google"),
        (lambda path: convert.convert(path, references=["torch"]), "did you mean pytorch"),
        (lambda path: convert.convert(path, heda="drop"), "unknown option 'heda'; choose from .*; did you mean head"),
        (lambda path: convert.inspect(path, miror="x"), "did you mean mirror"),
        (lambda path: convert.verify(path, ful=True), "did you mean full"),
        (lambda path: convert.publish(path, "me/x", privat=True), "did you mean private"),
    ],
)
def test_wrong_options_are_usage_errors(
    call: Callable[[Path], object], message: str, tiny_npz: Path, here: Path
) -> None:
    with pytest.raises(convert.UsageError, match=message):
        call(tiny_npz)
    assert not list(here.iterdir())


def test_the_errors_form_one_tree() -> None:
    errors = [getattr(convert, name) for name in convert.__all__ if name.endswith("Error")]
    assert len(errors) == 8
    assert all(issubclass(error, convert.ConvertError) for error in errors)
    assert issubclass(convert.ConvertError, ValueError)


def test_option_docs_name_every_value() -> None:
    source = inspect.getsource(sys.modules["convert.options"])
    for name in (*BY_NAME, *REFERENCES):
        assert f"`{name}`" in source


def test_classify_names_a_missing_folder(here: Path) -> None:
    with pytest.raises(convert.CheckpointError, match="there is no folder 'nowhere'"):
        convert.classify(["a.png"], "nowhere")
