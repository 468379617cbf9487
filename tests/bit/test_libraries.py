"""The models in the hands of the libraries that train, run and export models: each as it is installed."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from PIL import Image
from support.networks import TINY
from transformers import Trainer, TrainingArguments, pipeline

import bit
from bit import BitConfig, inference
from bit.model import BitForImageClassification as LightModel

SMALL = BitConfig(embedding_size=32, hidden_sizes=(128,), depths=(1,), num_labels=3)
"""A single unit, where graphs are made, which takes time."""
CONFIG = TINY.replace(id2label={0: "dark", 1: "grey", 2: "bright"})
SIZE = {"height": 32, "width": 32}
RANDOM = np.random.default_rng(0)
IMAGES = [
    {"pixel_values": torch.from_numpy(RANDOM.random((3, 32, 32), np.float32)) + index % 3 - 1, "labels": index % 3}
    for index in range(12)
]
X = torch.stack([image["pixel_values"] for image in IMAGES[:4]])


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Draw no bars, and start every test without graphs."""
    transformers.utils.logging.disable_progress_bar()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    transformers.utils.logging.enable_progress_bar()


def seeded(kind: Any = bit.BitForImageClassification, config: Any = CONFIG) -> Any:
    torch.manual_seed(0)
    return kind(config).eval()


def trained(folder: Path, resume: Path | None = None, **options: Any) -> Trainer:
    """Train for four steps, with a checkpoint after each two."""
    settings = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        max_steps=4,
        learning_rate=0.01,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        **options,
    )
    trainer = Trainer(
        seeded().train(),
        settings,
        train_dataset=IMAGES,  # type: ignore[arg-type]
        eval_dataset=IMAGES,  # type: ignore[arg-type]
        processing_class=bit.BitImageProcessorPil(size=SIZE),  # type: ignore[arg-type]
        compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())},
    )
    trainer.train(resume_from_checkpoint=resume and str(resume))
    return trainer


def test_trainer_trains_saves_resumes_and_loads_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = trained(tmp_path / "a", load_best_model_at_end=True, metric_for_best_model="accuracy")
    accuracy = {
        state["step"]: state["eval_accuracy"] for state in trainer.state.log_history if "eval_accuracy" in state
    }
    best = max(accuracy, key=lambda step: accuracy[step])
    assert trainer.evaluate()["eval_accuracy"] == accuracy[best]
    kept = bit.BitForImageClassification.from_pretrained(tmp_path / f"a/checkpoint-{best}")
    torch.testing.assert_close(kept.state_dict(), trainer.model.state_dict(), rtol=0, atol=0)
    last = tmp_path / "a/checkpoint-4"
    models = [kind.from_pretrained(last) for kind in (LightModel, bit.BitForImageClassification)]
    theirs, info = transformers.BitForImageClassification.from_pretrained(last, output_loading_info=True)
    assert not any(info.values())
    assert bit.BitImageProcessorPil.from_pretrained(last).size == SIZE
    for model in models:
        assert model.config == CONFIG
        torch.testing.assert_close(model(X).logits, theirs(X).logits, rtol=1e-3, atol=1e-3)
    assert not torch.equal(models[0].classifier[1].weight, seeded().classifier[1].weight), "it was trained"
    resumed = trained(tmp_path / "b", resume=tmp_path / "a/checkpoint-2").model
    torch.testing.assert_close(resumed.state_dict(), models[0].state_dict(), rtol=0, atol=0)


def test_trainer_computes_in_bfloat16(tmp_path: Path) -> None:
    model = trained(tmp_path, bf16=True).model
    assert model.dtype == torch.float32, "the weights stay as they are"
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert not torch.equal(model.classifier[1].weight, seeded().classifier[1].weight)


