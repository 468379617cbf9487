"""The class names are those of timm's tables."""

from __future__ import annotations

import pytest

from convert.published.labels import FOLDER, LABEL_SETS, id2label, synsets

TIMM = {"ilsvrc2012": "imagenet-1k", "imagenet21k": "imagenet-21k-goog"}
"""timm's name of each set."""


def timm_table(label_set: str) -> str:
    """Return the table as timm has it; `python tests/published/test_label_sets.py` writes it."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo(TIMM[label_set])
    return "".join(f"{name}\t{info.label_name_to_description(name)}\n" for name in info.label_names())


def test_the_sets_are_those_of_the_published_heads() -> None:
    from convert.published.catalogue import published

    assert set(LABEL_SETS) == {item.labels for item in published().values()} - {None}
    for item in published().values():
        assert item.labels is None or len(synsets(item.labels)) == item.classes


@pytest.mark.parametrize("label_set", LABEL_SETS)
def test_every_class_has_timms_name_in_the_same_order(label_set: str) -> None:
    assert (FOLDER / f"{label_set}.tsv").read_text("utf-8") == timm_table(label_set)


@pytest.mark.parametrize("label_set", LABEL_SETS)
def test_classes_with_the_same_words_get_the_synset_too(label_set: str) -> None:
    labels, classes = id2label(label_set), synsets(label_set)
    assert list(labels) == list(range(len(classes)))
    assert len(set(labels.values())) == len(classes), "label2id would lose a class"
    for index, (synset, words) in enumerate(classes):
        shared = sum(words == other for _, other in classes) > 1 if labels[index] != words else False
        assert labels[index] == (f"{words} ({synset})" if shared else words)


def test_known_classes_have_their_index() -> None:
    ilsvrc, imagenet = id2label("ilsvrc2012"), id2label("imagenet21k")
    assert (ilsvrc[0], ilsvrc[285], ilsvrc[999]) == ("tench, Tinca tinca", "Egyptian cat", TOILET_TISSUE)
    assert (ilsvrc[134], ilsvrc[517]) == ("crane (n02012849)", "crane (n03126707)")
    assert imagenet[9205] == "picture, image, icon, ikon"
    assert [index for index, (synset, _) in enumerate(synsets("imagenet21k")) if synset in EXTRA] == [9205, 15027]


TOILET_TISSUE = "toilet tissue, toilet paper, bathroom tissue"
EXTRA = {"n03931044", "n09859684"}
"""Classes of Google's that are not in the release of autumn 2011, which timm calls `imagenet-22k`."""


def test_googles_order_is_that_of_the_release_with_two_more_classes() -> None:
    from timm.data import ImageNetInfo

    released = ImageNetInfo("imagenet-22k").label_names()
    assert [name for name, _ in synsets("imagenet21k") if name not in EXTRA] == released


if __name__ == "__main__":
    for label_set in TIMM:
        (FOLDER / f"{label_set}.tsv").write_text(timm_table(label_set), "utf-8")
