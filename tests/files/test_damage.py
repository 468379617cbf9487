"""Bad checkpoints: one `error:` line, exit status 2, nothing written."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.command import assert_refused, run_here
from support.conversions import arrays_of, convert
from support.networks import TINY
from support.npy import as_nan, header, npy, pickled

from convert.sources.synthetic import write_npz


def as_text(path: Path) -> None:
    path.write_text("This is a text file.")


def as_truncated(path: Path) -> None:
    write_npz(path, TINY)
    path.write_bytes(path.read_bytes()[:-1000])


def as_flipped(path: Path) -> None:
    write_npz(path, TINY)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def as_members(members: dict[str, bytes]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for key, array in arrays_of(TINY).items():
                if f"{key}.npy" not in members:
                    archive.writestr(f"{key}.npy", npy(array))
            for name, content in members.items():
                archive.writestr(name, content)

    return write


def as_duplicate(path: Path) -> None:
    as_members({})(path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("resnet/head/conv2d/bias.npy", npy(np.zeros(5, np.float32)))


def as_missing(path: Path) -> None:
    arrays = arrays_of(TINY)
    del arrays["resnet/block1/unit02/b/group_norm/gamma"]
    np.savez(path, **arrays)


HEAD = "resnet/head/conv2d/bias.npy"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (as_text, "is not a file of weights"),
        (Path.touch, "it is empty"),
        (as_truncated, "not a complete npz file"),
        (as_flipped, "is damaged (CRC-32"),
        (as_members({HEAD: pickled()}), "elements of type object"),
        (as_members({"../evil.npy": npy(np.zeros(1))}), "'../evil.npy' is not the name of an array"),
        (as_duplicate, "two members named resnet/head/conv2d/bias.npy"),
        (
            as_members({HEAD: header("(6,)") + bytes(20)}),
            "bias has 20 bytes of data, which does not fit shape [6] of float32",
        ),
        (as_members({HEAD: header("(1000000000000000,)") + bytes(20)}), "shape [1000000000000000]"),
        (as_nan, "resnet/group_norm/beta holds NaN or infinity"),
        (as_members({HEAD: npy(np.zeros(6, np.float32))}), "bias, [6] instead of [5]"),
        (as_missing, "missing resnet/block1/unit02/b/group_norm/gamma (found 33 tensors, expected 34)"),
        (as_members({"step.npy": npy(np.zeros(1, np.float32))}), "unexpected step"),
        (as_members({"step.npy": npy(np.zeros(1, np.int64))}), "step holds elements of type <i8"),
        (as_members({"resnet/group_norm_1/beta.npy": npy(np.zeros(256, np.float32))}), "duplicate resnet/group_norm/"),
    ],
)
def test_bad_input_gets_one_line_and_nothing_is_written(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path / "bad.npz")
    assert_refused(run_here("convert", "bad.npz", cwd=tmp_path), message, tmp_path)


def truncated(content: bytes) -> bytes:
    return content[:-1000]


def cut_to_a_tenth(content: bytes) -> bytes:
    return content[: len(content) // 10]


def with_a_header_beyond_the_file(content: bytes) -> bytes:
    return (len(content) + 1).to_bytes(8, "little") + content[8:]


def with_a_damaged_header(content: bytes) -> bytes:
    return content[:20] + bytes([content[20] ^ 0x55]) + content[21:]


def with_one_value_changed(content: bytes) -> bytes:
    position = len(content) - 10
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


@pytest.mark.parametrize(
    ("layout", "damage", "message"),
    [
        ("timm", truncated, "truncated"),
        ("timm", cut_to_a_tenth, "truncated"),
        ("timm", with_a_header_beyond_the_file, "which is too long"),
        ("timm", with_a_damaged_header, "damaged header"),
        ("timm", with_one_value_changed, "is not the file that conversion.json lists"),
        ("google-tf2", truncated, "is not a complete h5 file"),
        ("google-tf2", cut_to_a_tenth, "is not a complete h5 file"),
        ("google-tf2", with_a_damaged_header, "is not a complete h5 file"),
        ("google-tf2", with_one_value_changed, "is not the file that conversion.json lists"),
        ("keras", truncated, "is not a complete h5 file"),
        ("flax", with_one_value_changed, "is not the file that conversion.json lists"),
    ],
)
def test_damage_in_any_container_is_found(
    tiny_npz: Path, tmp_path: Path, layout: str, damage: Callable[[bytes], bytes], message: str
) -> None:
    source = convert(tiny_npz, layout, tmp_path / "source")
    (path,) = (path for path in source.iterdir() if path.suffix not in (".json", ".md"))
    path.write_bytes(damage(path.read_bytes()))
    assert_refused(run_here("convert", "source", "--to", "google", cwd=tmp_path), message, tmp_path)
