"""Names of checkpoints; repositories on the Hub are fetched over HTTP with the real client."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.bucket import Bucket, serving
from support.command import assert_refused, bit
from support.conversions import bits_of, convert
from support.hub import hub

from convert.errors import CheckpointError
from convert.progress import silent
from convert.published.catalogue import published
from convert.sources.resolve import hub_name, locate


@pytest.mark.parametrize(
    ("layout", "name"), [("transformers", "hf:me/tiny"), ("timm", "me/tiny@main"), ("google-tf2", "hf:me/tiny")]
)
def test_a_repository_converts_under_the_name_of_the_repository(
    tiny_npz: Path, tmp_path: Path, layout: str, name: str
) -> None:
    folder = convert(tiny_npz, layout, tmp_path / "out")
    (folder / "conversion.json").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"the same again, as a pickle")
    with hub({"me/tiny": folder}) as server:
        arguments = ("convert", name, "--to", "google")
        result = bit(*arguments, cwd=tmp_path, HF_HOME=str(tmp_path / "cache"), **server.environment)
    assert result.returncode == 0, result.stderr
    assert bits_of(tmp_path / "converted" / "tiny" / "google") == bits_of(tiny_npz)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:me/nothing", "hf:me/nothing could not be fetched: "),
        ("me/nothing", "there is no file 'me/nothing', and hf:me/nothing could not be fetched: "),
    ],
)
def test_a_missing_repository_gets_one_line(tmp_path: Path, name: str, message: str) -> None:
    with hub({}) as server:
        result = bit("inspect", name, cwd=tmp_path, HF_HOME=str(tmp_path / "cache"), **server.environment)
    assert_refused(result, message, tmp_path)


def test_an_unreachable_hub_gets_one_line(tmp_path: Path) -> None:
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "cache")}
    result = bit("inspect", "hf:me/tiny@main", cwd=tmp_path, **environment)
    assert_refused(result, "hf:me/tiny could not be fetched: ", tmp_path)


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("hf:timm/resnetv2_50x1_bit.goog_in21k@refs/pr/1", "resnetv2_50x1_bit.goog_in21k"),
        ("google/bit-50", "bit-50"),
        ("BiT-M-R50x1", None),
        ("timm/resnetv2_50x1_bit.goog_in21k", None),
        ("out/model.safetensors", None),
        ("../google/bit-50", None),
        ("./bit-50", None),
        ("~/bit-50", None),
        ("here/bit-50", None),
    ],
)
def test_only_a_repository_has_a_name_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: str, name: str | None
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub_name(checkpoint) == name


@pytest.mark.parametrize(
    ("name", "published_name"),
    [
        ("resnetv2_50x1_bit.goog_in21k", "BiT-M-R50x1"),
        ("timm/resnetv2_152x4_bit.goog_in21k_ft_in1k", "BiT-M-R152x4-ILSVRC2012"),
        ("resnetv2_50x1_bit.goog_distilled_in1k", "R50x1_224"),
        ("resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k_384", "R152x2_T_384"),
    ],
)
def test_a_name_of_timm_is_the_published_checkpoint_with_that_tag(
    tmp_path: Path, name: str, published_name: str
) -> None:
    item = published()[published_name]
    with serving(Bucket()) as bucket:
        assert locate(name, tmp_path, silent, bucket.address) == tmp_path / Path(item.address).name
    assert [request.path for request in bucket.requests] == [f"/{item.address}"]


def test_every_published_checkpoint_with_a_tag_has_a_name_of_its_own_in_timm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    monkeypatch.setattr("convert.sources.download.download", lambda url, path, progress: fetched.append(url))
    tagged = [item for item in published().values() if item.evaluation.tag and not item.name.endswith(".h5")]
    for item in tagged:
        locate(f"resnetv2_{item.architecture[1:]}_bit.{item.evaluation.tag}", tmp_path, silent)
    assert fetched == [item.url for item in tagged]
    assert len(set(fetched)) == len(fetched) == 15


def test_an_unknown_name_gets_the_nearest_and_the_accepted_ones(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as raised:
        locate("resnetv2_50x1_bit.goog_in22k", tmp_path, silent)
    message = str(raised.value)
    assert message.startswith("there is no file 'resnetv2_50x1_bit.goog_in22k', and it is not a known name; did you")
    assert "resnetv2_50x1_bit.goog_in21k" in message
    for accepted in ("a file or folder", "`bit list`", "timm's name", "Synthetic-R50x1", "hf:owner/name"):
        assert accepted in message


@pytest.mark.parametrize("layout", ["transformers", "timm"])
def test_a_model_loads_from_a_repository(tiny_npz: Path, tmp_path: Path, layout: str) -> None:
    folder = convert(tiny_npz, layout, tmp_path / "out")
    (folder / "conversion.json").unlink()
    program = "from bit import BitForImageClassification as M; print(M.from_pretrained('me/tiny').config.depths)"
    with hub({"me/tiny": folder}) as server:
        environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), **server.environment}
        found = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
    assert found.stdout == "(2, 1)\n", found.stderr
