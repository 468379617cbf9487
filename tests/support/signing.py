"""Keys and signed folders for tests. The keys are made from fixed numbers; they protect nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from convert.progress import silent
from convert.publishing.signature import sign_verified
from convert.signing.check import Signature
from convert.signing.keys import PrivateKey, PublicKey
from convert.signing.signers import KeySigner, KeyTrust

PASSWORD = "open sesame"


def write_key(
    folder: Path, number: int = 1, curve: ec.EllipticCurve | None = None, password: str | None = None
) -> tuple[Path, Path]:
    """Write a pair of keys, and return the paths of the private and the public one."""
    key = ec.derive_private_key(123456789 + number, curve or ec.SECP256R1())
    private, public = folder / f"signer{number}.pem", folder / f"signer{number}.pub"
    protection = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def stock(folder: Path, public: Path) -> subprocess.CompletedProcess[str]:
    """Check a signature with the command of the package model-signing."""
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder)]
    options = ["--signature", str(folder / "model.sig"), "--public_key", str(public)]
    return subprocess.run([*command, *options], capture_output=True, text=True)


def signer(private: Path) -> KeySigner:
    return KeySigner(PrivateKey.read(private))


def trust(public: Path) -> KeyTrust:
    return KeyTrust(PublicKey.read(public))


def signed(folder: Path, private: Path, target: Path, repository: str | None = None) -> Signature:
    """Copy a verified folder, and sign the copy."""
    shutil.copytree(folder, target)
    return sign_verified(target, signer(private), repository, silent)


@dataclass(frozen=True)
class Signed:
    """Signed folders: `tiny`, and `timm`, another conversion; `old`, an older version of `tiny`; `foreign`, the
    same signed with another key."""

    place: Path
    private: Path
    public: Path
    foreign: Path
    """Another private key."""