def test_trainer_recomputes_activations_to_the_same_weights(tmp_path: Path) -> None:
    states = [
        trained(tmp_path / str(recompute), activation_checkpointing=recompute).model.state_dict()
        for recompute in (False, True)
    ]
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [bit.BitImageProcessor, bit.BitImageProcessorPil])
def test_a_pipeline_classifies_and_is_saved(kind: Any, tmp_path: Path) -> None:
    model, processor = seeded(), kind(size=SIZE)
    image = Image.fromarray((RANDOM.random((40, 50, 3)) * 255).astype(np.uint8))
    classify = pipeline("image-classification", model=model, image_processor=processor)
    found = classify(image)
    expected = model(processor(image, return_tensors="pt").pixel_values).logits.softmax(-1)[0]
    assert {item["label"]: item["score"] for item in found} == pytest.approx(
        dict(zip(("dark", "grey", "bright"), expected.tolist(), strict=True))
    )
    assert [items[0]["label"] for items in classify([image] * 3, batch_size=2)] == [found[0]["label"]] * 3
    classify.save_pretrained(tmp_path)
    again = bit.BitForImageClassification.from_pretrained(tmp_path)
    same = pipeline("image-classification", model=again, image_processor=kind.from_pretrained(tmp_path))
    assert same(image) == found


ADAPTED = ["conv1", "conv2", "conv3", "conv", "convolution"]


def adapted(model: Any) -> Any:
    torch.manual_seed(0)
    return peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=ADAPTED, modules_to_save=["classifier"]))


