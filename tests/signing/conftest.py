"""Two signed folders, an older signature of one of them, and two keys; none is to be changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.conversions import convert, verified
from support.signing import Signed, signed, write_key


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pairs of keys `signer1` and `signer2`."""
    folder = tmp_path_factory.mktemp("keys")
    for number in (1, 2):
        write_key(folder, number)
    return folder


@pytest.fixture(scope="session")
def folders(verified_tiny: Path, tiny_npz: Path, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Signed:
    place, private = tmp_path_factory.mktemp("signed"), keys / "signer1.pem"
    timm = convert(tiny_npz, "timm", place / "verified")
    assert verified(timm, tiny_npz).passed
    signed(verified_tiny, private, place / "tiny", "me/tiny")
    signed(timm, private, place / "timm", "me/timm")
    signed(verified_tiny, private, place / "old", "me/old")
    signed(verified_tiny, keys / "signer2.pem", place / "foreign", "me/tiny")
    return Signed(place, private, keys / "signer1.pub", keys / "signer2.pem")
