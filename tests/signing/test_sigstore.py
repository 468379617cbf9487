"""Signing without a key. Sigstore itself is replaced by a key: there is no network in the tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import model_signing
import pytest
import sigstore.errors
import sigstore.models
import sigstore.oidc
import sigstore.sign
import sigstore.verify
from support.command import run_here
from support.pushing import local
from support.signing import signer, trust, write_key

import convert
from convert.errors import ConvertError, VerificationError

TOKEN = "token-never-to-be-seen"
WHO, PROVIDER = "me@example.com", "https://accounts.example.com"
SIGNED = {"identity": WHO, "identity_provider": PROVIDER}


class Token:
    """An identity token, counted."""

    made = 0
    identity, federated_issuer = WHO, PROVIDER

    def __init__(self, raw: str) -> None:
        Token.made += 1

    def __str__(self) -> str:
        return TOKEN


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sigstore accept one identity, and sign with a key."""
    private, public = write_key(tmp_path, 7)

    @contextmanager
    def context(token: Token) -> Iterator[Any]:
        assert str(token) == TOKEN
        yield SimpleNamespace(
            sign_dsse=lambda data: SimpleNamespace(to_json=lambda: signer(private).sealed(data).decode())
        )

    def verify_dsse(bundle: bytes, policy: Any) -> tuple[str, bytes]:
        if (policy._identity, policy._issuer._value) != (WHO, PROVIDER):
            raise sigstore.errors.VerificationError("another identity")
        return "application/vnd.in-toto+json", trust(public).opened(bundle)

    def sign(config: Any, identity_token: str) -> None:
        assert identity_token == TOKEN
        config.use_elliptic_key_signer(private_key=private)

    def check(config: Any, identity: str, oidc_issuer: str) -> None:
        assert (identity, oidc_issuer) == (WHO, PROVIDER)
        config.use_elliptic_key_verifier(public_key=public)

    Token.made = 0
    monkeypatch.setattr(sigstore.oidc, "detect_credential", lambda: TOKEN)
    monkeypatch.setattr(sigstore.oidc, "IdentityToken", Token)
    monkeypatch.setattr(sigstore.models.ClientTrustConfig, "production", lambda: None)
    monkeypatch.setattr(sigstore.models.Bundle, "from_json", lambda line: line)
    monkeypatch.setattr(
        sigstore.sign.SigningContext, "from_trust_config", lambda config: SimpleNamespace(signer=context)
    )
    monkeypatch.setattr("sigstore.dsse.Statement", lambda data: data)
    monkeypatch.setattr(sigstore.verify.Verifier, "production", lambda: SimpleNamespace(verify_dsse=verify_dsse))
    monkeypatch.setattr(model_signing.signing.Config, "use_sigstore_signer", sign)
    monkeypatch.setattr(model_signing.verifying.Config, "use_sigstore_verifier", check)


@pytest.mark.usefixtures("stand_in")
def test_an_identity_signs_and_is_asked_for_once(folder: Path, tmp_path: Path) -> None:
    signature = convert.sign(folder, sigstore=True, repository="me/tiny")
    assert Token.made == 1
    assert signature.signer == f"{WHO} (identity provider {PROVIDER})"
    assert convert.check_signature(folder, **SIGNED).files == signature.files
    assert f"--identity {WHO} --identity-provider {PROVIDER}" in (folder / "README.md").read_text()
    assert all(TOKEN.encode() not in data for data in local(folder).values())
    with pytest.raises(VerificationError, match=r"sigstore does not accept it for you@example\.com"):
        from convert.signing.signers import IdentityTrust

        line = (folder / "conversion.intoto.json").read_bytes().splitlines()[0]
        IdentityTrust("you@example.com", PROVIDER).opened(line)


def test_without_a_network_one_line_says_so(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*values: object, **options: object) -> None:
        raise sigstore.errors.NetworkError(f"nobody answers\nto {TOKEN}")

    monkeypatch.setattr(sigstore.oidc, "detect_credential", lambda: None)
    monkeypatch.setattr(sigstore.models.ClientTrustConfig, "production", unreachable)
    before = local(folder)
    with pytest.raises(ConvertError, match=r"sigstore could not be used \(nobody answers\); check the network"):
        convert.sign(folder, sigstore=True)
    assert local(folder) == before
    result = run_here("sign", folder, "--sigstore", cwd=tmp_path)
    assert result.returncode == 2
    assert TOKEN not in result.stderr
    assert next(line for line in result.stderr.splitlines() if not line.endswith("…")).startswith("error: sigstore")