def train_adapter(model: Any) -> None:
    model.train()
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], 0.05)
    for _ in range(3):
        model(pixel_values=X, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.mark.parametrize("kind", [LightModel, bit.BitForImageClassification])
def test_lora_adds_two_plain_convolutions_to_the_standardized_one(kind: Any, tmp_path: Path) -> None:
    before = seeded(kind)(X).logits
    model = adapted(seeded(kind))
    assert torch.equal(model(X).logits, before)
    train_adapter(model)
    after = model(X).logits
    assert not torch.allclose(after, before)
    layer = model.base_model.model.bit.encoder.stages[0].layers[0].conv2
    first, second = layer.lora_A["default"], layer.lora_B["default"]
    assert type(first) is type(second) is torch.nn.Conv2d
    x = torch.rand(1, 32, 8, 8)
    kernel = torch.nn.functional.conv2d(first.weight.transpose(0, 1), second.weight).transpose(0, 1)
    scale = layer.scaling["default"]
    whole = torch.nn.functional.conv2d(x, layer.base_layer.standardized() + scale * kernel, padding=1)
    torch.testing.assert_close(layer(x), whole)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(seeded(kind), tmp_path).eval()
    torch.testing.assert_close(again(X).logits, after)


def test_merging_is_refused_where_it_would_change_the_function_and_exact_after_for_inference() -> None:
    model = adapted(seeded())
    train_adapter(model)
    after = model(X).logits
    for merge in (model.merge_adapter, model.merge_and_unload, lambda: model.merge_and_unload(safe_merge=True)):
        with pytest.raises(ValueError, match="merging this adapter would change the function"):
            merge()
    assert torch.equal(model(X).logits, after)
    model.base_model.model.for_inference()
    torch.testing.assert_close(model(X).logits, after, rtol=1e-4, atol=1e-5)
    model.merge_adapter()
    torch.testing.assert_close(model(X).logits, after, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(X).logits, after, rtol=1e-4, atol=1e-5)
    assert not any("lora" in name for name in merged.state_dict())


def test_an_adapter_that_cannot_follow_a_convolution_is_refused() -> None:
    for field, message in (
        ({"global_padding": "SAME"}, "padding SAME"),
        (
            {"output_stride": 4, "depths": (1, 2)},
            "a dilation",
        ),
    ):
        with pytest.raises(ValueError, match=f"cannot follow a convolution with {message}"):
            adapted(seeded(config=CONFIG.replace(**field)))


def test_lora_trains_with_checkpointed_units_and_within_transformers(tmp_path: Path) -> None:
    model = seeded().train()
    model.gradient_checkpointing_enable()
    whole = adapted(model)
    whole(pixel_values=X, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    gradients = [weight.grad for name, weight in whole.named_parameters() if "lora_B" in name]
    assert all(gradient is not None and gradient.any() for gradient in gradients)
    own = seeded()
    own.add_adapter(peft.LoraConfig(r=4, target_modules=["conv1"]))
    own.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("kind", [LightModel, bit.BitForImageClassification])
def test_an_exported_program_computes_what_the_model_does_for_any_batch(kind: Any, tmp_path: Path) -> None:
    model = seeded(kind, SMALL)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (X,), dynamic_shapes={"pixel_values": {0: batch}})
    torch.export.save(program, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    for count in (1, 3):
        outputs = again(X[:count])
        assert type(outputs) is type(model(X))
        torch.testing.assert_close(outputs.logits, model(X[:count]).logits)


@pytest.mark.parametrize(
    ("kind", "prepared"),
    [(LightModel, True), (bit.BitForImageClassification, False), (bit.BitForImageClassification, True)],
)
def test_a_compiled_model_is_one_graph_that_is_made_once(
    kind: Any, prepared: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = seeded(kind, SMALL)
    if prepared:
        model.for_inference()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True), torch.inference_mode():
        for _ in range(3):
            torch.testing.assert_close(compiled(X).logits, model(X).logits, rtol=1e-4, atol=1e-5)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.long
def test_a_compiled_model_has_the_same_gradients() -> None:
    gradients = []
    for model in (seeded().train(), seeded().train()):
        run = torch.compile(model, fullgraph=True, backend="aot_eager") if gradients else model
        run(X, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        gradients.append([weight.grad for weight in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_on_a_cpu_for_inference_keeps_packed_kernels_instead_of_a_graph() -> None:
    """Graphs are slower there, see `for_inference`; without the private operators, a graph packs the kernels."""
    model = seeded().for_inference(compile=True)
    model(X)
    assert model.bit.embedder.convolution.packed._kept[1] is not None
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0
    assert torch.equal(model(X).logits, seeded().for_inference()(X).logits)


@pytest.mark.long
def test_without_packed_kernels_for_inference_compiles_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("inference", "pretrained"):
        monkeypatch.setattr(f"bit.{module}.operators_work", lambda: False)
    assert not inference.operators_work()
    model, plain = seeded().for_inference(compile=True), seeded().for_inference()
    with torch._dynamo.config.patch(error_on_recompile=True), torch.inference_mode(), warnings.catch_warnings():
        for _ in range(2):
            torch.testing.assert_close(model(X).logits, plain(X).logits, rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


SCRIPT = """
import sys, torch, bit
from accelerate import Accelerator

accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
config = bit.BitConfig(embedding_size=32, hidden_sizes=(128, 256), depths=(2, 1), num_labels=3)
model = bit.BitForImageClassification(config)
random = torch.Generator().manual_seed(1)
images = [{"pixel_values": torch.rand(3, 32, 32, generator=random), "labels": index % 3} for index in range(8)]
model, optimizer, loader = accelerator.prepare(
    model, torch.optim.SGD(model.parameters(), 0.01), torch.utils.data.DataLoader(images, batch_size=8 // PROCESSES)
)
for batch in loader:
    outputs = model(**batch)
    accelerator.backward(outputs.loss)
    optimizer.step()
gathered = accelerator.gather_for_metrics(outputs)
assert type(gathered) is type(outputs) and len(gathered.logits) == 8, gathered
accelerator.wait_for_everyone()
assert accelerator.num_processes == PROCESSES
accelerator.unwrap_model(model).save_pretrained(
    sys.argv[1], is_main_process=accelerator.is_main_process, state_dict=accelerator.get_state_dict(model)
)
"""


@pytest.mark.long
def test_accelerate_launch_trains_on_two_processes_as_on_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    found = []
    for count in (1, 2):
        script = tmp_path / "train.py"
        script.write_text(SCRIPT.replace("PROCESSES", str(count)))
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--num_processes"]
        options = [str(count), "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
        command = [*launch, *options, *(["--multi_gpu"] if count > 1 else []), script, tmp_path / str(count)]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        found.append(bit.BitForImageClassification.from_pretrained(tmp_path / str(count)).state_dict())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
    assert not torch.equal(found[0]["classifier.1.weight"], seeded().state_dict()["classifier.1.weight"])
