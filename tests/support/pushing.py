"""What the tests of pushing share: an account, its token, and the push itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from support.hub import HubServer
from support.hub_repositories import Repository

from convert.progress import silent
from convert.publishing.publish import Publication, publish

TOKEN = "hf_never-to-be-seen"
REPOSITORY = "me/tiny"
FOREVER = 1000


def account(role: str = "write", **token: Any) -> dict[str, Any]:
    """What the Hub says of a token; its owner writes for one organization, and reads in another."""
    orgs = [{"name": "lab", "roleInOrg": "write"}, {"name": "museum", "roleInOrg": "read"}]
    return {"name": "me", "orgs": orgs, "auth": {"accessToken": {"role": role, **token}}}


def push(server: HubServer, folder: Path, repository: str = REPOSITORY, **options: Any) -> Publication:
    return publish(folder, repository, silent, api=HfApi(endpoint=server.endpoint, token=TOKEN), **options)


def content(repository: Repository) -> dict[str, bytes]:
    """What the main branch holds, but for what the Hub itself put there."""
    return {name: blob.read() for name, blob in repository.files.items() if name != ".gitattributes"}


def local(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change what `verification.json` says."""
    report = json.loads((folder / "verification.json").read_text())
    change(report)
    (folder / "verification.json").write_text(json.dumps(report))
