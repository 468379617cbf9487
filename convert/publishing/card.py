"""The model card: the `README.md` of a published repository."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

from bit.config import PUBLISHED
from bit.image_processing import BitImageProcessorPil
from convert.checkpoints.manifest import Manifest
from convert.layouts import LAYOUTS
from convert.layouts.timm import MODELS
from convert.network.dtypes import BY_NAME
from convert.published.catalogue import BIT, CIFAR_10, ILSVRC, Accuracy, Published, published
from convert.published.preprocessing import evaluated_by, preprocessor
from convert.reporting.templates import template
from convert.sources.resolve import SYNTHETIC

TEMPLATE = "card.md.jinja"

LIBRARIES = {"transformers": "transformers", "timm": "timm", "onnx": "onnx"}
"""What the Hub calls the library that reads a layout (huggingface.co/docs/hub/models-libraries). The others are
read by this converter alone: `keras`, say, would promise what `keras.saving.load_model` cannot do with weights."""

DATASETS = {ILSVRC: "ILSVRC/imagenet-1k", CIFAR_10: "uoft-cs/cifar10"}
"""Data sets that lie on the Hub. ImageNet-21k and VTAB-1k do not, under names of their own."""

SOURCES = {
    "timm, `results-imagenet.csv`": (
        "https://github.com/huggingface/pytorch-image-models/blob/main/results/results-imagenet.csv"
    ),
    "arXiv 2106.05237": "https://arxiv.org/abs/2106.05237",
    "big_transfer, `colabs/big_transfer_pytorch.ipynb`": (
        "https://github.com/google-research/big_transfer/blob/master/colabs/big_transfer_pytorch.ipynb"
    ),
}
"""Where the accuracies in `zoo` can be looked up."""

CACHED = re.compile(r"(?:^|/)models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)/snapshots/")
"""The folder of a repository in huggingface_hub's cache; names of repositories have no `--` of their own."""


def card(record: Manifest, verification: dict[str, Any], repository: str) -> str:
    """The card of a converted folder that is to lie in `repository`, `owner/name`: YAML, then Markdown.

    `verification` is the content of `verification.json`. Equal values give equal text. What is said
    of data and accuracy is what `zoo` knows of the checkpoint's name.
    """
    filters = {"text": text, "code": code, "python": _python}
    layout, origin = LAYOUTS[record.layout], record.origin
    known, profile = _published(record), record.changes.profile or "google"
    head_kept, agreements = origin.head == "keep", verification.get("agreements", [])
    return template("convert.publishing", TEMPLATE, filters, keep_trailing_newline=True).render(
        metadata=_metadata(record, known, repository),
        record=record,
        repository=repository,
        layout=layout,
        known=known,
        synthetic=origin.name in SYNTHETIC,
        named=record.architecture in PUBLISHED,
        new_head=origin.head.startswith("new:"),
        labelled=known is not None and known.labels is not None and head_kept,
        sigmoid=known is not None and known.problem_type is not None and head_kept,
        accuracies=known.accuracies if known is not None and head_kept else (),
        sources=SOURCES,
        citation=known.citation if known is not None else BIT,
        parameters=sum(math.prod(row["shape"]) for row in record.tensors),
        channels=_shape(record, "stem/kernel")[layout.rows["stem/kernel"].axes.index("i")],
        weights_name=layout.weights_name.format(name=record.name),
        float32={row["dtype"] for row in record.tensors} == {"float32"},
        scaled=any("scale" in row for row in record.tensors),
        roundoff=[(name, BY_NAME[name].roundoff) for name in origin.roundings],
        how=evaluated_by(profile, record.name),
        profile=profile,
        prepared=_settings(profile, record.name),
        commands=_commands(record),
        runs=_runs(verification["checks"]),
        references=sorted({str(check.get("reference")) for check in verification["checks"]}),
        images=[sum(each[count] for each in agreements) for count in ("images", "top1", "top5")],
        said={"tensors_proven": 0, "tensors_changed": 0, "epsilon": None, "not_run": {}, **verification},
    )


def text(value: object) -> str:
    """A value that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>&#|~$@])", r"\\\1", " ".join(str(value).split()))


def code(value: object) -> str:
    """A value as a span of code, in a table too, whatever it holds."""
    content = " ".join(str(value).split()).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", content)), default=0))
    space = " " if content.startswith("`") or content.endswith("`") else ""
    return f"{fence}{space}{content}{space}{fence}"


def _python(value: str) -> str:
    """As Python writes it, in double quotes."""
    return json.dumps(value, ensure_ascii=False)


def _published(record: Manifest) -> Published | None:
    """What Google published under the name of the origin, or under timm's name for the same weights."""
    name, found = record.origin.name, published()
    item = found.get(name) or next((item for item in found.values() if _timm_name(item) == name), None)
    return item if item is not None and item.architecture == record.architecture else None


