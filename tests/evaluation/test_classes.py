from __future__ import annotations

import pytest

from bit.config import BitConfig
from convert.errors import UsageError
from convert.evaluation.classes import match_all, match_classes

LABELS = ("tench, Tinca tinca", "goldfish, Carassius auratus", "crane", "crane", "African_elephant")


def head(*labels: str, count: int | None = None) -> BitConfig:
    return BitConfig(num_labels=count or len(labels), id2label=dict(enumerate(labels)) if labels else None)


def test_classes_are_found_by_name_in_any_order() -> None:
    found = match_classes(("dog", "cat"), head("cat", "fish", "dog"), "m")
    assert found.outputs == (2, 0)
    assert found.note == "1 of the head's 3 classes are not in the data and were left out"
    assert match_classes(("cat", "dog"), head("cat", "dog"), "m").note is None


def test_names_may_be_written_differently() -> None:
    found = match_classes(("african elephant", "Tench", "goldfish, carassius auratus"), head(*LABELS), "m")
    assert found.outputs == (4, 0, 1)


def test_a_written_name_comes_before_a_synonym() -> None:
    assert match_classes(("crane", "bird"), head("crane, machine", "crane", "bird"), "m").outputs == (1, 2)


def test_as_many_classes_without_names_are_matched_by_order() -> None:
    assert match_classes(("a", "b"), head(count=2), "m").outputs == (0, 1)
    found = match_classes(("n01440764", "n01443537"), head("tench", "goldfish"), "m")
    assert found.note == "classes were matched by their order: the head has no class named 'n01440764', 'n01443537'"


@pytest.mark.parametrize(
    ("classes", "config", "message"),
    [
        (
            ("cat", "emu"),
            head("cat", "dog", "fish"),
            "m has a head for 3 classes, and none is named 'emu'; the data has 2",
        ),
        (("a", "b", "c"), head(count=1000), "m has a head for 1000 classes without names; the data has 3 classes"),
        (tuple("abcdefgh"), head("x", "y"), "none is named 'a', 'b', 'c', 'd', 'e' and 3 more"),
        (("crane", "goldfish"), head(*LABELS), "several classes with the name 'crane'"),
        (("tench", "TENCH"), head(*LABELS), "two classes of the data have the same name in m"),
    ],
)
def test_classes_that_are_not_there_are_refused(classes: tuple[str, ...], config: BitConfig, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        match_classes(classes, config, "m")


def test_a_head_without_names_has_those_of_another_checkpoint() -> None:
    heads = {"npz": head(count=2), "named": head("dog", "cat"), "larger": head(count=3)}
    with pytest.raises(UsageError, match="larger has a head for 3 classes"):
        match_all(("cat", "dog"), heads)
    first, second = match_all(("cat", "dog"), {name: heads[name] for name in ("npz", "named")}).values()
    assert (first.outputs, second.outputs) == ((1, 0), (1, 0))
    assert (first.note, second.note) == ("the names of the classes are those of named", None)
