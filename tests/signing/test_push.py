"""A signed folder on the Hub: exactly the signed files, which the stock command accepts in a clone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support import hub_here
from support.command import run_here
from support.hub import HubServer
from support.hub_repositories import Blob, Repository
from support.pushing import REPOSITORY, content, local, push
from support.signing import Signed, signer, stock, trust, write_key

import convert
from convert.errors import CheckpointError, UsageError, VerificationError
from convert.progress import silent
from convert.publishing.signature import sign_verified
from convert.signing.check import check_folder_signature
from convert.sources.hub import everything

# The second: huggingface_hub hands files to its HTTP client in a deprecated way.
pytestmark = [
    pytest.mark.usefixtures("pushes_at_once"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]


def clone(repository: Repository, target: Path) -> Path:
    """Write every file of a repository into a folder, with the file that the Hub itself puts there."""
    target.mkdir()
    for name, blob in repository.files.items():
        (target / name).write_bytes(blob.read())
    return target


def test_a_push_that_signs_sends_a_clone_that_the_stock_command_accepts(
    server: HubServer, folder: Path, tmp_path: Path
) -> None:
    private, public = write_key(tmp_path)
    result = push(server, folder, signer=signer(private))
    repository = server.repositories[REPOSITORY]
    assert content(repository) == local(folder)
    assert {"model.sig", "conversion.intoto.json", "README.md"} <= content(repository).keys()
    cloned = clone(repository, tmp_path / "clone")
    assert (cloned / ".gitattributes").is_file()
    assert stock(cloned, public).returncode == 0, stock(cloned, public).stdout
    assert check_folder_signature(cloned, trust(public), silent).files.keys() == local(folder).keys() - {"model.sig"}
    assert trust(public).name in result.card
    again = push(server, folder, signer=signer(private))
    assert (again.state, again.commit) == ("identical", result.commit), "what this key has signed is not signed again"


def test_a_folder_signed_without_a_card_is_pushed_with_the_page_of_the_conversion(
    server: HubServer, folder: Path, tmp_path: Path
) -> None:
    private, public = write_key(tmp_path)
    sign_verified(folder, signer(private), None, silent)
    result = push(server, folder)
    assert result.card == (folder / "README.md").read_text("utf-8")
    assert "in this folder" in result.card
    assert content(server.repositories[REPOSITORY]) == local(folder)
    assert stock(clone(server.repositories[REPOSITORY], tmp_path / "clone"), public).returncode == 0


def test_an_unsigned_push_takes_the_old_signature_away(server: HubServer, verified_tiny: Path, tmp_path: Path) -> None:
    private, _ = write_key(tmp_path)
    push(server, shutil.copytree(verified_tiny, tmp_path / "signed"), signer=signer(private))
    result = push(server, shutil.copytree(verified_tiny, tmp_path / "unsigned"))
    assert result.deleted == ("conversion.intoto.json", "model.sig")
    assert "model.sig" not in content(server.repositories[REPOSITORY])


def test_a_repository_with_files_that_are_not_signed_is_refused(
    server: HubServer, folder: Path, tmp_path: Path
) -> None:
    repository = server.repositories[REPOSITORY] = Repository.of()
    repository.commit("main", {**repository.files, "logo.png": Blob.of(b"x"), "model.npz": Blob.of(b"x")})
    private, _ = write_key(tmp_path)
    for options in ({"dry_run": False}, {"dry_run": True}):
        with pytest.raises(UsageError, match=r"holds logo\.png, which the signature does not cover"):
            push(server, folder, signer=signer(private), **options)
    assert server.sent() == []


def test_a_signed_folder_takes_no_further_files(server: HubServer, folder: Path, tmp_path: Path) -> None:
    private, _ = write_key(tmp_path)
    sign_verified(folder, signer(private), None, silent)
    with pytest.raises(UsageError, match=r"the folder is signed without README\.md"):
        push(server, folder, extra={"README.md": b"mine"})
    assert server.sent() == []


def test_a_signature_of_other_files_is_not_pushed(server: HubServer, folder: Path, folders: Signed) -> None:
    for name in ("model.sig", "conversion.intoto.json"):
        shutil.copy(folders.place / "old" / name, folder)
    with pytest.raises(VerificationError, match="; sign it again"):
        push(server, folder)
    (folder / "model.sig").write_text("{}")
    with pytest.raises(VerificationError, match=r"model\.sig is damaged"):
        push(server, folder)
    (folder / "model.sig").unlink()
    with pytest.raises(VerificationError, match=r"holds conversion\.intoto\.json without model\.sig"):
        push(server, folder)
    assert server.sent() == []


def test_a_signature_can_be_demanded(server: HubServer, folder: Path, tmp_path: Path) -> None:
    (private, public), (_, other) = write_key(tmp_path), write_key(tmp_path, 2)
    with pytest.raises(VerificationError, match="it is not signed"):
        push(server, folder, trust=trust(public))
    sign_verified(folder, signer(private), None, silent)
    with pytest.raises(VerificationError, match="is not a signature by the key"):
        push(server, folder, trust=trust(other))
    assert server.sent() == []
    assert push(server, folder, trust=trust(public)).state == "pushed"
    with pytest.raises(UsageError, match="--require-signature needs --public-key"):
        convert.publish(folder, REPOSITORY, require_signature=True, dry_run=True)


def test_a_dry_run_signs_nothing(server: HubServer, folder: Path, tmp_path: Path) -> None:
    private, public = write_key(tmp_path)
    before = local(folder)
    result = push(server, folder, signer=signer(private), dry_run=True)
    assert trust(public).name in result.card
    assert local(folder) == before
    assert server.sent() == []


def test_a_signed_card_names_the_repository_in_full(server: HubServer, folder: Path, tmp_path: Path) -> None:
    private, _ = write_key(tmp_path)
    before = local(folder)
    with pytest.raises(UsageError, match="give it as owner/tiny"):
        push(server, folder, "tiny", signer=signer(private))
    assert local(folder) == before


@pytest.fixture
def here(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    hub_here.use(server, tmp_path / "cache", monkeypatch)
    return server


def test_a_repository_is_checked_before_anything_else(here: HubServer, folders: Signed, tmp_path: Path) -> None:
    here.repositories[REPOSITORY] = Repository.of(folders.place / "tiny")
    options = ("--public-key", folders.public, "--quick")
    result = run_here("verify", f"hf:{REPOSITORY}", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("✓ signed by the key SHA256:")
    assert "not shown:" in result.stdout
    assert not (tmp_path / "converted").exists()
    foreign = Repository.of(folders.place / "foreign")
    here.repositories[REPOSITORY] = foreign
    result = run_here("verify", f"hf:{REPOSITORY}", *options, cwd=tmp_path)
    assert result.returncode == 1
    assert "is not a signature by the key" in result.stderr


def test_a_file_added_to_a_repository_is_noticed(here: HubServer, folders: Signed, tmp_path: Path) -> None:
    repository = here.repositories[REPOSITORY] = Repository.of(folders.place / "tiny")
    for name in ("pytorch_model.bin", "notes.txt", "odd;name", "folder/model.safetensors"):
        repository.commit("main", {**Repository.of(folders.place / "tiny").files, name: Blob.of(b"x")})
        result = run_here("verify", f"hf:{REPOSITORY}", "--public-key", folders.public, cwd=tmp_path)
        errors = [line for line in result.stderr.splitlines() if not line.endswith("…")]
        assert result.returncode in (1, 2), name
        assert len(errors) == 1, result.stderr
        assert name in errors[0]


def test_a_folder_in_a_repository_is_not_overlooked() -> None:
    assert everything([".gitattributes", "model.sig"]) == ["model.sig"]
    with pytest.raises(CheckpointError, match=r"holds the folder 'eval/', which no signed folder has"):
        everything(["model.sig", "eval/"])
