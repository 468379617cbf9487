"""`model.sig`: the signature of OpenSSF Model Signing over every file of a folder, written by `model-signing`."""

from __future__ import annotations

import importlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Annotated, Any

import msgspec

from convert.checkpoints.manifest import SIGNATURE_NAME
from convert.checkpoints.records import Sha256
from convert.errors import ConvertError, VerificationError
from convert.files.base import shown
from convert.signing.envelope import decode_base64
from convert.signing.signers import Signer, Trust

MAX_BYTES = 8 << 20
"""Largest `model.sig`; it takes 150 bytes for each file."""
PARTS = {"mediaType", "verificationMaterial", "dsseEnvelope"}
"""The keys of a sigstore bundle, version 0.3, with an envelope."""
PREDICATE = "https://model_signing/signature/v1.0"
MISMATCH = re.compile(r"Hash mismatch for \\?'(.+?)\\?'")
"""The name of a changed file in the words of model-signing, in which quotes may be escaped."""
NOT_SIGNED = (".git", ".gitattributes")
"""Names that git and the Hub add to a repository; Model Signing leaves them out as well."""


class _File(msgspec.Struct, frozen=True):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    digest: Sha256
    algorithm: Annotated[str, msgspec.Meta(pattern=r"^sha256\Z")]


class _Serialization(msgspec.Struct, frozen=True):
    method: Annotated[str, msgspec.Meta(pattern=r"^files\Z")]


class _Predicate(msgspec.Struct, frozen=True):
    resources: list[_File]
    serialization: _Serialization


class _Statement(msgspec.Struct, frozen=True, rename={"kind": "predicateType"}):
    kind: Annotated[str, msgspec.Meta(pattern=rf"^{PREDICATE}\Z")]
    predicate: _Predicate


def write_signature(folder: Path, signer: Signer) -> None:
    """Write `model.sig`, over every other file in the folder. Raises `ConvertError`."""
    model_signing = _library()
    config = model_signing.signing.Config()
    signer.configure(config)
    config.set_hashing_config(_hashing(linked=False))
    try:
        config.sign(folder, folder / SIGNATURE_NAME)
    except OSError:
        raise
    except Exception as error:  # whatever sigstore, OpenSSL and the network raise
        raise ConvertError(f"{folder} could not be signed ({shown(error)})") from None


def signed_files(data: bytes, names: set[str]) -> dict[str, str]:
    """Return the SHA-256 of every file that a signature covers, by name; nothing is checked but the form.

    Raises `VerificationError` if the signature is damaged or covers other files than those in `names`.
    """
    if len(data) > MAX_BYTES:
        raise VerificationError(f"{SIGNATURE_NAME} has more than {MAX_BYTES} bytes")
    try:
        bundle = json.loads(data)
        # One right spelling: otherwise bytes could change that no signature covers.
        if json.dumps(bundle, separators=(",", ":"), ensure_ascii=False).encode() != data:
            raise VerificationError("it is not in the form that model-signing writes")
        envelope = bundle["dsseEnvelope"]
        (signature,) = envelope["signatures"]
        if bundle.keys() != PARTS or ("publicKey" in bundle["verificationMaterial"] and bundle != _plain(bundle)):
            raise VerificationError("it holds more than model-signing writes")
        decode_base64(signature["sig"])
        statement = msgspec.json.decode(decode_base64(envelope["payload"]), type=_Statement)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise VerificationError(f"{SIGNATURE_NAME} is damaged: {shown(error)}") from None
    files = {file.name: file.digest for file in statement.predicate.resources}
    missing, added = sorted(files.keys() - names), sorted(names - files.keys())
    if missing:
        raise VerificationError(f"{shown(missing[0])} was signed and is missing")
    if added:
        raise VerificationError(f"{shown(added[0])} is not signed; it was added or renamed")
    return files


def check_signature(folder: Path, data: bytes, trust: Trust, linked: bool) -> None:
    """Check a signature, and the bytes of every file. Raises `VerificationError`.

    With `linked` the files may be symbolic links, as in huggingface_hub's cache.
    """
    model_signing = _library()
    with tempfile.TemporaryDirectory(prefix="bit-signature-") as name:
        signature = Path(name) / SIGNATURE_NAME  # the bytes that were parsed, not what is in the folder by now
        signature.write_bytes(data)
        config = model_signing.verifying.Config()
        trust.configure(config, Path(name))
        config.set_hashing_config(_hashing(linked))
        try:
            config.verify(folder, signature)
        except OSError:
            raise
        except Exception as error:  # cryptography, pydantic and sigstore raise classes of their own
            raise VerificationError(_explained(error, trust)) from None


def file_names(folder: Path, linked: bool) -> set[str]:
    """Return the names of the files that a signature must cover. Raises `VerificationError` for anything but files."""
    names = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            left_out = entry.name in NOT_SIGNED and not entry.is_symlink()
            if left_out and (entry.name == ".git" or entry.is_file()):
                continue
            if not entry.is_file(follow_symlinks=linked):
                raise VerificationError(f"{shown(entry.name)} is not a regular file")
            names.add(entry.name)
    return names - {SIGNATURE_NAME}


def _plain(bundle: dict[str, Any]) -> dict[str, Any]:
    """Return the bundle of a key with nothing but the parts that are checked; some are outside the signature."""
    envelope = bundle["dsseEnvelope"]
    hint = bundle["verificationMaterial"]["publicKey"]["hint"]
    if not hint:  # model-signing prints a warning, and accepts it
        raise VerificationError("it does not name the key")
    return {
        "mediaType": bundle["mediaType"],
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": envelope["payload"],
            "payloadType": envelope["payloadType"],
            "signatures": [{"sig": envelope["signatures"][0]["sig"], "keyid": ""}],
        },
    }


def _library() -> Any:
    """Import `model_signing`, which takes a second and has no types for `mypy --strict`."""
    return importlib.import_module("model_signing")


def _hashing(linked: bool) -> Any:
    return _library().hashing.Config().set_ignored_paths(paths=[SIGNATURE_NAME]).set_allow_symlinks(linked)


def _explained(error: Exception, trust: Trust) -> str:
    text = " ".join(str(error).split())
    if text.startswith("Signature mismatch"):
        name = MISMATCH.search(text)
        return f"{shown(name[1])} was changed after it was signed" if name else "it differs from what was signed"
    reason = "" if not text or text.startswith("Key mismatch") else f" ({shown(text)})"
    return f"{SIGNATURE_NAME} is not a signature by {trust.name}{reason}"
