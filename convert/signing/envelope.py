"""DSSE envelopes (github.com/secure-systems-lab/dsse, version 1): a signed text and the kind of text that it is."""

from __future__ import annotations

import base64
import binascii

import msgspec

from bit.files import one_line
from convert.errors import VerificationError
from convert.signing.keys import PrivateKey, PublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"


class EnvelopeSignature(msgspec.Struct, forbid_unknown_fields=True):
    """One signature, in Base64."""

    keyid: str
    sig: str


class Envelope(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """An envelope with one signature; `payload` is in Base64."""

    payload: str
    payload_type: str
    signatures: tuple[EnvelopeSignature]


def seal(payload: bytes, key: PrivateKey) -> bytes:
    """Return the JSON of an envelope that the key signed, in one line."""
    signature = EnvelopeSignature(key.public.keyid, _text(key.sign(pae(payload))))
    return msgspec.json.encode(Envelope(_text(payload), PAYLOAD_TYPE, (signature,)))


def unseal(line: bytes, key: PublicKey) -> bytes:
    """Return the payload of an envelope. Raises `VerificationError` unless the key signed it."""
    try:
        envelope = msgspec.json.decode(line, type=Envelope)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise VerificationError(f"it is not a DSSE envelope with one signature ({one_line(error)})") from None
    if envelope.payload_type != PAYLOAD_TYPE:
        raise VerificationError(f"the payload has the type {envelope.payload_type[:80]!r}, expected {PAYLOAD_TYPE}")
    payload = decode_base64(envelope.payload)
    key.check(decode_base64(envelope.signatures[0].sig), pae(payload))
    return payload


def pae(payload: bytes, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """Return the bytes that are signed: the type and the payload, each after the length."""
    return b"DSSEv1 %d %b %d %b" % (len(payload_type), payload_type.encode(), len(payload), payload)


def decode_base64(text: str) -> bytes:
    """Decode Base64. Raises `VerificationError` for any but the one right spelling of the bytes."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise VerificationError("it holds invalid Base64") from None
    if _text(data) != text:
        raise VerificationError("it holds invalid Base64")
    return data


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
