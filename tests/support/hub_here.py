"""Let huggingface_hub in this process use a Hub on the loopback, a cache of its own and a token."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from huggingface_hub import constants
from support.hub import HubServer
from support.pushing import TOKEN

from convert.publishing import repository
from convert.sources import hub


def use(server: HubServer, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """Ask this Hub alone, without Xet, without the seconds between attempts, and each thing once."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.endpoint)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "ENDPOINT", server.endpoint)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setenv("HF_TOKEN", TOKEN)
    patch.setattr(time, "sleep", lambda seconds: None)
    for room in (hub, repository):
        patch.setattr(room, "PATIENCE", 0.0)


def hasten(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let every silence and every answer of the Hub end after `seconds`."""
    for room in (hub, repository):
        patch.setattr(room, "SLOWEST", 10**9)
        patch.setattr(room, "SILENCE", seconds)
        patch.setattr(room, "SECONDS", seconds)
    patch.setattr(repository, "LONGEST_SILENCE", seconds)
