"""The names of the classes of a data set, in the order of a published head's outputs."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).with_name("label_sets")
"""One table for each set, with a line for each class: WordNet synset, tab, words. See `README.md` there."""

LABEL_SETS = tuple(sorted(path.stem for path in FOLDER.glob("*.tsv")))
"""`ilsvrc2012` with 1000 classes, and `imagenet21k` with 21843."""


@cache
def synsets(label_set: str) -> tuple[tuple[str, str], ...]:
    """Return the WordNet synset and the words of each class, such as `n01440764` and `tench, Tinca tinca`."""
    lines = (FOLDER / f"{label_set}.tsv").read_text("utf-8").splitlines()
    return tuple((synset, words) for synset, _, words in (line.partition("\t") for line in lines))


def id2label(label_set: str) -> dict[int, str]:
    """Return the words of each class; classes with the same words get the synset as well: `crane (n02012849)`.

    Labels must be unique, because `label2id` of a configuration is the inverse.
    """
    classes = synsets(label_set)
    counts = Counter(words for _, words in classes)
    return {
        index: words if counts[words] == 1 else f"{words} ({synset})" for index, (synset, words) in enumerate(classes)
    }
