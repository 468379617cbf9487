"""Gradients of PyTorch and JAX agree with each other and with Google's recorded steps; a wrong one is located."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from support import conversions
from support.memory import seeded
from support.networks import TINY
from torch import Tensor
from torch.nn import functional

import convert
from bit.layers import StandardizedConv2d
from convert.checkpoints.manifest import Manifest
from convert.network.gradients import Differentiable
from convert.network.oracle import Oracle
from convert.network.parameters import parameters
from convert.network.taps import parts
from convert.progress import silent
from convert.references import flax, pytorch
from convert.references.registry import REFERENCES
from convert.references.training import FOLDER, TrainingRecording, repeat_steps
from convert.reporting.html import render
from convert.reporting.text import summary
from convert.verification import gradients
from convert.verification.gradients import compare_gradients
from convert.verification.metrics import relative_l2
from convert.verification.results import END_TO_END, ISOLATED, RECORDED_STEPS, GradientCheck, StoredVerification

RECORDED = sorted(path.stem for path in FOLDER.glob("*.safetensors"))


@pytest.fixture(scope="module")
def reference() -> Differentiable:
    """JAX's gradients of `TINY`, each part compiled once."""
    return flax.load(seeded(TINY), "float64")  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "INPUT", (3, 2, 49, 32))
    monkeypatch.setattr("jax.clear_caches", lambda: None)  # or JAX compiles everything again for each test


def compared(found: Differentiable, reference: Differentiable) -> list[GradientCheck]:
    return compare_gradients(found, reference, Oracle(seeded(TINY).weights, TINY), silent)


def test_the_recordings_are_there() -> None:
    assert RECORDED == ["R14x1-mixup-split", "R14x1-plain", "R14x1-schedule"]


@pytest.mark.long  # the engine of `bit finetune` takes the same steps in tests/bit/finetuning
@pytest.mark.parametrize("name", RECORDED)
def test_googles_training_steps_are_repeated(name: str) -> None:
    recording = TrainingRecording.read(FOLDER / f"{name}.safetensors")
    pairs = repeat_steps(recording, pytorch.load)
    assert {"loss", "logits_after", *(item.name for item in parameters(recording.config))} == set(pairs)
    assert {name: error for name, pair in pairs.items() if not (error := relative_l2(*pair)) < 1e-9} == {}


@pytest.mark.long
@pytest.mark.parametrize("name", RECORDED)
def test_jax_repeats_googles_training_steps(name: str) -> None:
    pairs = repeat_steps(TrainingRecording.read(FOLDER / f"{name}.safetensors"), flax.load)
    assert {name: error for name, pair in pairs.items() if not (error := relative_l2(*pair)) < 1e-9} == {}


def test_every_gradient_agrees(reference: Differentiable) -> None:
    checks = compared(pytorch.load(seeded(TINY), "float64"), reference)  # type: ignore[arg-type]
    names = {item.name for item in parameters(TINY)} | {f"{part.prefix}/input" for part in parts(TINY)}
    for mode in (END_TO_END, ISOLATED):
        assert {check.parameter for check in checks if check.mode == mode} - {"loss"} == names
    losses = [(check.implementation, check.reference) for check in checks if check.parameter == "loss"]
    assert losses == [("bit (PyTorch)", "oracle"), ("bit.flax (JAX)", "oracle")]
    assert max(check.error for check in checks) < 1e-12


def test_a_network_without_a_head_has_gradients(reference: Differentiable) -> None:
    headless = seeded(TINY.replace(num_labels=0, id2label=None))
    pair = [module.load(headless, "float64") for module in (pytorch, flax)]  # type: ignore[attr-defined]
    checks = compare_gradients(*pair, Oracle(headless.weights, headless.config), silent)
    assert len(checks) == 2 * (len(parameters(headless.config)) + len(parts(headless.config))) + 2
    assert max(check.error for check in checks) < 1e-12


def _detached_mean(layer: StandardizedConv2d) -> Tensor:
    variance, mean = torch.var_mean(layer.weight, dim=(1, 2, 3), correction=0, keepdim=True)
    standardized: Tensor = (layer.weight - mean.detach()) / torch.sqrt(variance + layer.eps)
    return standardized


