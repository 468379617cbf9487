"""An evaluation as a value, for tests of how it is shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from convert.evaluation.results import Bin, Choice, Data, Disagreement, Evaluation, NotRun, Pair, Run, Scores

BINS = (
    *(Bin(0, 0.0, 0.0) for _ in range(8)),
    *(Bin(10 * place, place / 15 - 0.03, place / 15 - 0.1) for place in range(9, 16)),
)
RUN = Run(
    checkpoint="converted/digits/transformers",
    layout="transformers",
    architecture="R14x1",
    library="transformers",
    version="transformers 5.23.0, PyTorch 2.15.0",
    ws_eps=1e-8,
    dtype="float32",
    preprocessing="resized to 32×32 (bilinear), values in [-1, 1]",
    settings={"size": {"height": 32, "width": 32}},
    sigmoid=False,
    scores=Scores(0.9721, 0.9989, 0.0213, 0.1034, BINS),
    images_per_second=123.4,
    memory=844_000_000,
)
DATA = Data("digits", "val", 840, tuple("0123456789"), "0f" * 32)
PAIR = Pair(
    first=RUN.checkpoint,
    second="converted/digits/onnx",
    images=840,
    same_first_class=839,
    kl_mean=1.2e-9,
    kl_max=2.4e-8,
    largest_difference=4.1e-4,
    relative_l2=3.1e-5,
    tolerance=1.01e-2,
    causes=("rounding of float32", "epsilon 1e-08 in the first and 1e-10 here"),
    disagreements=(Disagreement("row 17", "3", Choice("3", 2.1e-5), Choice("8", 3.3e-5), 4.1e-5),),
)


def evaluation(**changes: Any) -> Evaluation:
    """Return an evaluation in two libraries, with one image that small margins moved, and one that was not run."""
    runs = (RUN, replace(RUN, checkpoint="converted/digits/onnx", library="ONNX Runtime", notes=("a remark",)))
    missing = NotRun("converted/digits/keras", "keras", "bit.keras (TensorFlow)", "keras is not installed")
    environment = {"python": "3.11.7", "date": "2026-01-02T03:04:05+00:00"}
    values: dict[str, Any] = {"runs": runs, "not_run": (missing,), "pairs": (PAIR,), "environment": environment}
    return Evaluation(DATA, **{**values, **changes})


def differing() -> Evaluation:
    """Return an evaluation in which the second checkpoint computes something else."""
    moved = tuple(replace(PAIR.disagreements[0], image=f"row {place}") for place in range(30))
    pair = replace(PAIR, relative_l2=0.3, same_first_class=810, disagreements=moved)
    skipped = replace(DATA, skipped=("data/3/a.png cannot be read as an image (it is empty)",))
    return replace(evaluation(), data=skipped, pairs=(pair,), not_run=(), warnings=("onnx states other preprocessing",))