def _timm_name(item: Published) -> str | None:
    """What timm calls the same weights; None where it has none, or where that is not known, as of an `.h5` file."""
    tag = item.evaluation.tag
    return f"{MODELS[item.architecture]}.{tag}" if tag and not item.name.endswith(".h5") else None


def _source_repository(record: Manifest) -> str | None:
    """The repository on the Hub that it was converted from, as the path of its files says."""
    match = CACHED.search(f"{record.source.path}/")
    return f"{match['owner']}/{match['name']}" if match is not None else None


def _metadata(record: Manifest, known: Published | None, repository: str) -> str:
    """The card's YAML.

    `base_model` is the repository that was converted; of a file that Google published it is timm's
    repository of the same original weights, because Google's own are not on the Hub. How the two are
    related is said of rounded weights alone: for a mere conversion the Hub has no word.
    """
    from huggingface_hub import ModelCardData

    task = "image-classification" if record.classes else "image-feature-extraction"
    base = _source_repository(record)
    if base is None and known is not None and (timm_name := _timm_name(known)) is not None:
        base = f"timm/{timm_name}"
    if base == repository:
        base = None
    # The weights for which a figure was published, not those made of them.
    as_published = record.origin.head == "keep" and not record.origin.roundings
    accuracies = known.accuracies[-1:] if known is not None and as_published else ()
    data = ModelCardData(
        license=known.license if known is not None else "apache-2.0",
        library_name=LIBRARIES.get(record.layout, "bit-convert"),
        pipeline_tag=task,
        tags=["bit", "big-transfer", "bit-convert", task, "resnetv2", record.layout],
        datasets=[DATASETS[name] for name in known.data if name in DATASETS] or None if known is not None else None,
        base_model=base,
        base_model_relation="quantized" if base is not None and record.origin.roundings else None,
        model_name=record.name if accuracies else None,
        eval_results=[_result(accuracy, task) for accuracy in accuracies] or None,
    )
    return data.to_yaml(original_order=["license", "library_name", "pipeline_tag", "tags", "datasets", "base_model"])


def _result(accuracy: Accuracy, task: str) -> Any:
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type=task,
        dataset_type=DATASETS[accuracy.dataset],
        dataset_name=accuracy.dataset,
        metric_type="accuracy",
        metric_name=f"{accuracy.metric} accuracy in percent, {accuracy.resolution}×{accuracy.resolution} pixels",
        metric_value=accuracy.value,
        source_name=accuracy.source.replace("`", ""),
        source_url=SOURCES[accuracy.source],
    )


def _shape(record: Manifest, parameter: str) -> list[int]:
    return next(list(row["shape"]) for row in record.tensors if row["parameter"] == parameter)


def _settings(profile: str, name: str) -> str:
    """How images are prepared, as arguments of `bit`'s image processors: what differs from their defaults."""
    usual = BitImageProcessorPil().to_dict()
    settings = preprocessor(profile, name)
    return ", ".join(f"{key}={_python_value(value)}" for key, value in settings.items() if usual.get(key) != value)


def _python_value(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | str) else repr(value)


def _commands(record: Manifest) -> list[str]:
    """What to type to convert the same again, and to verify it in full."""
    changes, layout = record.changes, LAYOUTS[record.layout]
    repository = _source_repository(record)
    source = f"hf:{repository}" if repository is not None else record.name
    if repository is None and record.name not in SYNTHETIC and record.name not in published():
        source = Path(record.source.path).name
    options = {
        "--to": record.layout,
        "--head": None if changes.head == "keep" else changes.head,
        "--dtype": changes.dtype,
        "--ws-eps": None if changes.ws_eps == "keep" else changes.ws_eps,
        "--profile": None if changes.profile == layout.profile else changes.profile,
    }
    given = [word for option, value in options.items() if value is not None for word in (option, value)]
    folder = Path("converted", record.name, record.layout).as_posix()
    return [shlex.join(["bit", "convert", source, *given]), shlex.join(["bit", "verify", folder])]


def _runs(checks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each run what ran, how many comparisons were made, and the one that uses most of its tolerance."""
    runs: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for check in checks:
        key = tuple(check.get(field) for field in ("implementation", "side", "dtype", "mode"))
        runs.setdefault(key, []).append(check)
    return [
        {"key": key, "count": len(each), "worst": max(each, key=lambda check: check["error"] / (check["budget"] or 1))}
        for key, each in runs.items()
    ]