def _detached_variance(layer: StandardizedConv2d) -> Tensor:
    variance, mean = torch.var_mean(layer.weight, dim=(1, 2, 3), correction=0, keepdim=True)
    standardized: Tensor = (layer.weight - mean) / torch.sqrt(variance + layer.eps).detach()
    return standardized


def _unbiased_variance(layer: StandardizedConv2d) -> Tensor:
    variance, mean = torch.var_mean(layer.weight, dim=(1, 2, 3), correction=1, keepdim=True)
    standardized: Tensor = (layer.weight - mean) / torch.sqrt(variance + layer.eps)
    return standardized


def _other_epsilon(layer: StandardizedConv2d) -> Tensor:
    return functional.layer_norm(layer.weight, layer.weight.shape[1:], eps=1e-8)


@pytest.mark.parametrize(
    ("part", "kernel", "wrong"),
    [
        ("root_block", "stem", _detached_mean),
        ("root_block", "stem", _other_epsilon),
        ("block1/unit02", "block1/unit02/conv2", _unbiased_variance),
        ("block2/unit01", "block2/unit01/conv2", _detached_variance),
        ("block2/unit01", "block2/unit01/conv2", _other_epsilon),
    ],
)
def test_a_wrong_gradient_is_located(
    reference: Differentiable, part: str, kernel: str, wrong: Callable[[StandardizedConv2d], Tensor]
) -> None:
    loaded = pytorch.load(seeded(TINY), "float64")  # type: ignore[arg-type]
    bit: Any = loaded.network.get_submodule("bit")
    stages = {f"block{n}": stage.layers for n, stage in enumerate(bit.encoder.stages, 1)}
    layer = bit.embedder.convolution if kernel == "stem" else stages[part[:6]][int(part[-2:]) - 1].conv2
    layer.standardized = MethodType(wrong, layer)
    failed = [check for check in compared(loaded, reference) if not check.passed]
    assert {check.part for check in failed if check.mode == ISOLATED} == {part}
    assert f"{kernel}/kernel" in {check.parameter for check in failed if check.mode == ISOLATED}


def test_a_verification_compares_gradients(tiny: Path, tiny_npz: Path) -> None:
    """In processes; every number is in the terminal, in `verification.json` and on the page."""
    result = convert.verify(tiny, source=tiny_npz, references=["pytorch"], gradients=True)
    assert result.passed
    assert {check.mode for check in result.gradients} == {END_TO_END, ISOLATED, RECORDED_STEPS}
    assert StoredVerification.decode((tiny / "verification.json").read_bytes()).verification == result
    assert sum("gradients, bit (PyTorch)" in line for line in summary(result)) == 3
    wrong = replace(result.gradients[-1], error=1.0)
    changed = replace(result, gradients=(*result.gradients[:-1], wrong))
    assert not changed.passed
    assert StoredVerification.decode(json.dumps(changed.to_dict()).encode()).failed == 1
    (line,) = [line for line in summary(changed) if "differ from" in line]
    assert wrong.part in line
    manifest = Manifest.read(tiny)
    assert manifest is not None
    assert f"differ, in {wrong.part}." in render(changed, manifest)
    assert '<h2 id="gradients">' in render(changed, manifest)
    assert "#gradients" not in render(replace(result, gradients=()), manifest)


@pytest.mark.parametrize(("reference", "extra"), [("pytorch", "torch"), ("flax", "jax")])
def test_a_missing_framework_is_a_usage_error_that_names_the_extra(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, reference: str, extra: str
) -> None:
    monkeypatch.setitem(REFERENCES, reference, replace(REFERENCES[reference], needs=("no_such_package",)))
    with pytest.raises(convert.UsageError, match=rf"no_such_package is not installed; .*\[{extra}\]"):
        convert.verify(tiny, references=["timm"], gradients=True)


def test_a_graph_has_no_gradients(tiny_npz: Path, tmp_path: Path) -> None:
    graph = conversions.convert(tiny_npz, "onnx", tmp_path / "graph")
    with pytest.raises(convert.UsageError, match="standardized kernels, which have no gradients;"):
        convert.verify(graph, source=tiny_npz, gradients=True)
