"""Sign a verified folder, with a model card if it is to be published, and check a signature."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Unpack

from convert.checkpoints.epsilon import check_ws_eps
from convert.checkpoints.manifest import SIGNATURE_NAME, SIGNING_NAMES, is_own_card
from convert.conversion.existing import converted_folder
from convert.errors import UsageError, VerificationError, check_names
from convert.files.base import shown
from convert.options import CheckOptions, PushOptions, SignOptions, StrPath, TrustOptions
from convert.progress import Progress, silent
from convert.publishing.card import card
from convert.publishing.gate import AS_STORED, CARD_NAME, Gate, VerifiedFolder, check_folder
from convert.publishing.repository import check_name
from convert.references.recordings import SHIPPED, recordings_folder
from convert.signing.bundle import signed_files
from convert.signing.check import Signature, check_folder_signature
from convert.signing.keys import require_packages
from convert.signing.sign import Evidence, sign_folder
from convert.signing.signers import Signer, Trust, signed_by, signer_with, trusted
from convert.sources.resolve import fetch_repository, user_path


def sign(
    folder: StrPath,
    *,
    repository: str | None = None,
    to: str = "transformers",
    progress: Progress = silent,
    **options: Unpack[SignOptions],
) -> Signature:
    """Sign a verified folder: an attestation of the comparisons, and a signature over every file.

    `folder` may also be the name of the checkpoint that was converted, with `to` for the layout. With a
    `repository`, `owner/name`, the model card for it is written first, unless there is one. Raises
    `VerificationError` for a folder that is not exactly as it was verified, and `UsageError` for options.
    """
    check_names(options, SignOptions)
    signer = _signer(options.get("key"), options.get("password"), options.get("sigstore", False))
    if repository is not None:
        check_name(repository)
    source = user_path(named) if (named := options.get("source")) is not None else None
    recordings = (SHIPPED, recordings_folder(options.get("recordings")))
    gate = Gate(options.get("reverify", False), source, recordings, check_ws_eps(options.get("source_ws_eps")))
    return sign_verified(converted_folder(folder, to), signer, repository, progress, gate)


def check_signature(
    folder: StrPath,
    *,
    to: str = "transformers",
    trust: Trust | None = None,
    progress: Progress = silent,
    **options: Unpack[TrustOptions],
) -> Signature:
    """Check the signature of a folder or of `hf:owner/name`, the attestation and every byte; write nothing.

    `public_key`, or `identity` and `identity_provider`, name the signer. Raises `VerificationError` for a
    folder that is not exactly as this signer left it, and `UsageError` for options.
    """
    check_names(options, TrustOptions)
    trust = trust or trust_of(options)
    if trust is None:
        raise UsageError("name the signer with --public-key, or with --identity and --identity-provider")
    fetched = fetch_repository(os.fspath(folder), progress)
    path = fetched or converted_folder(folder, to)
    return check_folder_signature(path, trust, progress, linked=fetched is not None)


def trust_of(options: TrustOptions | CheckOptions | PushOptions) -> Trust | None:
    """Return the signer that the options name, or None. Raises `UsageError`."""
    key = options.get("public_key")
    return trusted(user_path(key) if key else None, options.get("identity"), options.get("identity_provider"))


def signing_options(options: PushOptions) -> dict[str, Any]:
    """Return the options of a push with a `signer` and whom to `trust` in place of keys. Raises `UsageError`."""
    rest: dict[str, Any] = dict(options)
    key, password, sigstore = (rest.pop(name, None) for name in ("sign", "password", "sigstore"))
    required, trust = rest.pop("require_signature", False), trust_of(options)
    if required and trust is None:
        raise UsageError("--require-signature needs --public-key, or --identity and --identity-provider")
    signer = _signer(key, password, bool(sigstore)) if key or sigstore else None
    names = TrustOptions.__optional_keys__
    return {name: value for name, value in rest.items() if name not in names} | {"signer": signer, "trust": trust}


def _signer(key: StrPath | None, password: str | None, sigstore: bool) -> Signer:
    return signer_with(user_path(key) if key else None, password, sigstore)


def sign_verified(
    folder: Path, signer: Signer, repository: str | None, progress: Progress, gate: Gate = AS_STORED
) -> Signature:
    """Sign a folder that is exactly as it was verified; with a `repository`, `owner/name`, add the card first.

    A card that somebody else wrote is kept, and signed. A folder that this signer has signed already, with
    that card, is left as it is. Raises `VerificationError` for a folder that was changed or not verified.
    """
    require_packages()
    verified = check_folder(folder, progress, gate)
    text = new_card(verified, signer.trust, repository)
    if text is None or (CARD_NAME in verified.files and verified.files[CARD_NAME].read() == text):
        try:
            return check_folder_signature(folder, signer.trust, progress)
        except VerificationError:
            pass  # not signed, or by somebody else, or before it was verified again
    digests = {name: content.sha256 for name, content in verified.files.items()}
    return sign_folder(folder, Evidence(verified.manifest, verified.verification, digests), signer, text, progress)


def new_card(verified: VerifiedFolder, trust: Trust | None, repository: str | None) -> bytes | None:
    """Return the card that is to be written for a repository; None if there is none, or the folder has a card."""
    if repository is None or (CARD_NAME in verified.files and not is_own_card(verified.files[CARD_NAME].read())):
        return None
    signed = signed_by(trust, repository.partition("/")[2], f"hf:{repository}") if trust is not None else None
    return card(verified.manifest, verified.verification, repository, signed, checked=verified.checked).encode()


def check_covered(folder: Path, verified: VerifiedFolder) -> None:
    """Raise `VerificationError` unless a signature in the folder, whoever made it, covers these very files."""
    present = [name for name in SIGNING_NAMES if name in verified.files]
    if not present:
        return
    if missing := [name for name in SIGNING_NAMES if name not in present]:
        raise VerificationError(f"{folder} holds {present[0]} without {missing[0]}; sign it again, or remove the file")
    digests = {name: file.sha256 for name, file in verified.files.items() if name != SIGNATURE_NAME}
    try:
        signed = signed_files(verified.files[SIGNATURE_NAME].read(), set(digests))
        if changed := [name for name in digests if signed[name] != digests[name]]:
            raise VerificationError(f"{shown(changed[0])} is not the file that was signed")
    except VerificationError as error:
        raise VerificationError(f"{folder} cannot be published: {error}; sign it again", [str(error)]) from None


def check_signed_files(folder: Path, verified: VerifiedFolder, trust: Trust, progress: Progress) -> Signature:
    """Check a signature, and that it covers the very bytes that are to be published. Raises `VerificationError`."""
    signature = check_folder_signature(folder, trust, progress)
    signature.check_same({name: file.sha256 for name, file in verified.files.items() if name != SIGNATURE_NAME})
    return signature
