"""Check, before anything is sent, that a token may write to a repository."""

from __future__ import annotations

import re
from typing import Any

from convert.errors import HubError, UsageError

SETTINGS = "https://huggingface.co/settings/tokens"
ACCOUNT = re.compile(r"[\w.-]{1,100}", re.ASCII)


def check_permission(whoami: Any, repository: str, create_pr: bool) -> tuple[str, str]:
    """Return the name of the account, and `repository` with an owner, by default the account.

    `whoami` is the Hub's answer to `/api/whoami-v2`. Whoever may write somewhere may open a pull
    request (`create_pr`) anywhere. Raises `HubError` if the token may not write, and `UsageError` for the
    name of an account alone.
    """
    try:
        account, roles = whoami["name"], {whoami["name"].lower(): "owner"}
        roles |= {each["name"].lower(): each.get("roleInOrg") or "member" for each in whoami.get("orgs", [])}
        token = whoami.get("auth", {}).get("accessToken") or {}
        if not ACCOUNT.fullmatch(account):
            raise TypeError
        if repository.lower() in roles:
            raise UsageError(f"{repository} is an account; name a repository, such as {repository}/NAME")
        repository = repository if "/" in repository else f"{account}/{repository}"
        role, granted = token.get("role"), _grants(token, repository, create_pr)
    except (AttributeError, KeyError, TypeError):
        raise HubError("the Hub does not tell who owns the token; check that HF_ENDPOINT is a Hub") from None
    owner = repository.split("/")[0]
    if role == "read":
        raise HubError(f"the token is read-only; create one with write access at {SETTINGS}")
    if role == "fineGrained" and not granted:
        raise HubError(f"the token has no write access to {repository}; grant it at {SETTINGS}")
    if not create_pr and roles.get(owner.lower(), "none") in ("none", "read", "no_access"):
        raise HubError(f"{account} has no write access to repositories of {owner}; propose the files with --create-pr")
    return account, repository


def _grants(token: dict[str, Any], repository: str, create_pr: bool) -> bool:
    """Return whether a fine-grained token may write to a repository, or open a pull request there."""
    fine = token.get("fineGrained") or {}
    if create_pr and "discussion.write" in fine.get("global", []):
        return True
    wanted = {"repo.write", "discussion.write"} if create_pr else {"repo.write"}
    places = {repository.lower(), repository.split("/")[0].lower()}
    return any(
        each["entity"].get("name", "").lower() in places and wanted & set(each.get("permissions", []))
        for each in fine.get("scoped", [])
    )
