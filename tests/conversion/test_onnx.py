"""The ONNX graph, as ONNX Runtime runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from support.command import assert_refused, run_here
from support.conversions import convert, verified, with_config
from support.faults import forge
from support.networks import TINY
from support.recordings import float32_error

from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.options import ConversionOptions
from convert.conversion.onnx_graph import OPSET
from convert.errors import CheckpointError
from convert.files.base import file_sha256
from convert.network.inputs import images
from convert.network.runner import run_network
from convert.network.taps import tap_names
from convert.references.recordings import find_recordings
from convert.references.registry import FOREIGN_GRAPH, REFERENCES
from convert.references.worker import ReferenceProcess
from convert.sources.synthetic import write_npz
from convert.verification.metrics import relative_l2
from convert.verification.tap_errors import FLOAT32_FACTOR


def session(folder: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("architecture", ["R14x1", pytest.param("R50x1", marks=pytest.mark.long)])
def test_it_computes_the_recorded_outputs_of_googles_code(
    synthetic: Callable[[str], Path], tmp_path: Path, architecture: str
) -> None:
    source = synthetic(architecture)
    folder = convert(source, "onnx", tmp_path / "out")
    recordings = find_recordings(file_sha256(source))
    assert recordings is not None
    run = session(folder)
    for name, numbers in recordings.float64.inputs.items():
        pixels = np.ascontiguousarray(images(*numbers).transpose(0, 3, 1, 2))
        (logits,) = run.run(None, {"pixel_values": pixels})
        error = relative_l2(logits, recordings.float64.taps[name, "logits"][""])
        assert error < FLOAT32_FACTOR * float32_error(recordings, (name, "logits"))
    result = verified(folder, source)
    assert result.passed
    taps = [check.tap for check in result.checks if check.implementation == "ONNX Runtime"]
    with Checkpoint(folder) as converted:
        assert taps == [tap for tap in tap_names(converted.config) for _ in range(2)], "two inputs"


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 65, 97), (2, 128, 64)])
def test_batch_height_and_width_are_free(tiny_npz: Path, tmp_path: Path, shape: tuple[int, int, int]) -> None:
    run = session(convert(tiny_npz, "onnx", tmp_path / "out"))
    images = np.random.default_rng(0).uniform(-1, 1, (*shape, 3)).astype(np.float32)
    (logits,) = run.run(None, {"pixel_values": np.ascontiguousarray(images.transpose(0, 3, 1, 2))})
    with Checkpoint(tiny_npz) as checkpoint:
        *_, (_, expected) = run_network(checkpoint.oracle(), checkpoint.config, {"": images})
    assert relative_l2(logits, expected[""]) < 1e-5


def test_the_model_is_valid_and_states_labels_and_preprocessing(tiny_npz: Path, tmp_path: Path) -> None:
    labels = {str(index): label for index, label in enumerate("abcde")}
    named = with_config(convert(tiny_npz, "transformers", tmp_path / "named"), id2label=labels)
    model = onnx.load(convert(named, "onnx", tmp_path / "out") / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(properties["labels"]) == list("abcde")
    preprocessing = json.loads(properties["preprocessing"])
    assert (preprocessing["image_mean"], preprocessing["size"]) == ([0.5] * 3, {"height": 480, "width": 480})
    assert properties["architecture"] == TINY.architecture


def test_large_weights_are_stored_in_a_second_file(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = convert(tiny_npz, "onnx", tmp_path / "whole")
    monkeypatch.setattr("convert.files.onnx.MAX_EMBEDDED", 1000)
    apart = convert(tiny_npz, "onnx", tmp_path / "apart")
    beside = {"README.md", "conversion.json", "preprocessor_config.json"}
    assert {path.name for path in apart.iterdir()} == {"model.onnx", "model.onnx.data", *beside}
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)
    found, expected = (session(folder).run(None, {"pixel_values": pixels})[0] for folder in (apart, whole))
    np.testing.assert_array_equal(found, expected)
    assert verified(apart, tiny_npz).passed
    data = apart / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-4])
    forge(apart, "model.onnx.data")
    assert any("truncated" in problem for problem in verified(apart, tiny_npz).problems)


def test_a_changed_node_is_found_although_every_weight_is_right(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "onnx", tmp_path / "out")
    model = onnx.load(folder / "model.onnx")
    (pad,) = (node for node in model.graph.node if node.op_type == "Pad")
    pad.attribute.append(onnx.helper.make_attribute("mode", "edge"))
    onnx.save(model, folder / "model.onnx")
    forge(folder, "model.onnx")
    result = verified(folder, tiny_npz)
    assert result.problems == (
        "model.onnx: graph or properties do not match the network",
        f"onnxruntime did not run: {FOREIGN_GRAPH}",
    )


@pytest.fixture
def endless(tiny_npz: Path, tmp_path: Path) -> Path:
    """A conversion whose graph repeats the head 2^62 times; every weight is right, and the manifest states the file."""
    folder = convert(tiny_npz, "onnx", tmp_path / "endless")
    model = onnx.load(folder / "model.onnx")
    head = model.graph.node.pop()
    values = {name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, []) for name in ("turn", "limit")}
    keep = {name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, []) for name in ("go", "on")}
    once = onnx.helper.make_tensor_value_info("once", onnx.TensorProto.FLOAT, ["batch", TINY.num_labels])
    head.output[0] = "once"
    nodes = [head, onnx.helper.make_node("Identity", ["go"], ["on"])]
    body = onnx.helper.make_graph(nodes, "body", [values["turn"], keep["go"]], [keep["on"], once])
    limit = onnx.numpy_helper.from_array(np.array(1 << 62), "limit")
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["limit"], value=limit))
    model.graph.node.append(onnx.helper.make_node("Loop", ["limit", ""], ["logits"], body=body))
    onnx.save(model, folder / "model.onnx")
    forge(folder, "model.onnx")
    return folder


def test_a_graph_that_is_not_written_here_is_never_run(
    endless: Path, tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("convert.verification.network.ReferenceProcess", lambda *arguments: pytest.fail("it was started"))
        patch.setattr("onnxruntime.InferenceSession", lambda *arguments: pytest.fail("it was run"))
        for references in ((), ("onnxruntime",)):
            result = verified(endless, tiny_npz, references, required=references)
            assert not result.passed
            assert result.network.not_run == {"onnxruntime": FOREIGN_GRAPH}
            assert "model.onnx: graph or properties do not match the network" in result.problems
        assert run_here("inspect", endless, cwd=tmp_path).returncode == 0
        assert run_here("compare", endless, endless, cwd=tmp_path).returncode == 0
        assert_refused(run_here("convert", endless, cwd=tmp_path), "the kernels are standardized", tmp_path)
    reference = REFERENCES["onnxruntime"]
    refused = pytest.raises(CheckpointError, match=FOREIGN_GRAPH)
    with Checkpoint(endless) as checkpoint, ReferenceProcess(reference, checkpoint) as process, refused:
        process.load("float32")


@pytest.mark.parametrize("key", ["labels", "preprocessing", "architecture"])
def test_a_changed_property_is_found(tiny_npz: Path, tmp_path: Path, key: str) -> None:
    labels = {str(index): label for index, label in enumerate("abcde")}
    named = with_config(convert(tiny_npz, "transformers", tmp_path / "named"), id2label=labels)
    folder = convert(named, "onnx", tmp_path / "out")
    assert not any("class names" in warning for warning in verified(folder, named).warnings)
    model = onnx.load(folder / "model.onnx")
    for entry in model.metadata_props:
        if entry.key == key:
            entry.value = json.dumps(list("edcba"))
    onnx.save(model, folder / "model.onnx")
    forge(folder, "model.onnx")
    assert not verified(folder, named).passed


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_truncated_model_fails(tiny_npz: Path, tmp_path: Path, kept: float) -> None:
    folder = convert(tiny_npz, "onnx", tmp_path / "out")
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    result = verified(folder, tiny_npz)
    assert not result.passed


def test_it_cannot_be_converted_back(tiny_npz: Path, tmp_path: Path) -> None:
    convert(tiny_npz, "onnx", tmp_path / "out")
    assert_refused(run_here("convert", "out", cwd=tmp_path), "the kernels are standardized", tmp_path)


def test_another_dtype_is_refused_before_the_checkpoint_is_read(tmp_path: Path) -> None:
    result = run_here("convert", "nothing.npz", "--to", "onnx", "--dtype", "bfloat16", cwd=tmp_path)
    assert_refused(result, "onnx is always written in float32", tmp_path)


def test_the_epsilon_is_folded_in_so_that_compensation_changes_nothing(tiny_npz: Path, tmp_path: Path) -> None:
    plain = convert(tiny_npz, "onnx", tmp_path / "plain")
    compensated = convert(tiny_npz, "onnx", tmp_path / "compensated", options=ConversionOptions(ws_eps="compensate"))
    assert file_sha256(plain / "model.onnx") == file_sha256(compensated / "model.onnx")


def test_a_network_with_five_channels_and_no_head_has_a_graph(tmp_path: Path) -> None:
    config = TINY.replace(num_channels=5, num_labels=0)
    write_npz(tmp_path / "a.npz", config)
    folder = convert(tmp_path / "a.npz", "onnx", tmp_path / "out")
    assert [output.name for output in session(folder).get_outputs()] == ["pooled"]
    assert verified(folder, tmp_path / "a.npz").passed


def test_data_of_another_file_is_refused(tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convert.files.onnx.MAX_EMBEDDED", 1000)
    folder = convert(tiny_npz, "onnx", tmp_path / "out")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../secret"
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"stores weights in '\.\./secret'"):
        Checkpoint(folder / "model.onnx")
