"""Sign a verified folder, with a model card if it is to be published."""

from __future__ import annotations

from pathlib import Path

from convert.checkpoints.manifest import is_own_card
from convert.errors import VerificationError
from convert.files.base import shown
from convert.progress import Progress
from convert.publishing.card import card
from convert.publishing.gate import CARD_NAME, VerifiedFolder, check_folder
from convert.signing.check import Signature, check_folder_signature
from convert.signing.keys import require_packages
from convert.signing.sign import Evidence, sign
from convert.signing.signers import Signer, Trust, signed_by


def sign_verified(folder: Path, signer: Signer, repository: str | None, progress: Progress) -> Signature:
    """Sign a folder that is exactly as it was verified; with a `repository`, `owner/name`, add the card first.

    A card that somebody else wrote is kept, and signed. A folder that this signer has signed already, with
    that card, is left as it is. Raises `VerificationError` for a folder that was changed or not verified.
    """
    require_packages()
    verified = check_folder(folder, progress)
    text = new_card(verified, signer.trust, repository)
    if text is None or (CARD_NAME in verified.files and verified.files[CARD_NAME].read() == text):
        try:
            return check_folder_signature(folder, signer.trust, progress)
        except VerificationError:
            pass  # not signed, or by somebody else, or before it was verified again
    digests = {name: content.sha256 for name, content in verified.files.items()}
    return sign(folder, Evidence(verified.manifest, verified.verification, digests), signer, text, progress)


def new_card(verified: VerifiedFolder, trust: Trust | None, repository: str | None) -> bytes | None:
    """Return the card that is to be written for a repository; None if there is none, or the folder has a card."""
    if repository is None or (CARD_NAME in verified.files and not is_own_card(verified.files[CARD_NAME].read())):
        return None
    signed = signed_by(trust, repository.partition("/")[2], f"hf:{repository}") if trust is not None else None
    return card(verified.manifest, verified.verification, repository, signed).encode()


def check_signed_files(folder: Path, verified: VerifiedFolder, trust: Trust, progress: Progress) -> Signature:
    """Check a signature, and that it covers the very bytes that are to be published. Raises `VerificationError`."""
    signature = check_folder_signature(folder, trust, progress)
    for name, digest in signature.files.items():
        if name not in verified.files or verified.files[name].sha256 != digest:
            raise VerificationError(f"{folder / shown(name)} changed while the signature was checked; push again")
    return signature
