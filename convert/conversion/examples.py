"""Python code that classifies an image with converted weights: one text for the folder's page and the model card."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from bit.config import PUBLISHED
from bit.image_processing import BitImageProcessorPil
from convert.layouts.layout import Export, Layout
from convert.published.preprocessing import preprocessor

IMAGE = "image.jpg"
"""Stands for the user's image."""
FOLDER = re.compile(r'"([^"\n]*)\{folder\}([^"\n]*)"')
DOWNLOAD = "from huggingface_hub import snapshot_download"

BIT_MODEL = Export(
    library="bit",
    container="safetensors",
    loading='from bit import {model}\nmodel = {model}.from_pretrained("{folder}"{dtype}).for_inference()',
    models=("BitForImageClassification", "BitModel"),
    classify="from bit import BitImageProcessor\n"
    "processor = BitImageProcessor({settings})\n"
    "with torch.inference_mode():\n"
    '    output = model(**processor(image, return_tensors="pt")).{output}',
    labels="model.config.id2label",
    framework="torch",
)
"""The example of this project's own model, which reads the layouts of transformers and timm."""


@dataclass(frozen=True)
class Facts:
    """Facts on which the code for converted weights depends."""

    name: str
    """Name of the checkpoint."""
    classes: int
    """0 for a network without a head."""
    profile: str
    """Profile of the preprocessing."""
    sigmoid: bool
    """True if several classes can apply at once."""
    float32: bool
    """True if every weight is stored in float32."""


@dataclass(frozen=True)
class Place:
    """The place from which code loads converted weights: the text in a string literal, or a variable."""

    text: str
    download: bool = False
    """True if `text` is a repository on the Hub that is downloaded first, into a folder in the variable `folder`."""

    def put_into(self, code: str) -> str:
        """Replace `{folder}`, which is in string literals only."""
        if not self.download:
            return code.replace("{folder}", quoted(self.text)[1:-1])

        def variable(match: re.Match[str]) -> str:
            before, after = match.groups()
            return f'f"{before}{{folder}}{after}"' if before or after else "folder"

        return FOLDER.sub(variable, code)


HERE = Place(".")
"""The folder in which the code is run."""


def runs_in_timm(architecture: str) -> bool:
    """Return whether timm has a model of this architecture."""
    return architecture in PUBLISHED


def loading(layout: Layout, folder: str, name: str, classes: int) -> str:
    """Return the code that loads a folder, without what comes after."""
    facts = Facts(name, classes, "google", False, True)
    return _filled(layout.export, layout.export.loading, facts, Place(folder))


def example(export: Export, facts: Facts, place: Place = HERE, model: str | None = None) -> str:
    """Return code that loads the weights, prepares `image.jpg` and prints the most probable classes, or the features.

    `model` is the class to load, if it is not that of the layout.
    """
    torch, labels = export.framework == "torch", _filled(export, export.labels, facts, place)
    parts = [
        "import torch" if torch else "import numpy as np",
        f"{DOWNLOAD}\nfolder = snapshot_download({quoted(place.text)})" if place.download else "",
        "" if export.standalone else _filled(export, export.loading, facts, place, model),
        f'from PIL import Image\nimage = Image.open("{IMAGE}").convert("RGB")',
        _filled(export, export.classify, facts, place, model),
        f"labels = {' or '.join([*([labels] if labels else []), f'range({facts.classes})'])}" if facts.classes else "",
        *(_torch_end(facts) if torch else _numpy_end(facts)),
    ]
    lines = [line for part in parts for line in part.splitlines()]
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    return "\n".join([*_sorted(imports), "", *(line for line in lines if line not in imports)]) + "\n"


def settings(profile: str, name: str) -> str:
    """Return the arguments of `bit`'s image processors that differ from their defaults."""
    defaults, values = BitImageProcessorPil().to_dict(), preprocessor(profile, name)
    return ", ".join(f"{key}={literal(value)}" for key, value in values.items() if defaults.get(key) != value)


def quoted(text: str) -> str:
    """Return a Python string literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def literal(value: object) -> str:
    """Return a Python literal, strings in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | str) else repr(value)


def _filled(export: Export, code: str, facts: Facts, place: Place, model: str | None = None) -> str:
    """Replace every placeholder in a part of an example."""
    values = {
        "{model}": model or (export.models[0 if facts.classes else 1] if export.models else ""),
        "{output}": "logits" if facts.classes else "pooler_output",
        "{dtype}": "" if facts.float32 else ", dtype=torch.float32",
        "{settings}": settings(facts.profile, facts.name),
        "{name}": quoted(facts.name)[1:-1],
    }
    code = place.put_into(code)
    for placeholder, value in values.items():
        code = code.replace(placeholder, value)
    return code


def _torch_end(facts: Facts) -> list[str]:
    if not facts.classes:
        return ["print(output.flatten(1).shape)"]
    return [
        f"probabilities = output[0].{'sigmoid()' if facts.sigmoid else 'softmax(-1)'}",
        f"for probability, index in zip(*(values.tolist() for values in probabilities.topk({min(5, facts.classes)}))):",
        '    print(f"{probability:.1%}", labels[index])',
    ]


def _numpy_end(facts: Facts) -> list[str]:
    if not facts.classes:
        return ["print(np.asarray(output).shape)"]
    softmax = ["probabilities = np.exp(scores - scores.max())", "probabilities /= probabilities.sum()"]
    return [
        "scores = np.asarray(output[0], np.float64)",
        *(["probabilities = 1 / (1 + np.exp(-scores))"] if facts.sigmoid else softmax),
        f"for index in np.argsort(-probabilities)[:{min(5, facts.classes)}]:",
        '    print(f"{probabilities[index]:.1%}", labels[index])',
    ]


def _sorted(imports: Iterable[str]) -> list[str]:
    """Sort imports as ruff does: the standard library first, then by module; those of one module are joined."""
    names: dict[str, set[str]] = {}
    for line in imports:
        module, _, name = line.removeprefix("from ").partition(" import ")
        names.setdefault(module if name else line, set()).update(part.strip() for part in name.split(",") if name)
    lines = [f"from {module} import {', '.join(sorted(found))}" if found else module for module, found in names.items()]

    def key(line: str) -> tuple[bool, bool, str]:
        module = line.split()[1]
        return module not in STANDARD, line.startswith("from "), module.lower()

    ordered = sorted(lines, key=key)
    first = [line for line in ordered if line.split()[1] in STANDARD]
    return [*first, *([""] if first else []), *(line for line in ordered if line not in first)]


STANDARD = ("json", "pathlib")
"""Modules of the standard library in examples."""
