"""Write the `README.md` of a converted folder: how to load it, and how images are prepared.

It is written before anything is verified, and is the same wherever and whenever a conversion is repeated. The model
card of a repository takes the place of it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

from bit.config import CONFIG_NAME
from bit.image_processing import PREPROCESSOR_NAME
from convert.checkpoints.epsilon import GOOGLE
from convert.checkpoints.manifest import CARD_MARK, CARD_NAME, MANIFEST_NAME, REPORT_NAME, VERIFICATION_NAME, Manifest
from convert.conversion.examples import BIT_MODEL, HERE, IMAGE, Facts, example, loading
from convert.conversion.plan import Plan
from convert.files.atomic import new_file
from convert.published.catalogue import Evaluation
from convert.published.preprocessing import evaluated_by, preprocessor

LIBRARIES = ("transformers", "timm", "onnx")
"""Layouts that the Hub lists under the library of that name (huggingface.co/docs/hub/models-libraries). The others
get the name of this converter: `keras`, for example, would promise that `keras.saving.load_model` works."""


def write_readme(plan: Plan, manifest: Manifest, folder: Path) -> None:
    """Write the page of a conversion that was just carried out."""
    with new_file(folder / CARD_NAME) as partial:
        partial.write_text(readme(plan, manifest), "utf-8")


def readme(plan: Plan, manifest: Manifest) -> str:
    """Return the page of a conversion, in Markdown."""
    parts = [
        _metadata(plan),
        _title(plan, manifest),
        _use(plan),
        _preprocessing(plan),
        _limits(plan, manifest),
        _checking(),
    ]
    return "\n\n".join(["\n".join(part) for part in parts] + [CARD_MARK]) + "\n"


def text(value: object) -> str:
    """Escape a value so that Markdown shows it unchanged."""
    return re.sub(r"([\\`*_\[\]<>&#|~$@])", r"\\\1", " ".join(str(value).split()))


def code(value: object) -> str:
    """Return a value as a code span that is also valid in a table."""
    content = " ".join(str(value).split()).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", content)), default=0))
    space = " " if content.startswith("`") or content.endswith("`") else ""
    return f"{fence}{space}{content}{space}{fence}"


def library_on_hub(layout: str) -> str:
    """Return the library under which the Hub lists a layout, or the name of this converter."""
    return layout if layout in LIBRARIES else "bit-convert"


def task_on_hub(classes: int) -> str:
    """Return the Hub's name for what a network does."""
    return "image-classification" if classes else "image-feature-extraction"


def prepared(how: Evaluation) -> str:
    """Describe the preparation of an image in a sentence."""
    size = f"{how.size}×{how.size} pixels"
    if not how.square:
        edge = math.floor(how.size / how.crop_pct)
        size = f"{edge} pixels on the shorter edge ({how.interpolation}) and cropped to {size}"
    return f"Images are resized to {size}; pixel values are scaled to [-1, 1]."


def google_words(profile: str, how: Evaluation) -> str | None:
    """Say that Google's code evaluates a model so, and how it treats small images; None for other preparations."""
    if profile != "google" or how.size <= 128:
        return None
    return (
        "This is how Google's own code evaluates the model. For data sets of images smaller than 96×96 it uses 128×128 "
        "pixels, and so does `bit`."
    )


def epsilon_words(trained: float) -> str:
    """Say with which epsilon weights were trained, if it is not Google's."""
    return (
        f"The original weights are taken to have been trained with epsilon {trained:g} of weight standardization "
        f"(Google's code has {GOOGLE:g}). No tensor shows it."
    )


def scaled_words(computed: float, trained: float) -> str:
    """Say what kernels that were scaled for another epsilon are good for."""
    return (
        f"Kernels were scaled so that libraries with the epsilon {computed:g} compute the same function as the "
        f"original weights with {trained:g}. This is for inference: it changes the norm of the kernels, and so the "
        "effective learning rate of fine-tuning."
    )


def _facts(plan: Plan) -> Facts:
    return Facts(
        name=plan.checkpoint.name,
        classes=plan.config.num_labels,
        profile=_profile(plan),
        sigmoid=plan.config.problem_type == "multi_label_classification",
        float32={step.target.dtype.name for step in plan.steps} == {"float32"},
    )


def _profile(plan: Plan) -> str:
    return plan.options.profile or "google"


def _metadata(plan: Plan) -> Iterator[str]:
    """Yield what the Hub reads, if somebody uploads the folder as it is."""
    yield "---"
    yield f"library_name: {library_on_hub(plan.layout.name)}"
    yield f"pipeline_tag: {task_on_hub(plan.config.num_labels)}"
    yield f"tags: [bit, big-transfer, bit-convert, resnetv2, {plan.layout.name}]"
    yield "---"


