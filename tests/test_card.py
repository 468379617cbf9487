"""The model card, held to what the Hub reads of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from test_conversion import convert

from convert.card import card
from convert.changes import Changes
from convert.record import ConversionRecord

CHECKS = [{"tap": "stem", "error": 3e-10, "budget": 1e-8}, {"tap": "logits", "error": 2e-10, "budget": 1e-9}]


@pytest.mark.parametrize(("layout", "library"), [("transformers", "transformers"), ("timm", "timm"), ("google", None)])
def test_a_card_names_the_library_and_what_the_weights_are_for(
    tiny_npz: Path, tmp_path: Path, layout: str, library: str | None
) -> None:
    text = _card(tiny_npz, layout, tmp_path)
    data = ModelCard(text).data
    assert (data.library_name, data.license, data.pipeline_tag) == (library, "apache-2.0", "image-classification")
    assert {"bit", "big-transfer"} <= set(data.tags)
    assert f"layout\n`{layout}`" in text


def test_a_network_without_a_head_makes_features(tiny_npz: Path, tmp_path: Path) -> None:
    text = _card(tiny_npz, "transformers", tmp_path, changes=Changes("drop"))
    assert ModelCard(text).data.pipeline_tag == "image-feature-extraction"
    assert "no head" in text


def test_a_card_counts_the_comparisons_and_is_the_same_each_time(tiny_npz: Path, tmp_path: Path) -> None:
    text = _card(tiny_npz, "transformers", tmp_path / "first")
    assert "\n2 comparisons were made" in text
    assert "`logits` with an error of 2.0e-10 (relative L2) of 1.0e-09" in text
    assert _card(tiny_npz, "transformers", tmp_path / "second") == text


def _card(source: Path, layout: str, parent: Path, changes: Changes = Changes()) -> str:  # noqa: B008
    record = ConversionRecord.read(convert(source, layout, parent / "out", changes=changes))
    assert record is not None
    return card(record, {"checks": CHECKS})
