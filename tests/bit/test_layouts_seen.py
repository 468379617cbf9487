"""A folder or file of another layout is named, with the command that converts it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from support.conversions import convert
from support.foreign import saved_by_timm, saved_by_torch, saved_by_transformers
from support.networks import TINY

from bit import BitForImageClassification, BitModel
from bit.layouts_seen import FOLDED, LAYOUTS, check_layout, layout_of
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
