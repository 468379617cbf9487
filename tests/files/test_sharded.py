"""Weights in several files with an index, as transformers splits them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.command import assert_refused, run_here
from support.conversions import bits_of, convert, verified
from support.networks import TINY

from bit import BitForImageClassification
from convert.checkpoints.checkpoint import Checkpoint
from convert.errors import CheckpointError, UsageError
from convert.files.base import Tensor, file_sha256
from convert.files.sharded import ShardedFile, split
from convert.network.dtypes import FLOAT32
from convert.network.parameters import parameters

# Also where an extra framework announces what it will do some day.
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")

SIZE = "150KB"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def single(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversion in one file, not to be changed."""
    return convert(tiny_npz, "transformers", tmp_path_factory.mktemp("single") / "tiny")


@pytest.fixture(scope="module")
def sharded(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in shards, not to be changed."""
    return convert(tiny_npz, "transformers", tmp_path_factory.mktemp("sharded") / "tiny", max_shard_size=SIZE)


@pytest.fixture
def folder(sharded: Path, tmp_path: Path) -> Path:
    """A copy of the weights alone, to be changed."""
    (tmp_path / "tiny").mkdir()
    for file in (sharded / INDEX, *shards_of(sharded)):
        shutil.copy(file, tmp_path / "tiny")
    return tmp_path / "tiny"


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def weight_map(folder: Path) -> dict[str, str]:
    return dict(json.loads((folder / INDEX).read_text())["weight_map"])


@pytest.mark.parametrize("size", ["50KB", SIZE, "0.3 MB", "300kb"])
def test_shards_equal_those_of_transformers(tiny_npz: Path, single: Path, tmp_path: Path, size: str) -> None:
    ours = convert(tiny_npz, "transformers", tmp_path / "ours", max_shard_size=size)
    theirs = tmp_path / "theirs"
    model = transformers.BitForImageClassification(transformers.BitConfig.from_pretrained(single))
    model.load_state_dict(load_file(single / "model.safetensors"))
    model.save_pretrained(theirs, max_shard_size=size)
    assert [file.name for file in shards_of(ours)] == [file.name for file in shards_of(theirs)]
    assert len(shards_of(ours)) > 1
    assert json.loads((ours / INDEX).read_text()) == json.loads((theirs / INDEX).read_text())
    for file in shards_of(ours):
        found, expected = load_file(file), load_file(theirs / file.name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_weights_that_fit_into_one_file_are_not_split(tiny_npz: Path, single: Path, tmp_path: Path) -> None:
    found = convert(tiny_npz, "transformers", tmp_path / "out", max_shard_size="5GB")
    assert file_sha256(found / "model.safetensors") == file_sha256(single / "model.safetensors")
    assert not (found / INDEX).exists()


def test_a_tiny_size_gives_every_tensor_its_own_file(tiny_npz: Path, single: Path, tmp_path: Path) -> None:
    found = convert(tiny_npz, "transformers", tmp_path / "out", max_shard_size="0.001KB")
    assert len(shards_of(found)) == len(parameters(TINY))
    assert bits_of(found) == bits_of(single)


@pytest.mark.parametrize("library", [transformers.BitForImageClassification, BitForImageClassification])
def test_the_folder_loads_in_transformers_and_in_bit(library: Any, single: Path, sharded: Path) -> None:
    found, expected = library.from_pretrained(sharded).state_dict(), load_file(single / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize("layout", ["google", "timm", "transformers", "keras"])
def test_shards_and_a_single_file_convert_to_the_same_bytes(
    layout: str, single: Path, sharded: Path, tmp_path: Path
) -> None:
    found, expected = convert(sharded, layout, tmp_path / "found"), convert(single, layout, tmp_path / "expected")
    with Checkpoint(expected) as checkpoint:
        name = checkpoint.file.path.name
    assert file_sha256(found / name) == file_sha256(expected / name)


def test_shards_of_transformers_convert(single: Path, tmp_path: Path) -> None:
    transformers.BitForImageClassification.from_pretrained(single).save_pretrained(
        tmp_path / "theirs", max_shard_size=SIZE
    )
    found = convert(tmp_path / "theirs", "timm", tmp_path / "found") / "model.safetensors"
    expected = convert(single, "timm", tmp_path / "expected") / "model.safetensors"
    assert file_sha256(found) == file_sha256(expected)


def test_the_index_may_be_named_instead_of_the_folder(folder: Path) -> None:
    assert bits_of(folder / INDEX) == bits_of(folder)
    with Checkpoint(folder / INDEX) as checkpoint:
        assert isinstance(checkpoint.file, ShardedFile)
        assert checkpoint.file.container == "safetensors"
        assert checkpoint.name == "model"
        assert set(checkpoint.file.digests()) == {INDEX, *(file.name for file in shards_of(folder))}


def test_the_command_splits_verifies_and_reads_an_index(tiny_npz: Path, tmp_path: Path) -> None:
    first = run_here("convert", tiny_npz, "--max-shard-size", SIZE, "--out", "shards", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert any(line.startswith("verified") for line in first.stdout.splitlines())
    second = run_here("convert", Path("shards", INDEX), "--to", "google", "--out", "back", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert file_sha256(tmp_path / "back" / "tiny.npz") == file_sha256(tiny_npz)
    again = run_here("convert", "back", "--max-shard-size", "1MB", "--out", "shards", "--force", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert not shards_of(tmp_path / "shards"), "no shard of before is left"


def as_pytorch(folder: Path) -> None:
    """Make of the shards what transformers wrote before it wrote safetensors."""

    def renamed(name: str) -> str:
        return name.replace("model", "pytorch_model").replace("safetensors", "bin")

    for file in shards_of(folder):
        torch.save(load_file(file), folder / renamed(file.name))
        file.unlink()
    index = {"metadata": {}, "weight_map": {key: renamed(name) for key, name in weight_map(folder).items()}}
    (folder / INDEX).unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def test_shards_of_pytorch_are_read(folder: Path, single: Path, tmp_path: Path) -> None:
    as_pytorch(folder)
    with Checkpoint(folder) as checkpoint:
        assert checkpoint.file.container == "pytorch"
        checkpoint.file.digests()
    found = convert(folder, "timm", tmp_path / "found") / "model.safetensors"
    expected = convert(single, "timm", tmp_path / "expected") / "model.safetensors"
    assert file_sha256(found) == file_sha256(expected)


def test_ignored_entries_of_a_shard_are_reported_with_the_file_name(folder: Path) -> None:
    as_pytorch(folder)
    last = max(folder.glob("*.bin"))
    torch.save({"state_dict": torch.load(last), "epoch": 3}, last)
    with Checkpoint(folder) as checkpoint:
        assert checkpoint.notes == [f"{last.name}: uses the weights in state_dict; ignores epoch"]


def test_the_index_of_safetensors_is_preferred(folder: Path) -> None:
    kept = {file: file.read_bytes() for file in folder.iterdir()}
    as_pytorch(folder)
    for file, content in kept.items():
        file.write_bytes(content)
    with Checkpoint(folder) as checkpoint:
        assert checkpoint.file.path.name == INDEX


def test_verification_of_shards_passes(sharded: Path, tiny_npz: Path) -> None:
    result = verified(sharded, tiny_npz)
    assert result.passed
    assert result.tensors_exact == len(parameters(TINY))
    assert {INDEX, *(file.name for file in shards_of(sharded))} <= set(result.files)


def test_verification_notices_a_changed_byte_in_one_shard(sharded: Path, tiny_npz: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sharded, tmp_path / "tiny")
    shard = shards_of(folder)[2]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    result = verified(folder, tiny_npz)
    assert not result.passed
    assert any(shard.name in problem and "has changed" in problem for problem in result.problems)
    changed = [key for key, name in weight_map(folder).items() if name == shard.name]
    assert any(key in problem for key in changed for problem in result.problems), "and which tensor it is"


def test_verification_notices_a_missing_shard(sharded: Path, tiny_npz: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sharded, tmp_path / "tiny")
    shard = shards_of(folder)[1]
    shard.unlink()
    result = verified(folder, tiny_npz)
    assert not result.passed
    assert f"{shard.name} is missing" in result.problems


def test_every_shard_of_a_source_is_checked_against_the_manifest(sharded: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sharded, tmp_path / "tiny")
    shard = shards_of(folder)[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{shard.name} is not the file that"):
        convert(folder, "timm", tmp_path / "out")


def edit_index(folder: Path, **changed: str) -> None:
    """Let the index list tensors, by the last part of their name, in other files."""
    index = json.loads((folder / INDEX).read_text())
    for key in index["weight_map"]:
        index["weight_map"][key] = changed.get(key.split(".")[1], index["weight_map"][key])
    (folder / INDEX).write_text(json.dumps(index))


def listing(name: str) -> Callable[[Path], None]:
    """The tensor `bit.norm.weight` and another are listed in the file `name`."""
    return lambda folder: edit_index(folder, norm=name)


def with_index(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / INDEX).write_text(text)

    return write


def without_a_shard(folder: Path) -> None:
    shards_of(folder)[1].unlink()


def with_a_folder_for_a_shard(folder: Path) -> None:
    without_a_shard(folder)
    (folder / "model-00002-of-00005.safetensors").mkdir()


def with_a_tensor_twice(folder: Path) -> None:
    first, last = shards_of(folder)[0], shards_of(folder)[-1]
    save_file({**load_file(last), **load_file(first)}, last)


def with_a_tensor_that_is_not_listed(folder: Path) -> None:
    last = shards_of(folder)[-1]
    save_file({**load_file(last), "extra": torch.zeros(3)}, last)


def with_a_tensor_that_is_nowhere(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["extra"] = shards_of(folder)[0].name
    (folder / INDEX).write_text(json.dumps(index))


def with_a_truncated_shard(folder: Path) -> None:
    shard = shards_of(folder)[0]
    shard.write_bytes(shard.read_bytes()[:-10])


def with_duplicate_keys(folder: Path) -> None:
    text = (folder / INDEX).read_text()
    key, name = next(iter(weight_map(folder).items()))
    (folder / INDEX).write_text(text.replace('"weight_map": {', f'"weight_map": {{"{key}": "{name}",'))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_a_shard, "which is missing"),
        (with_a_folder_for_a_shard, "which is missing"),
        (listing("model-00001-of-00005.safetensors"), "but the index lists it in model-00001-of-00005.safetensors"),
        (with_a_tensor_twice, "is in two of the files"),
        (with_a_tensor_that_is_not_listed, "but the index lists it in no file"),
        (with_a_tensor_that_is_nowhere, "lists extra in model-00001-of-00005.safetensors, which does not hold it"),
        (with_a_truncated_shard, "model-00001-of-00005.safetensors"),
        (listing("../x.safetensors"), "lists '../x.safetensors', which is not the name of a file in this folder"),
        (listing("/etc/passwd"), "lists '/etc/passwd', which is not the name of a file"),
        (listing("sub/x.safetensors"), "lists 'sub/x.safetensors', which is not the name of a file"),
        (listing("..\\x.safetensors"), "which is not the name of a file in this folder"),
        (listing(".."), "lists '..', which is not the name of a file"),
        (listing("."), "lists '.', which is not the name of a file"),
        (listing(""), "lists '', which is not the name of a file"),
        (listing("x\0"), "which is not the name of a file in this folder"),
        (listing("x" * 300), "which is not the name of a file in this folder"),
        (listing("x\x1b[2J"), r"lists 'x\x1b[2J', which is not the name of a file in this folder"),
        (listing(INDEX), f"{INDEX} is not a file of weights"),
        (with_duplicate_keys, "is a damaged index (it holds a name twice"),
        (with_index('{"weight_map": {"a": "b"'), "is a damaged index"),
        (with_index('{"weight_map": {}}'), "weight_map lists no files"),
        (with_index('{"weight_map": {"a": 1}}'), "is a damaged index (Expected `str`, got `int`"),
        (with_index('{"weight_map": ["a"]}'), "is a damaged index"),
        (with_index('{"metadata": {}}'), "is a damaged index"),
        (with_index('{"a":' * 100_000), "is a damaged index"),
        (with_index('{"weight_map": {"\\u001b[2J": "a"}}'), r"\x1b[2J is not the name of an array"),
        (with_index('{"weight_map": {"a": "\\ud800"}}'), "is a damaged index"),
        (with_index('{"weight_map": {"%s": "a"}}' % ("module." * 10_000)), "is not the name of an array"),
        (with_index(json.dumps({"weight_map": {f"{n}": f"{n}" for n in range(501)}})), "lists 501 files"),
        (with_index(json.dumps({"weight_map": {f"{n}": "a" for n in range(10_001)}})), "more than 10000 arrays"),
        (with_index("{}" + " " * (8 << 20)), "larger than 8388608 bytes; it is not an index"),
        (with_index("[]"), "is not a file of weights"),
    ],
    ids="missing folder wrong-file twice not-listed nowhere truncated parent absolute below backslash dots dot empty "
    "null long escape itself duplicate-key cut nothing number list no-map deep "
    "escape-name surrogate long-name many-files many-names large array".split(),
)
def test_shards_that_do_not_match_the_index_are_refused(
    change: Callable[[Path], None], message: str, folder: Path, tmp_path: Path
) -> None:
    change(folder)
    assert_refused(run_here("convert", Path(folder.name, INDEX), cwd=tmp_path), message, tmp_path)


@pytest.mark.parametrize("layout", ["timm", "google", "google-tf2", "flax", "keras", "keras-saved", "onnx"])
def test_layouts_of_a_single_file_are_not_split(layout: str, tiny_npz: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{layout} is read from one file; leave --max-shard-size out"):
        convert(tiny_npz, layout, tmp_path / "converted", max_shard_size=SIZE)
    assert not (tmp_path / "converted").exists()


def test_the_command_refuses_an_invalid_split_in_one_line(tiny_npz: Path, tmp_path: Path) -> None:
    for layout, size, message in (
        ("timm", SIZE, "is read from one file"),
        ("transformers", "5", "invalid shard size '5'"),
    ):
        result = run_here("convert", tiny_npz, "--to", layout, "--max-shard-size", size, cwd=tmp_path)
        assert_refused(result, message, tmp_path)


@pytest.mark.parametrize("size", ["", *"5 GB KB 5XB 0MB 0.0GB -5MB nanGB infGB 1e400GB 1.2.3MB .GB 5MiB".split()])
def test_an_invalid_size_is_refused(size: str) -> None:
    with pytest.raises(UsageError, match="invalid shard size"):
        split([Tensor("a", (3,), FLOAT32)], "model.safetensors", size)