def _title(plan: Plan, manifest: Manifest) -> Iterator[str]:
    config, origin, layout = plan.config, manifest.origin, plan.layout
    parameters = sum(math.prod(step.target.shape) for step in plan.steps)
    classes = f"{config.num_labels} class{'es' if config.num_labels > 1 else ''}"
    head = classes if config.num_labels else "no classification head: it returns features, not labels"
    yield f"# {text(manifest.name)}\n"
    yield (
        f"[BiT (Big Transfer)](https://arxiv.org/abs/1912.11370), {text(config.architecture)}: a pre-activation ResNet "
        f"with\ngroup normalization and weight standardization, {parameters:,} parameters, {head}."
    )
    yield (
        f"{text(manifest.converter)} converted it from {code(origin.name)} (SHA-256 `{origin.sha256}`) to the layout\n"
        f"`{layout.name}`, for {layout.export.library}."
    )
    if config.id2label is not None and layout.export.labelled:
        where = CONFIG_NAME if layout.export.reads_config else "the properties of the graph"
        first, last = (code(config.id2label[index]) for index in (0, config.num_labels - 1))
        yield f"The names of the classes are in {where}, from {first} to {last}."


def _use(plan: Plan) -> Iterator[str]:
    export, facts = plan.layout.export, _facts(plan)
    yield "## How to use it\n"
    caveat = export.caveat(plan.config)
    if caveat is not None:
        yield f"{text(caveat)}. `bit` reads this folder:\n"
        export = BIT_MODEL
    packages = f"`pip install {export.install}`. " if export.install else ""
    yield f"{packages}Run this in this folder; `{IMAGE}` stands for your image."
    if "bit" in re.findall(r"^(?:import|from) (\w+)", export.loading + "\n" + export.classify, re.MULTILINE):
        yield "The Python package `bit` is part of bit-convert."
    if plan.config.num_channels != 3:
        n = plan.config.num_channels
        yield f"The network expects images with {n} channels, which this code does not make: prepare them in [-1, 1]."
    if export.classify:
        yield f"\n```python\n{example(export, facts)}```"
    if not export.classify or export.standalone:
        again = loading(plan.layout, HERE.text, plan.checkpoint.name, plan.config.num_labels)
        yield f"\n{export.library}:\n\n```python\n{again}\n```"


def _preprocessing(plan: Plan) -> Iterator[str]:
    profile, name = _profile(plan), plan.checkpoint.name
    how, values = evaluated_by(profile, name), preprocessor(profile, name)
    yield "## Preprocessing\n"
    yield prepared(how)
    if (words := google_words(profile, how)) is not None:
        yield words
    place = f", in `{PREPROCESSOR_NAME}` too" if PREPROCESSOR_NAME in plan.companions else ""
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
    yield f"As settings of the image processors of transformers and `bit`{place}:"
    yield f"\n```json\n{{\n{lines}\n}}\n```"


def _limits(plan: Plan, manifest: Manifest) -> Iterator[str]:
    config, layout, origin = plan.config, plan.layout, manifest.origin
    trained, computed = config.ws_eps, layout.computes_with(config.ws_eps)
    yield "## Limits\n"
    if computed != trained:
        yield (
            f"- {layout.export.library} standardizes weights with epsilon {computed:g}, these expect {trained:g}:\n"
            f"  it computes a slightly different function. `{VERIFICATION_NAME}`, if it is here, states the difference."
        )
    elif layout.reads_ws_eps:
        yield f"- The epsilon of weight standardization, {trained:g}, is read from `{CONFIG_NAME}`."
    if any(step.scale != 1 for step in plan.steps):
        yield f"- {scaled_words(trained, plan.checkpoint.config.ws_eps)}"
    if origin.ws_eps not in (None, GOOGLE):
        yield f"- {epsilon_words(origin.ws_eps)}"
    if origin.head.startswith("new:"):
        yield "- The head is new and all zeros: until it is trained, every class has the same probability."
    if origin.roundings:
        yield f"- The weights were rounded to {' and '.join(origin.roundings)}."
    if layout.folded:
        yield "- The kernels are standardized: the network can neither be trained nor converted back."
    yield "- Whether these weights are suitable for your task is not known here."


def _checking() -> Iterator[str]:
    yield "## How to check it\n"
    yield "This page was written together with the weights, before any verification."
    yield f"[`{MANIFEST_NAME}`]({MANIFEST_NAME}) lists how each tensor was converted, and the hash of every file."
    yield "To verify the folder, and to convert it again and compare every byte, for which the source is needed:"
    yield "\n```console\n$ bit verify .\n$ bit verify . --replay\n```\n"
    yield f"The result is in `{VERIFICATION_NAME}` and, for reading, in `{REPORT_NAME}`."
