"""`bit evaluate`: what it prints, writes and returns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.command import assert_refused, run_here
from support.conversions import convert
from support.evaluations import differing, evaluation
from support.networks import TINY
from support.pictures import save_classes

from convert.evaluation.results import Evaluation
from convert.sources.synthetic import write_npz

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return save_classes(tmp_path / "data", "abc", each=2)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_npz(tmp_path / "tiny.npz", TINY.replace(num_labels=3))
    return convert(tmp_path / "tiny.npz", "onnx", tmp_path / "models" / "onnx")


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the command return a known evaluation."""

    def show(found: Evaluation) -> None:
        monkeypatch.setattr("convert.api.evaluate", lambda *arguments, **options: found)

    return show


def test_it_prints_scores_and_writes_the_report_beside_the_folder(model: Path, data: Path, tmp_path: Path) -> None:
    (data / "a" / "bad.png").write_bytes(b"")
    before = sorted(model.iterdir())
    result = run_here("evaluate", model, "--data", data, "--skip-bad-images", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "6 images of 3 classes" in result.stdout
    assert "ONNX Runtime" in result.stdout
    assert "1 image was left out: " in result.stderr
    assert sorted(model.iterdir()) == before, "a conversion stays as it is"
    report = json.loads((tmp_path / "models" / "evaluation.json").read_text("utf-8"))
    assert (report["data"]["images"], len(report["data"]["skipped"])) == (6, 1)
    assert "bad.png" in (tmp_path / "models" / "evaluation.html").read_text("utf-8")


def test_bad_input_is_one_line(model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "signed").mkdir()
    (tmp_path / "signed" / "model.sig").write_text("")
    one = save_classes(tmp_path / "one", "a")
    bad = save_classes(tmp_path / "bad", "abc")
    (bad / "b" / "1.png").write_bytes(b"GIF89a")
    for arguments, message in (
        (["--data", one], "holds images of one class (a)"),
        (["--data", bad], "b/1.png cannot be read as an image"),
        (["--data", tmp_path / "empty"], "there is no folder"),
        (["--data", save_classes(tmp_path / "four", "abcd", 1)], "head for 3 classes without names; the data has 4"),
        (["--data", data, "--report", tmp_path / "signed"], "is in the signed folder"),
        (["--data", data, "--report", tmp_path / "signed" / "new" / "a.html"], "is in the signed folder"),
        (["--data", data, "--preprocessing", "none"], "unknown preprocessing 'none'"),
        ([], "Missing option '--data'"),
    ):
        assert_refused(run_here("evaluate", model, *arguments, cwd=tmp_path), message, tmp_path)
    assert sorted(path.name for path in (tmp_path / "signed").iterdir()) == ["model.sig"]


def test_a_library_that_could_not_run_is_status_3(known: Any, tmp_path: Path) -> None:
    known(evaluation())
    result = run_here("evaluate", "a", "b", "--data", "digits", cwd=tmp_path)
    assert result.returncode == 3
    assert (
        "warning: converted/digits/keras was not run by bit.keras (TensorFlow): keras is not installed" in result.stderr
    )
    assert "97.21 %" in result.stdout
    assert "row 17: 3 (margin 2.1e-05), here 8 (margin 3.3e-05); logits differ by up to 4.1e-05" in result.stdout
    assert "✓ onnx: 1 of 840 images have another first class, each explained by its margin" in result.stdout
    assert "onnx: a remark" in result.stdout


def test_a_difference_is_shown_and_is_not_an_error(known: Any, tmp_path: Path) -> None:
    known(differing())
    result = run_here("evaluate", "a", "b", "--data", "digits", cwd=tmp_path)
    assert result.returncode == 0
    assert "✗ onnx: the outputs differ: relative L2 3.0e-01" in result.stdout
    assert "and 20 more, in the report" in result.stdout


def test_json_holds_everything(known: Any, tmp_path: Path) -> None:
    found = replace(differing(), warnings=())
    known(found)
    result = run_here("evaluate", "a", "--data", "digits", "--json", cwd=tmp_path)
    assert json.loads(result.stdout) == json.loads(json.dumps(found.to_dict()))
