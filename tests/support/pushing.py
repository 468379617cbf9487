"""Shared by the tests of pushing: an account, a token, and the push itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from support.hub import HubServer
from support.hub_repositories import Repository

from convert.progress import silent
from convert.publishing.publish import Publication, PublishOptions, publish

TOKEN = "hf_never-to-be-seen"
REPOSITORY = "me/tiny"
FOREVER = 1000


def account(role: str = "write", **token: Any) -> dict[str, Any]:
    """Return the Hub's answer to a token of a user who may write in one organization and read in another."""
    orgs = [{"name": "lab", "roleInOrg": "write"}, {"name": "museum", "roleInOrg": "read"}]
    return {"name": "me", "orgs": orgs, "auth": {"accessToken": {"role": role, **token}}}


def push(server: HubServer, folder: Path, repository: str = REPOSITORY, **options: Any) -> Publication:
    """Push without repeating the verification, which takes longer than the rest, unless `reverify` is given."""
    options = {"reverify": False, **options}
    api = HfApi(endpoint=server.endpoint, token=TOKEN)
    return publish(folder, repository, PublishOptions(**options), silent, api)


def content(repository: Repository) -> dict[str, bytes]:
    """Return the files of the main branch, without the one that the Hub itself puts there."""
    return {name: blob.read() for name, blob in repository.files.items() if name != ".gitattributes"}


def local(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the content of `verification.json`."""
    report = json.loads((folder / "verification.json").read_text())
    change(report)
    (folder / "verification.json").write_text(json.dumps(report))
