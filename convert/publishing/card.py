"""Write the model card, the `README.md` of a published repository."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bit.config import CONFIG_NAME
from convert.checkpoints.epsilon import GOOGLE, OPTION
from convert.checkpoints.manifest import CARD_MARK, Manifest, Origin
from convert.conversion.examples import BIT_MODEL, Facts, Place, example, literal, loading, runs_in_timm
from convert.conversion.readme import (
    code,
    epsilon_words,
    google_words,
    library_on_hub,
    prepared,
    scaled_words,
    task_on_hub,
    text,
)
from convert.layouts import LAYOUTS
from convert.layouts.layout import Layout
from convert.network.dtypes import BY_NAME
from convert.published.catalogue import BIT, CIFAR_10, ILSVRC, Published, find, published
from convert.published.preprocessing import evaluated_by
from convert.publishing.gate import Checked
from convert.references.recordings import SHIPPED, RecordedCheckpoint
from convert.reporting.html import SignedBy
from convert.reporting.templates import template
from convert.sources.provenance import repository_of
from convert.sources.resolve import SYNTHETIC

if TYPE_CHECKING:
    from jinja2 import Template

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

NOTHING = Checked()


def card(
    manifest: Manifest,
    verification: dict[str, Any],
    repository: str,
    signed: SignedBy | None = None,
    *,
    checked: Checked = NOTHING,
) -> str:
    """Return the card of a converted folder for `repository`, `owner/name`: YAML, then Markdown.

    `verification` is the content of `verification.json`. What the catalogue has for the name of the original
    checkpoint, such as training data and accuracies, is claimed only if `checked` shows that the source is that
    file: a name shows nothing.
    """
    layout, origin, profile = LAYOUTS[manifest.layout], manifest.origin, manifest.options.profile or "google"
    item, namesake = _fitting(_fetched(manifest, checked), manifest), _fitting(find(origin.name), manifest)
    known = item or namesake
    synthetic, base = _is_synthetic(origin), repository_of(checked.address)
    if base is None and item is not None and item.timm_name is not None:
        base = f"timm/{item.timm_name}"
    checks = verification["checks"]
    facts = Facts(
        manifest.name,
        manifest.classes,
        profile,
        sigmoid=origin.head == "keep" and known is not None and known.problem_type is not None,
        float32={row["dtype"] for row in manifest.tensors} == {"float32"},
    )
    shapes = {row["parameter"]: row["shape"] for row in manifest.tensors}
    return _template().render(
        manifest=manifest,
        repository=repository,
        signed=signed,
        mark=CARD_MARK,
        layout=layout,
        checked=checked,
        published=item,
        namesake=namesake if item is None else None,
        sigmoid=facts.sigmoid,
        loading=loading(layout, repository.split("/")[-1], manifest.name, manifest.classes),
        code_for=_code(layout, facts, repository, runs_in_timm(manifest.architecture)),
        base=base if base != repository else None,
        library=library_on_hub(layout.name),
        task=task_on_hub(manifest.classes),
        datasets=DATASETS,
        head_kept=origin.head == "keep",
        synthetic=synthetic,
        named=runs_in_timm(manifest.architecture),
        sources=SOURCES,
        citation=item.citation if item is not None else BIT,
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        channels=shapes["stem/kernel"][layout.rows["stem/kernel"].axes.index("i")],
        google=GOOGLE,
        trained=origin.ws_eps or GOOGLE,
        scaled=any("scale" in row for row in manifest.tensors),
        roundoff=[(name, BY_NAME[name].roundoff) for name in origin.roundings],
        preparation=prepared(evaluated_by(profile, manifest.name)),
        google_words=google_words(profile, evaluated_by(profile, manifest.name)),
        scaled_words=scaled_words(manifest.ws_eps, origin.ws_eps or GOOGLE),
        epsilon_words=epsilon_words(origin.ws_eps or GOOGLE),
        commands=_commands(manifest, checked, by_name=synthetic or item is not None),
        runs=_runs(checks),
        worst=max(checks, key=_usage),
        references=sorted({check["reference"] for check in checks}),
        verification={"tensors_exact": 0, "tensors_changed": 0, "epsilon": None, "not_run": {}, **verification},
    )


@cache
def _template() -> Template:
    filters = {"text": text, "code": code, "python": literal}
    return template("convert.publishing", "card.md.jinja", filters, keep_trailing_newline=True)


def _fetched(manifest: Manifest, checked: Checked) -> Published | None:
    """Return the published checkpoint that was converted, by the place from which it was fetched and not by the name.

    A repository of timm counts, which holds the same weights. What came before the source of an earlier
    conversion is not shown.
    """
    if manifest.origin.sha256 != manifest.source.sha256:
        return None
    repository = repository_of(checked.address) or ""
    if repository.startswith("timm/"):
        return find(repository)
    return next((item for item in published().values() if item.url == checked.address), None)


def _fitting(item: Published | None, manifest: Manifest) -> Published | None:
    """Return a published checkpoint unless it has another architecture than the conversion."""
    return item if item is not None and item.architecture == manifest.architecture else None


def _is_synthetic(origin: Origin) -> bool:
    """Return whether the original checkpoint is a seeded one, by the SHA-256 that is kept with the recordings."""
    if origin.name not in SYNTHETIC:
        return False
    try:
        return RecordedCheckpoint.read(SHIPPED / origin.name).sha256 == origin.sha256
    except (OSError, ValueError):
        return False


def _code(layout: Layout, facts: Facts, repository: str, named: bool) -> dict[str, str]:
    """Return the code of each library that loads the layout from a repository, by the library's name."""
    if layout.name not in ("transformers", "timm"):
        return {layout.name: example(layout.export, facts, Place(repository, download=True))}
    found = {"bit": example(BIT_MODEL, facts, Place(repository, download=True))}
    if layout.name == "transformers" or named:
        model = "AutoModelForImageClassification" if facts.classes else "AutoModel"
        found["transformers"] = example(LAYOUTS["transformers"].export, facts, Place(repository), model)
    if named:
        timm = LAYOUTS["timm"].export
        address = f"local-dir:converted/{repository.split('/')[-1]}/timm"
        address = f"hf-hub:{repository}" if layout.name == "timm" else address
        loading = timm.loading.replace("local-dir:{folder}", "{folder}")
        found["timm"] = example(replace(timm, loading=loading), facts, Place(address))
    return found


def _commands(manifest: Manifest, checked: Checked, by_name: bool) -> list[str]:
    """Return the commands that repeat the conversion, of the source `by_name` or of a file, and verify it in full."""
    options, repository = manifest.options, repository_of(checked.address)
    source = manifest.name if by_name else Path(manifest.source.path).name
    if repository is not None:
        source = f"hf:{repository}"
    origin = manifest.origin
    other = origin.ws_eps not in (None, GOOGLE) and origin.sha256 == manifest.source.sha256
    values = {
        "--to": manifest.layout,
        OPTION: f"{origin.ws_eps:g}" if other else None,
        "--head": None if options.head == "keep" else options.head,
        "--labels": None if options.labels is None else CONFIG_NAME,
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
