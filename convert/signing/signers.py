"""Signers, and those who are trusted to have signed: the holder of a key, or an identity that sigstore knows.

Model Signing's own file is written and checked by the package `model-signing`; each class here says how. Sigstore
needs a network: it asks an identity provider who you are, gets a certificate for a key that is used once, and
writes an entry into a public log.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from convert.checkpoints.manifest import SIGNATURE_NAME
from convert.errors import ConvertError, UsageError, VerificationError
from convert.reporting.html import SignedBy
from convert.signing.envelope import PAYLOAD_TYPE, seal, unseal
from convert.signing.keys import MAKE_KEY, PrivateKey, PublicKey, require_packages


class Trust(Protocol):
    """Somebody whose signatures are accepted."""

    @property
    def name(self) -> str:
        """The signer in words: the fingerprint of a key, or an identity and the provider of it."""

    @property
    def check_options(self) -> str:
        """The options with which `bit verify` checks signatures of this signer."""

    @property
    def method(self) -> tuple[str, str]:
        """The method and the options with which `model_signing verify` checks them."""

    def opened(self, line: bytes) -> bytes:
        """Return the statement in a line of the attestation. Raises `VerificationError` unless it was signed so."""

    def configure(self, config: Any, folder: Path) -> None:
        """Tell a `model_signing.verifying.Config` whom to trust; the folder is empty and temporary."""


class Signer(Protocol):
    """Somebody who can sign."""

    @property
    def trust(self) -> Trust:
        """Accept the signatures of this signer."""

    def sealed(self, statement: bytes) -> bytes:
        """Return a signed statement as one line of JSON."""

    def configure(self, config: Any) -> None:
        """Tell a `model_signing.signing.Config` who signs."""


@dataclass(frozen=True)
class KeyTrust:
    """The holder of the private key that belongs to a public one."""

    key: PublicKey

    @property
    def name(self) -> str:
        return f"the key {self.key.fingerprint}"

    @property
    def check_options(self) -> str:
        return "--public-key PUB"

    @property
    def method(self) -> tuple[str, str]:
        return "key", "--public_key PUB"

    def opened(self, line: bytes) -> bytes:
        return unseal(line, self.key)

    def configure(self, config: Any, folder: Path) -> None:
        path = folder / "key.pub"
        path.write_bytes(self.key.pem)
        config.use_elliptic_key_verifier(public_key=path)


@dataclass(frozen=True)
class KeySigner:
    """The holder of a private key."""

    key: PrivateKey

    @property
    def trust(self) -> KeyTrust:
        return KeyTrust(self.key.public)

    def sealed(self, statement: bytes) -> bytes:
        return seal(statement, self.key)

    def configure(self, config: Any) -> None:
        # The type that model_signing 1.1.1 names for a password is not the one that works.
        config.use_elliptic_key_signer(private_key=self.key.path, password=self.key.password)


@dataclass(frozen=True)
class IdentityTrust:
    """A person or a workflow that an identity provider has vouched for to sigstore."""

    identity: str
    provider: str

    @property
    def name(self) -> str:
        return f"{self.identity} (identity provider {self.provider})"

    @property
    def check_options(self) -> str:
        return shlex.join(["--identity", self.identity, "--identity-provider", self.provider])

    @property
    def method(self) -> tuple[str, str]:
        return "sigstore", shlex.join(["--identity", self.identity, "--identity_provider", self.provider])

    def opened(self, line: bytes) -> bytes:
        from sigstore import errors
        from sigstore.models import Bundle, InvalidBundle
        from sigstore.verify import policy

        who, verifier = policy.Identity(identity=self.identity, issuer=self.provider), self._verifier
        try:
            kind, payload = verifier.verify_dsse(Bundle.from_json(line), who)
        except (errors.VerificationError, InvalidBundle, ValueError) as error:
            raise VerificationError(f"sigstore does not accept it for {self.name} ({error})") from None
        if kind != PAYLOAD_TYPE:
            raise VerificationError(f"the payload has the type {kind!r}, expected {PAYLOAD_TYPE}")
        return bytes(payload)

    @cached_property
    def _verifier(self) -> Any:
        from sigstore.verify import Verifier

        try:
            return Verifier.production()
        except Exception as error:
            raise unavailable(error) from None

    def configure(self, config: Any, folder: Path) -> None:
        try:
            config.use_sigstore_verifier(identity=self.identity, oidc_issuer=self.provider)
        except Exception as error:
            raise unavailable(error) from None


@dataclass(frozen=True)
class IdentitySigner:
    """Whoever runs this: the identity is asked for once, from the machine's own provider or in a browser."""

    @property
    def trust(self) -> IdentityTrust:
        return IdentityTrust(str(self._token.identity), str(self._token.federated_issuer))

    def sealed(self, statement: bytes) -> bytes:
        from sigstore.dsse import Statement

        try:
            with self._context.signer(self._token) as signer:
                return str(signer.sign_dsse(Statement(statement)).to_json()).encode()
        except Exception as error:
            raise unavailable(error) from None

    def configure(self, config: Any) -> None:
        try:
            config.use_sigstore_signer(identity_token=str(self._token))
        except Exception as error:
            raise unavailable(error) from None

    @cached_property
    def _trusted(self) -> Any:
        from sigstore.models import ClientTrustConfig

        return ClientTrustConfig.production()

    @cached_property
    def _context(self) -> Any:
        from sigstore.sign import SigningContext

        return SigningContext.from_trust_config(self._trusted)

    @cached_property
    def _token(self) -> Any:
        from sigstore.oidc import IdentityToken, Issuer, detect_credential

        try:
            found = detect_credential()
            if found is not None:
                return IdentityToken(found)
            return Issuer(self._trusted.signing_config.get_oidc_url()).identity_token()
        except Exception as error:
            raise unavailable(error) from None


def trusted(public_key: Path | None, identity: str | None, provider: str | None) -> Trust | None:
    """Return whom to trust; None if nobody is named. Raises `UsageError` for options that contradict each other."""
    if public_key is None and identity is None and provider is None:
        return None
    require_packages()
    if public_key is not None and identity is None and provider is None:
        return KeyTrust(PublicKey.read(public_key))
    if public_key is not None or identity is None or provider is None:
        raise UsageError("name either --public-key, or both --identity and --identity-provider")
    return IdentityTrust(identity, provider)


def signer_with(key: Path | None, password: str | None, sigstore: bool) -> Signer:
    """Return the signer. Raises `UsageError` unless there is either a key or `sigstore`, and for an invalid key."""
    if (key is not None) == sigstore:
        raise UsageError(f"name either --key KEY or --sigstore; {MAKE_KEY}")
    require_packages()
    return IdentitySigner() if key is None else KeySigner(PrivateKey.read(key, password))


def signed_by(trust: Trust, folder: str = "FOLDER", place: str | None = None) -> SignedBy:
    """Name a signer, with the commands that check the signature of a folder or of a `place`, `hf:owner/name`."""
    method, options = trust.method
    stock = f"model_signing verify {method} {folder} --signature {folder}/{SIGNATURE_NAME} {options}"
    return SignedBy(trust.name, (f"bit verify {place or folder} {trust.check_options}", stock))


def unavailable(error: Exception) -> ConvertError:
    """Return one error for everything that sigstore and the network raise; a token is never part of the message."""
    reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return ConvertError(f"sigstore could not be used ({reason[:200]}); check the network, or sign with --key KEY")
