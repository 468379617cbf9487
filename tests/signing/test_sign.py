"""The files that signing writes, and who accepts them: the stock tools of Model Signing, DSSE and in-toto."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from in_toto.exceptions import SignatureVerificationError
from in_toto.models.metadata import Metadata
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey
from support.pushing import local
from support.signing import PASSWORD, signed, signer, stock, trust, write_key

import convert
from convert.errors import UsageError, VerificationError
from convert.progress import silent
from convert.publishing.signature import sign_verified
from convert.signing.check import check_folder_signature
from convert.signing.keys import PublicKey

CURVES = [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()]


def envelopes(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "conversion.intoto.json").read_text().splitlines()]


def test_the_stock_command_accepts_a_signed_folder(verified_tiny: Path, tmp_path: Path) -> None:
    private, public = write_key(tmp_path)
    signed(verified_tiny, private, tmp_path / "signed")
    result = stock(tmp_path / "signed", public)
    assert result.returncode == 0, result.stdout + result.stderr
    (tmp_path / "signed" / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    assert stock(tmp_path / "signed", public).returncode == 0, "the file that the Hub adds is left out"
    assert (
        check_folder_signature(tmp_path / "signed", trust(public), silent).files.keys().isdisjoint({".gitattributes"})
    )


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_every_curve_of_model_signing_signs(verified_tiny: Path, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    private, public = write_key(tmp_path, curve=curve)
    assert signed(verified_tiny, private, tmp_path / "signed").signer == trust(public).name
    key = SSlibKey.from_crypto(PublicKey.read(public).key)
    for line in envelopes(tmp_path / "signed"):
        assert Envelope.from_dict(line).verify([key], 1), "the key is found by the name that securesystemslib gives it"


def test_in_toto_reads_the_envelopes_and_refuses_another_key(verified_tiny: Path, tmp_path: Path) -> None:
    (private, public), (_, other) = write_key(tmp_path), write_key(tmp_path, 2)
    signed(verified_tiny, private, tmp_path / "signed")
    keyid = PublicKey.read(public).keyid
    right, wrong = (
        {"keyid": keyid, **SSlibKey.from_crypto(PublicKey.read(path).key).to_dict()} for path in (public, other)
    )
    for line in envelopes(tmp_path / "signed"):
        metadata = Metadata.from_dict(line)
        metadata.verify_signature(right)
        with pytest.raises(SignatureVerificationError):
            metadata.verify_signature(wrong)


def test_the_fingerprint_is_the_one_that_openssl_prints(tmp_path: Path) -> None:
    _, public = write_key(tmp_path)
    der = subprocess.run(["openssl", "pkey", "-pubin", "-in", public, "-outform", "DER"], capture_output=True)
    digest = subprocess.run(["openssl", "sha256"], input=der.stdout, capture_output=True)
    assert PublicKey.read(public).fingerprint == "SHA256:" + digest.stdout.decode().split()[-1]


def test_the_signature_covers_every_file_and_the_weights_stay(verified_tiny: Path, tmp_path: Path) -> None:
    private, _ = write_key(tmp_path)
    signature = signed(verified_tiny, private, tmp_path / "signed")
    before, after = local(verified_tiny), local(tmp_path / "signed")
    assert after.keys() - before.keys() == {"model.sig", "conversion.intoto.json"}
    assert signature.files.keys() == after.keys() - {"model.sig"}
    changed = {name for name, data in before.items() if after[name] != data}
    assert changed <= {"verification.json", "verification.html"}, "they name the signer"
    assert "not shown" in signature.words
    assert len(signature.words.splitlines()) == 1


def test_an_encrypted_key_needs_the_password(folder: Path, tmp_path: Path) -> None:
    private, public = write_key(tmp_path, password=PASSWORD)
    with pytest.raises(UsageError, match="is encrypted: set BIT_KEY_PASSWORD"):
        convert.sign(folder, key=private)
    with pytest.raises(UsageError, match="the password is wrong") as raised:
        convert.sign(folder, key=private, password="guessed")
    assert "guessed" not in str(raised.value)
    convert.sign(folder, key=private, password=PASSWORD)
    assert convert.check_signature(folder, public_key=public).signer == trust(public).name


def test_a_file_that_is_no_key_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    private, public = write_key(tmp_path)
    (tmp_path / "text").write_text("not a key")
    (tmp_path / "zeros").write_bytes(bytes(1 << 20))
    other = rsa.generate_private_key(65537, 2048)
    (tmp_path / "rsa").write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    koblitz, _ = write_key(tmp_path, 9, ec.SECP256K1())
    for path in (tmp_path / "none", tmp_path / "text", tmp_path / "zeros", tmp_path / "rsa", koblitz, public, tmp_path):
        with pytest.raises(UsageError, match="key") as raised:
            convert.sign(folder, key=path)
        assert len(str(raised.value).splitlines()) == 1
    for path in (tmp_path / "none", private, koblitz.with_suffix(".pub")):
        with pytest.raises(UsageError, match="key"):
            convert.check_signature(folder, public_key=path)
    assert "model.sig" not in local(folder)


def test_only_a_folder_that_is_as_it_was_verified_is_signed(folder: Path, tmp_path: Path) -> None:
    private, _ = write_key(tmp_path)
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes() + b" ")
    before = local(folder)
    with pytest.raises(VerificationError, match=r"config\.json was changed"):
        convert.sign(folder, key=private)
    assert local(folder) == before


def test_signing_fails_whole(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, _ = write_key(tmp_path)
    before = local(folder)
    monkeypatch.setattr("convert.signing.sign.write_signature", lambda *values: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert.sign(folder, key=private)
    assert local(folder) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_file_that_changes_while_it_is_signed_is_noticed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from convert.signing import sign as module

    private, _ = write_key(tmp_path)
    write = module.write_signature

    def change(place: Path, who: object) -> None:
        data = (place / "config.json").read_bytes()
        (place / "config.json").unlink()
        (place / "config.json").write_bytes(data + b" ")
        write(place, who)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "write_signature", change)
    with pytest.raises(VerificationError, match=r"config\.json changed while it was signed"):
        convert.sign(folder, key=private)
    assert "model.sig" not in local(folder)


def test_a_folder_that_the_same_key_has_signed_is_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    (private, public), (another, _) = write_key(tmp_path), write_key(tmp_path, 2)
    first = sign_verified(folder, signer(private), "me/tiny", silent)
    before = local(folder)
    assert sign_verified(folder, signer(private), "me/tiny", silent) == first
    assert convert.sign(folder, key=private) == first, "a card that is there is signed"
    assert local(folder) == before
    assert sign_verified(folder, signer(private), "me/other", silent) != first, "the card names the repository"
    assert b"me/other" in local(folder)["README.md"]
    with pytest.raises(VerificationError):
        sign_verified(folder, signer(another), "me/other", silent)
        convert.check_signature(folder, public_key=public)


def test_the_card_names_the_signer_and_one_written_by_hand_is_kept(verified_tiny: Path, tmp_path: Path) -> None:
    private, public = write_key(tmp_path)
    signed(verified_tiny, private, tmp_path / "signed", "me/tiny")
    card = (tmp_path / "signed" / "README.md").read_text()
    assert PublicKey.read(public).fingerprint in card
    assert "$ bit verify hf:me/tiny --public-key PUB" in card
    assert "$ model_signing verify key tiny --signature tiny/model.sig --public_key PUB" in card
    shutil.copytree(verified_tiny, tmp_path / "mine")
    (tmp_path / "mine" / "README.md").write_text("---\nlicense: mit\n---\nmine\n")
    sign_verified(tmp_path / "mine", signer(private), "me/tiny", silent)
    assert (tmp_path / "mine" / "README.md").read_text().endswith("mine\n")


def test_without_the_extra_one_line_names_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, public = write_key(tmp_path)
    monkeypatch.setitem(sys.modules, "model_signing", None)
    for call in (lambda: convert.sign(folder, key=private), lambda: convert.check_signature(folder, public_key=public)):
        with pytest.raises(UsageError, match=r"model-signing is not installed; .* '\.\[sign\]'"):
            call()


def test_importing_the_api_imports_nothing_of_the_extra() -> None:
    code = "import convert.api, sys; print({'model_signing', 'sigstore', 'cryptography'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr
