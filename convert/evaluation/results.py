"""The values that an evaluation returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bit import __version__

SCHEMA = 1
"""Version of the format of `evaluation.json`."""


@dataclass(frozen=True)
class Data:
    """The images that were classified."""

    name: str
    """The folder or name that was given."""
    split: str | None
    """The split that was asked for."""
    images: int
    classes: tuple[str, ...]
    fingerprint: str
    """SHA-256 over the classes, and over name, label and bytes of each image."""
    skipped: tuple[str, ...] = ()
    """One line for each image that was left out because it cannot be read."""


@dataclass(frozen=True)
class Bin:
    """The images whose confidence is in one interval."""

    images: int
    confidence: float
    """Mean probability of the first class, 0 without images."""
    accuracy: float
    """Share of images whose first class is right, 0 without images."""


@dataclass(frozen=True)
class Scores:
    """How well a checkpoint classifies, in float64 from its logits."""

    top1: float
    """Share of images whose first class is right."""
    top5: float | None
    """Share of images whose class is among the first five; None for five classes or fewer."""
    ece: float
    """Expected calibration error in 15 bins of equal width (Guo et al. 2017, arXiv 1706.04599, equation 3)."""
    nll: float
    """Mean negative log-likelihood of the right class, in nats; with a sigmoid head, binary cross-entropy summed over
    the classes."""
    bins: tuple[Bin, ...]
    """The bins of the calibration error, in order of confidence."""


@dataclass(frozen=True)
class Run:
    """One checkpoint, run by its library."""

    checkpoint: str
    """As it was named."""
    layout: str
    architecture: str
    library: str
    version: str
    ws_eps: float | None
    """Epsilon with which kernels are standardized; None if they are in the file, and no epsilon is stated."""
    dtype: str
    """Dtype of the stored weights; all libraries compute in float32."""
    preprocessing: str
    """How images became pixels, in words."""
    settings: Mapping[str, Any] | None
    """The same as the content of a `preprocessor_config.json`; None for a pipeline of the library's own."""
    sigmoid: bool
    """True for a head with a sigmoid for each class (`multi_label_classification`)."""
    scores: Scores
    images_per_second: float
    """Images a second of the network alone, without preprocessing, loading and compiling."""
    memory: int
    """Largest resident memory of the process, in bytes."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class NotRun:
    """A checkpoint that its library could not run."""

    checkpoint: str
    layout: str
    library: str
    reason: str


@dataclass(frozen=True)
class Choice:
    """The first class of an image."""

    label: str
    margin: float
    """Difference between the two largest logits."""


@dataclass(frozen=True)
class Disagreement:
    """An image to which two checkpoints give different first classes."""

    image: str
    label: str
    """The right class."""
    first: Choice
    second: Choice
    largest_difference: float
    """Largest difference of a logit of this image. A difference turns a margin of at most twice as much."""


@dataclass(frozen=True)
class Pair:
    """A checkpoint compared with the first one, on the same images."""

    first: str
    second: str
    images: int
    same_first_class: int
    """Number of images to which both give the same first class."""
    kl_mean: float
    """Mean Kullback-Leibler divergence of the second's probabilities from the first's, in nats."""
    kl_max: float
    largest_difference: float
    """Largest difference of a logit of any image."""
    relative_l2: float
    """Relative L2 difference of all logits."""
    tolerance: float | None
    """Largest relative difference that `causes` explain; None for other pixels, which explain any."""
    causes: tuple[str, ...]
    """Known reasons why two right conversions differ."""
    disagreements: tuple[Disagreement, ...] = ()

    @property
    def explained(self) -> bool:
        """True if the logits differ by no more than the causes explain, so that small margins alone changed classes."""
        return self.tolerance is None or self.relative_l2 <= self.tolerance


@dataclass(frozen=True)
class Evaluation:
    """The answers of all checkpoints."""

    data: Data
    preprocessing: str = "same"
    """`same`, `each` or `library`, as it was asked for."""
    runs: tuple[Run, ...] = ()
    not_run: tuple[NotRun, ...] = ()
    pairs: tuple[Pair, ...] = ()
    warnings: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """True if every checkpoint was run."""
        return not self.not_run

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `evaluation.json`."""
        pairs = [{**asdict(pair), "explained": pair.explained} for pair in self.pairs]
        return {
            "schema": SCHEMA,
            "evaluator": f"bit-convert {__version__}",
            "complete": self.complete,
            **asdict(self),
            "pairs": pairs,
        }
