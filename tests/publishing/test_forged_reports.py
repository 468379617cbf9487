"""Reports that vouch for themselves are held to the manifest, the network and derived tolerances."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.pushing import edit

from convert.errors import VerificationError
from convert.progress import silent
from convert.publishing.gate import check_folder
from convert.verification.results import NO_SOURCE

Report = dict[str, Any]
# The second: huggingface_hub hands files to its HTTP client in a deprecated way.
pytestmark = [
    pytest.mark.usefixtures("pushes_at_once"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]
OTHERS = {"name": "other", "layout": "timm", "architecture": "R50x1", "classes": 7, "roundings": ["float16"]}


def other_run(report: Report, **changes: str) -> None:
    report["checks"] += [{**check, **changes} for check in report["checks"]]


def tolerate(report: Report, tolerance: float, first: int = 0) -> None:
    for check in report["checks"][first:]:
        check["tolerance"] = tolerance


FORGED: dict[str, tuple[Callable[[Report], Any], str]] = {
    "a single check": (
        lambda report: report.update(checks=[{"passed": True, "error": 0, "tolerance": 0}]),
        "is damaged .*missing required field",
    ),
    "a single whole check": (lambda report: report.update(checks=report["checks"][:1]), "does not compare every tap"),
    "a tap is missing": (lambda report: report["checks"].pop(), "does not compare every tap of every input once"),
    "a tap is there twice": (lambda report: report["checks"].append(report["checks"][0]), "does not compare every tap"),
    "the run of the oracle is missing": (
        lambda report: [check.update(implementation="timm") for check in report["checks"]],
        "has no run of oracle converted float64 end-to-end",
    ),
    "another implementation": (lambda report: other_run(report, implementation="TensorRT"), "has no run of oracle"),
    "an implementation that has no such run": (lambda report: other_run(report, dtype="float32"), "does not make"),
    "an isolated run alone": (lambda report: other_run(report, side="source", mode="isolated"), "does not make"),
    "tolerances of a million": (lambda report: tolerate(report, 1e6), r"allows oracle .* 1\.0e\+06 .* 1\.0e-09 is"),
    "one larger tolerance": (lambda report: report["checks"][4].update(tolerance=2e-9), r"where 1\.0e-09 is derived"),
    "a smaller tolerance": (lambda report: tolerate(report, 1e-10, first=9), r"where 1\.0e-09 is derived"),
    "no tensor was compared": (lambda report: report.update(tensors_exact=0), "has compared 0 of 34 tensors"),
    "tensors were changed": (lambda report: report.update(tensors_exact=0, tensors_changed=34), "only moved"),
    "a source that was not there": (
        lambda report: (report.update(tensors_exact=0), report["warnings"].append(NO_SOURCE)),
        "compares with the oracle on the source, which is not available",
    ),
    "a recording that is not there": (
        lambda report: (report.update(reference="x"), [check.update(reference="x") for check in report["checks"]]),
        "compares with x, which is not available",
    ),
    "two references": (lambda report: report["checks"][2].update(reference="x"), "with different references"),
    "other images": (lambda report: report["inputs"].update(square="0" * 64), "was computed on other images"),
    "a diagnosis": (lambda report: report.update(crashed=["timm"]), "a reference that failed"),
    "pixels with a larger tolerance": (
        lambda report: report["pixels"][0].update(error=90.0, tolerance=100.0),
        "other differences of pixels",
    ),
    "no pixels": (lambda report: report.update(pixels=[]), "does not compare the pixels"),
    "no classes": (lambda report: report.update(agreements=[]), "does not compare the classes"),
    "more images": (lambda report: report["agreements"][0].update(images=100, top1=100), "the classes of every image"),
    "another epsilon": (lambda report: report["epsilon"].update(epsilon=1e-10), "states another epsilon"),
    "no effect of the epsilon": (lambda report: report.update(epsilon=None), "states another epsilon"),
    "an unknown field": (lambda report: report.update(trust="me"), "unknown field trust"),
    "a field that contradicts the rows": (
        lambda report: report.update(model_passed=False),
        "contradicts itself in mod",
    ),
} | {
    f"another {name}": (
        lambda report, name=name, value=value: report.update({name: value}),
        f"states other|another {name}",
    )
    for name, value in OTHERS.items()
}


@pytest.mark.parametrize(("change", "message"), FORGED.values(), ids=FORGED)
def test_a_report_that_vouches_for_itself_is_refused(
    folder: Path, change: Callable[[Report], Any], message: str
) -> None:
    edit(folder, change)
    with pytest.raises(VerificationError, match=message) as raised:
        check_folder(folder, silent)
    assert "\n" not in str(raised.value)
