"""Another layout is named, with the command that converts it, and so is each tensor that does not fit."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from support.conversions import convert
from support.foreign import saved_by_timm, saved_by_torch, saved_by_transformers
from support.networks import TINY

from bit import BitConfig, BitForImageClassification, BitModel
from bit.checks import (
    FOLDED,
    LAYOUTS,
    MAX_PROBLEMS,
    check_layout,
    check_size,
    layout_of,
    listed,
    mismatches,
)
from convert import layouts


def test_the_layouts_are_those_of_the_converter() -> None:
    assert set(LAYOUTS) == set(layouts.LAYOUTS)
    assert set(FOLDED) == {name for name, layout in layouts.LAYOUTS.items() if layout.folded}


@pytest.mark.parametrize("stated", [True, False], ids=["manifest", "files"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_recognized(layout: str, stated: bool, tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, layout, tmp_path / "a folder")
    if not stated:
        (folder / "conversion.json").unlink()
    assert layout_of(folder) == layout
    for wanted, accepted in {"transformers": ("transformers", "timm"), "flax": ("flax",), "keras": ("keras",)}.items():
        if layout in accepted:
            check_layout(folder, wanted)
            continue
        command = f"bit convert {'SOURCE' if layout in FOLDED else repr(str(folder))} --to {wanted}"
        with pytest.raises(ValueError, match=f"a folder of the layout {layout}, not a folder of the layout") as raised:
            check_layout(folder, wanted)
        assert str(raised.value).startswith(f"{folder} is ")
        assert str(raised.value).endswith(command)


def test_what_libraries_save_is_recognized(tmp_path: Path) -> None:
    assert layout_of(saved_by_transformers(TINY, tmp_path / "transformers")) == "transformers"
    assert layout_of(saved_by_timm(TINY, tmp_path / "timm", safe_serialization=True)) == "timm"
    BitModel(TINY).save_pretrained(tmp_path / "features")
    assert layout_of(tmp_path / "features") == "transformers"


def test_a_file_is_named_with_what_to_do(tiny_npz: Path, tmp_path: Path) -> None:
    for path in (tiny_npz, saved_by_torch(TINY, tmp_path / "torch")):
        with pytest.raises(ValueError, match=f"is a file.*bit convert {path} --to transformers"):
            BitForImageClassification.from_pretrained(path)
    folder = convert(tiny_npz, "flax", tmp_path / "flax")
    with pytest.raises(ValueError, match="a file of the layout flax; name the folder that holds it"):
        check_layout(folder / "model.safetensors", "flax")


def test_a_folder_of_another_layout_is_refused_by_from_pretrained(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "google", tmp_path / "out")
    with pytest.raises(ValueError, match=f"layout google.*bit convert {folder} --to transformers"):
        BitForImageClassification.from_pretrained(folder)


def test_a_model_of_bit_keras_is_told_from_one_of_keras_own_layers(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    ours = '{"registered_name": "bit>BiT"}'
    for content, message in ((ours, "keras.saving.load_model, after"), ("{}", "keras-saved")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", content)
        with pytest.raises(ValueError, match=message):
            check_layout(path, "keras")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"{}", bytes(100)])
def test_damaged_files_raise_nothing_else(content: bytes, tmp_path: Path) -> None:
    for name in ("conversion.json", "model.safetensors", "model.keras"):
        (tmp_path / name).write_bytes(content)
        if name != "conversion.json":
            with pytest.raises(ValueError, match="is a file"):
                check_layout(tmp_path / name, "flax")
    assert layout_of(tmp_path) == "keras-saved"
    (tmp_path / "conversion.json").write_text(json.dumps({"layout": ["flax"]}))
    assert layout_of(tmp_path) == "keras-saved"
    assert layout_of(tmp_path / "nothing") is None


def test_nothing_is_reported_if_all_tensors_fit() -> None:
    assert mismatches({"a": (1, 2), "b": ()}, {"b": (), "a": (1, 2)}) == []


def test_missing_unexpected_and_misshapen_tensors_are_reported_in_this_order() -> None:
    expected = {"a": (1,), "b": (2, 3), "c": ()}
    assert mismatches(expected, {"z": (1,), "b": (3, 2), "c": ()}) == [
        "missing a",
        "unexpected z",
        "misshapen b, [3, 2] instead of [2, 3]",
    ]


def test_names_that_do_not_fit_a_line_are_escaped_and_shortened() -> None:
    escape, long = mismatches({}, {"\x1b[2J\n": (1,), "x" * 5000: (1,)})
    assert escape == r"unexpected '\x1b[2J\n'"
    assert len(long) < 200


def test_a_message_lists_the_first_problems_and_counts_the_others() -> None:
    problems = [f"missing {number}" for number in range(MAX_PROBLEMS + 3)]
    assert listed(problems[:2]) == "missing 0; missing 1"
    assert listed(problems, " (see there)").endswith(f"missing {MAX_PROBLEMS - 1}; and 3 more (see there)")


def test_a_network_with_more_units_than_tensors_is_refused() -> None:
    check_size(BitConfig(), [str(number) for number in range(16)])
    with pytest.raises(ValueError, match="describes 16 units, but there are only 15 tensors"):
        check_size(BitConfig(), [str(number) for number in range(15)])
