"""What the classes of a data set are called, in the order of a published head's outputs."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).with_name("label_sets")
"""One table a set, a line for each class: its WordNet synset, a tab, the synset's words. `README.md` says whose."""

LABEL_SETS = tuple(sorted(path.stem for path in FOLDER.glob("*.tsv")))
"""`ilsvrc2012`, 1000 classes, and `imagenet21k`, 21843."""


@cache
def synsets(label_set: str) -> tuple[tuple[str, str], ...]:
    """For each class its WordNet synset, `n01440764` say, and the words, `tench, Tinca tinca`."""
    lines = (FOLDER / f"{label_set}.tsv").read_text("utf-8").splitlines()
    return tuple((synset, words) for synset, _, words in (line.partition("\t") for line in lines))


def id2label(label_set: str) -> dict[int, str]:
    """The words of each class; where several have the same, each with its synset: `crane (n02012849)`.

    A label must mean one class: `label2id` holds each once.
    """
    classes = synsets(label_set)
    counts = Counter(words for _, words in classes)
    return {
        index: words if counts[words] == 1 else f"{words} ({synset})" for index, (synset, words) in enumerate(classes)
    }
