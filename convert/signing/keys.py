"""Elliptic-curve keys in PEM files. The package `cryptography` comes with the extra `sign`."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.errors import UsageError, VerificationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey

CURVES = {"secp256r1": ("nistp256", "SHA256"), "secp384r1": ("nistp384", "SHA384"), "secp521r1": ("nistp521", "SHA512")}
"""The curves that OpenSSF Model Signing accepts, each with the name of the DSSE scheme and the hash."""
MAX_KEY_BYTES = 100_000
"""Largest size of a key file; a PEM of the largest curve has 400 bytes."""
ENCRYPTED = b"ENCRYPTED"
"""Mark of a PEM file that needs a password (RFC 7468, section 11, and the older format of OpenSSL)."""
MAKE_KEY = "make one with openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256"


def require_packages() -> None:
    """Raise `UsageError` if a package that signing needs is missing."""
    for module, package in {"model_signing": "model-signing", "OpenSSL": "pyopenssl"}.items():
        if importlib.util.find_spec(module) is None:
            raise UsageError(f"{package} is not installed; run make setup, or pip install -e '.[sign]'")


@dataclass(frozen=True)
class PublicKey:
    """A public key on one of the `CURVES`."""

    key: EllipticCurvePublicKey

    @classmethod
    def read(cls, path: Path) -> PublicKey:
        """Read a PEM file. Raises `UsageError` for anything else and for other kinds of keys."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        try:
            key = load_pem_public_key(_content(path))
        except (ValueError, UnsupportedAlgorithm):
            raise UsageError(
                f"{path} is not a public key in PEM format; write it with openssl pkey -in KEY -pubout"
            ) from None
        return cls(_of_known_curve(key, path))

    @cached_property
    def pem(self) -> bytes:
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return self.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the key in DER, as `openssl pkey -pubin -outform DER | openssl sha256` prints it."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        der = self.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return f"SHA256:{hashlib.sha256(der).hexdigest()}"

    @cached_property
    def keyid(self) -> str:
        """The key's name in a DSSE envelope: that of securesystemslib, which finds signatures by it."""
        pem, scheme = self.pem.decode(), CURVES[self.key.curve.name][0]
        # The canonical JSON of securesystemslib escapes quotes and backslashes alone, and a PEM has neither.
        text = f'{{"keytype":"ecdsa","keyval":{{"public":"{pem}"}},"scheme":"ecdsa-sha2-{scheme}"}}'
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def algorithm(self) -> ECDSA:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

        return ECDSA(getattr(hashes, CURVES[self.key.curve.name][1])())

    def check(self, signature: bytes, message: bytes) -> None:
        """Raise `VerificationError` unless this key signed the message."""
        from cryptography.exceptions import InvalidSignature

        try:
            self.key.verify(signature, message, self.algorithm)
        except InvalidSignature:
            raise VerificationError(f"the signature is not one of the key {self.fingerprint}") from None


@dataclass(frozen=True)
class PrivateKey:
    """A private key in a file, and the password if the file is encrypted."""

    path: Path
    key: EllipticCurvePrivateKey = field(repr=False)
    password: bytes | None = field(default=None, repr=False)

    @classmethod
    def read(cls, path: Path, password: str | None = None) -> PrivateKey:
        """Read a PEM file. Raises `UsageError` for anything else, other kinds of keys and a wrong password."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        data = _content(path)
        encrypted = ENCRYPTED in data
        if encrypted and not password:
            raise UsageError(f"{path} is encrypted: set BIT_KEY_PASSWORD to the password, or run on a terminal")
        secret = password.encode() if encrypted and password else None
        try:
            key = load_pem_private_key(data, secret)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            reason = "the password is wrong, or the file is damaged" if encrypted else f"{MAKE_KEY}"
            raise UsageError(f"{path} cannot be read as a private key in PEM format: {reason}") from None
        return cls(path, _of_known_curve(key, path), secret)

    @cached_property
    def public(self) -> PublicKey:
        return PublicKey(self.key.public_key())

    def sign(self, message: bytes) -> bytes:
        return self.key.sign(message, self.public.algorithm)


def is_encrypted(path: Path) -> bool:
    """Return whether a key file needs a password. Raises `UsageError` if there is no such file."""
    return ENCRYPTED in _content(path)


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise UsageError(f"there is no key file {path}; {MAKE_KEY}")
    with path.open("rb") as file:
        data = file.read(MAX_KEY_BYTES + 1)
    if len(data) > MAX_KEY_BYTES:
        raise UsageError(f"{path} has more than {MAX_KEY_BYTES} bytes and is not a key; {MAKE_KEY}")
    return data


def _of_known_curve(key: object, path: Path) -> Any:
    curve = getattr(getattr(key, "curve", None), "name", type(key).__name__.lstrip("_"))
    if curve not in CURVES:
        raise UsageError(f"{path} holds a key of the kind {curve}, expected {', '.join(CURVES)}; {MAKE_KEY}")
    return key
