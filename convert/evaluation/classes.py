"""Find the classes of a data set among those of a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bit.config import BitConfig
from convert.errors import UsageError

SHOWN = 5
"""Most names in a message."""


@dataclass(frozen=True)
class Matching:
    """The outputs of a head that stand for the classes of a data set."""

    outputs: tuple[int, ...]
    """Index of the head's output for each class of the data."""
    note: str | None = None
    """A remark on how they were found."""


def match_all(classes: Sequence[str], heads: Mapping[str, BitConfig]) -> dict[str, Matching]:
    """Match the classes with the head of each checkpoint, see `match_classes`.

    Some layouts have no names of classes. A head without any has those of another one with as many classes.
    """
    found = {}
    for name, config in heads.items():
        other = next((o for o, head in heads.items() if head.id2label and head.num_labels == config.num_labels), None)
        if config.id2label is None and other is not None:
            matching = match_classes(classes, config.replace(id2label=heads[other].id2label), name)
            found[name] = Matching(matching.outputs, matching.note or f"the names of the classes are those of {other}")
        else:
            found[name] = match_classes(classes, config, name)
    return found


def match_classes(classes: Sequence[str], config: BitConfig, checkpoint: str) -> Matching:
    """Find each class of the data among the head's labels, by name; else, if there are as many, by order.

    Names are equal if they differ in case, or in `_` for a space; `tench` also names `tench, Tinca tinca`. Outputs of
    other classes are left out, as timm's `validate.py` does for a subset of ImageNet. Raises `UsageError` if the
    classes cannot be found, or one stands for several outputs.
    """
    named = _by_name(config.id2label or {})
    found = [named.get(name) or named.get(_plain(name)) or [] for name in classes]
    missing = [name for name, outputs in zip(classes, found, strict=True) if not outputs]
    if not missing:
        if double := [name for name, outputs in zip(classes, found, strict=True) if len(outputs) > 1]:
            raise UsageError(
                f"{checkpoint} has several classes with the name {_listed(double)}; rename the data's class"
            )
        chosen = tuple(outputs[0] for outputs in found)
        if len(set(chosen)) < len(chosen):
            raise UsageError(f"two classes of the data have the same name in {checkpoint}; rename one")
        others = config.num_labels - len(chosen)
        note = f"{others} of the head's {config.num_labels} classes are not in the data and were left out"
        return Matching(chosen, note if others else None)
    if len(classes) == config.num_labels:
        why = f"the head has no class named {_listed(missing)}" if config.id2label else "the head has no names"
        return Matching(tuple(range(len(classes))), f"classes were matched by their order: {why}")
    names = f", and none is named {_listed(missing)}" if config.id2label else " without names"
    raise UsageError(
        f"{checkpoint} has a head for {config.num_labels} classes{names}; the data has {len(classes)} classes: "
        "fine-tune the checkpoint on such data, or name the folders as the head's classes"
    )


def _by_name(labels: Mapping[int, str]) -> dict[str, list[int]]:
    """Return the outputs for each name: as it is written, plain, and the first of several synonyms.

    A form that is further from the label never hides another class's label.
    """
    found: dict[str, list[int]] = {}
    for form in (str, _plain, lambda label: _plain(label.split(",")[0])):
        added: dict[str, list[int]] = {}
        for output, label in sorted(labels.items()):
            if form(label) not in found:
                added.setdefault(form(label), []).append(output)
        found |= added
    return found


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more
