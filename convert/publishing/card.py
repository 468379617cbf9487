"""Write the model card, the `README.md` of a published repository."""

from __future__ import annotations

import json
import math
import re
import shlex
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bit.config import PUBLISHED
from bit.image_processing import BitImageProcessorPil
from convert.checkpoints.manifest import CARD_MARK, Manifest
from convert.layouts import LAYOUTS
from convert.network.dtypes import BY_NAME
from convert.published.catalogue import BIT, CIFAR_10, ILSVRC, find
from convert.published.preprocessing import evaluated_by, preprocessor
from convert.reporting.html import SignedBy
from convert.reporting.templates import template
from convert.sources.resolve import SYNTHETIC

if TYPE_CHECKING:
    from jinja2 import Template

LIBRARIES = ("transformers", "timm", "onnx")
"""Layouts that the Hub lists under the library of that name (huggingface.co/docs/hub/models-libraries). The others
get the name of this converter: `keras`, for example, would promise that `keras.saving.load_model` works."""

DATASETS = {ILSVRC: "ILSVRC/imagenet-1k", CIFAR_10: "uoft-cs/cifar10"}
"""Names of data sets on the Hub; ImageNet-21k and VTAB-1k are not there."""

SOURCES = {
    "timm, `results-imagenet.csv`": (
        "https://github.com/huggingface/pytorch-image-models/blob/main/results/results-imagenet.csv"
    ),
    "arXiv 2106.05237": "https://arxiv.org/abs/2106.05237",
    "big_transfer, `colabs/big_transfer_pytorch.ipynb`": (
        "https://github.com/google-research/big_transfer/blob/master/colabs/big_transfer_pytorch.ipynb"
    ),
}
"""Addresses of the sources of accuracies in the catalogue."""

CACHED = re.compile(r"(?:^|/)models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)/snapshots/")
"""Folder of a repository in huggingface_hub's cache; names of repositories never contain `--`."""


def card(manifest: Manifest, verification: dict[str, Any], repository: str, signed: SignedBy | None = None) -> str:
    """Return the card of a converted folder for `repository`, `owner/name`: YAML, then Markdown.

    `verification` is the content of `verification.json`. The training data and accuracies are those
    that the catalogue has for the name of the original checkpoint.
    """
    layout, origin = LAYOUTS[manifest.layout], manifest.origin
    item, profile = find(origin.name), manifest.options.profile or "google"
    if item is not None and item.architecture != manifest.architecture:
        item = None
    checks, timm_name = verification["checks"], item.timm_name if item is not None else None
    base = _source_repository(manifest) or (timm_name and f"timm/{timm_name}")
    shapes = {row["parameter"]: row["shape"] for row in manifest.tensors}
    return _template().render(
        manifest=manifest,
        repository=repository,
        signed=signed,
        mark=CARD_MARK,
        layout=layout,
        published=item,
        base=base if base != repository else None,
        library=layout.name if layout.name in LIBRARIES else "bit-convert",
        datasets=DATASETS,
        head_kept=origin.head == "keep",
        synthetic=origin.name in SYNTHETIC,
        named=manifest.architecture in PUBLISHED,
        sources=SOURCES,
        citation=item.citation if item is not None else BIT,
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        channels=shapes["stem/kernel"][layout.rows["stem/kernel"].axes.index("i")],
        float32={row["dtype"] for row in manifest.tensors} == {"float32"},
        scaled=any("scale" in row for row in manifest.tensors),
        roundoff=[(name, BY_NAME[name].roundoff) for name in origin.roundings],
        how=evaluated_by(profile, manifest.name),
        prepared=_settings(profile, manifest.name),
        commands=_commands(manifest),
        runs=_runs(checks),
        worst=max(checks, key=_usage),
        references=sorted({check["reference"] for check in checks}),
        verification={"tensors_exact": 0, "tensors_changed": 0, "epsilon": None, "not_run": {}, **verification},
    )


@cache
def _template() -> Template:
    filters = {"text": text, "code": code, "python": _python}
    return template("convert.publishing", "card.md.jinja", filters, keep_trailing_newline=True)


def text(value: object) -> str:
    """Escape a value so that Markdown shows it unchanged."""
    return re.sub(r"([\\`*_\[\]<>&#|~$@])", r"\\\1", " ".join(str(value).split()))


def code(value: object) -> str:
    """Return a value as a code span that is also valid in a table."""
    content = " ".join(str(value).split()).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", content)), default=0))
    space = " " if content.startswith("`") or content.endswith("`") else ""
    return f"{fence}{space}{content}{space}{fence}"


def _python(value: Any) -> str:
    """Return a Python literal, strings in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | str) else repr(value)


def _source_repository(manifest: Manifest) -> str | None:
    """Return the repository on the Hub that was converted, if the source is in huggingface_hub's cache."""
    match = CACHED.search(f"{manifest.source.path}/")
    return f"{match['owner']}/{match['name']}" if match is not None else None


def _settings(profile: str, name: str) -> str:
    """Return the arguments of `bit`'s image processors that differ from their defaults."""
    defaults, settings = BitImageProcessorPil().to_dict(), preprocessor(profile, name)
    return ", ".join(f"{key}={_python(value)}" for key, value in settings.items() if defaults.get(key) != value)


def _commands(manifest: Manifest) -> list[str]:
    """Return the commands that repeat the conversion and verify it in full."""
    options, repository = manifest.options, _source_repository(manifest)
    source = f"hf:{repository}" if repository is not None else manifest.name
    if repository is None and manifest.name not in SYNTHETIC and find(manifest.name) is None:
        source = Path(manifest.source.path).name
    values = {
        "--to": manifest.layout,
        "--head": None if options.head == "keep" else options.head,
        "--dtype": options.dtype,
        "--ws-eps": None if options.ws_eps == "keep" else options.ws_eps,
        "--profile": None if options.profile == LAYOUTS[manifest.layout].export.profile else options.profile,
    }
    words = [word for option, value in values.items() if value is not None for word in (option, value)]
    folder = Path("converted", manifest.name, manifest.layout).as_posix()
    return [shlex.join(["bit", "convert", source, *words]), shlex.join(["bit", "verify", folder])]


def _runs(checks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each run with the number of comparisons and the one that uses most of the tolerance."""
    runs: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for check in checks:
        key = tuple(check[field] for field in ("implementation", "side", "dtype", "mode"))
        runs.setdefault(key, []).append(check)
    return [{"key": key, "count": len(rows), "worst": max(rows, key=_usage)} for key, rows in runs.items()]


def _usage(check: dict[str, Any]) -> float:
    """Return the error in relation to the tolerance."""
    return float(check["error"] / (check["tolerance"] or 1))
