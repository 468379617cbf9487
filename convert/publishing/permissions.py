"""Whether a token may write to a repository, from what the Hub says of it before anything is sent."""

from __future__ import annotations

from typing import Any

from convert.errors import CheckpointError

SETTINGS = "https://huggingface.co/settings/tokens"


def check_permission(whoami: Any, repository: str, create_pr: bool) -> tuple[str, str]:
    """The name of the account, and the repository's with its owner, the account where it has none.

    `whoami` is the Hub's answer to `/api/whoami-v2`. Anyone who may write somewhere may open a
    pull request (`create_pr`) anywhere. Raises `CheckpointError` for a token that may not write.
    """
    try:
        account, roles = whoami["name"], {whoami["name"].lower(): "owner"}
        roles |= {each["name"].lower(): each.get("roleInOrg") or "member" for each in whoami.get("orgs", [])}
        token = whoami.get("auth", {}).get("accessToken") or {}
        repository = repository if "/" in repository else f"{account}/{repository}"
        role, granted = token.get("role"), _grants(token, repository, create_pr)
    except (AttributeError, KeyError, TypeError):
        raise CheckpointError("the Hub does not say who the token belongs to; is HF_ENDPOINT a Hub?") from None
    owner = repository.split("/")[0]
    if role == "read":
        raise CheckpointError(f"the token may only read; make one that may write at {SETTINGS}")
    if role == "fineGrained" and not granted:
        raise CheckpointError(
            f"the token grants no writing to {repository}; give it that, or make another, at {SETTINGS}"
        )
    if not create_pr and roles.get(owner.lower(), "none") in ("none", "read", "no_access"):
        raise CheckpointError(
            f"{account} may not write to repositories of {owner}; --create-pr asks its owner to take the files"
        )
    return account, repository


def _grants(token: dict[str, Any], repository: str, create_pr: bool) -> bool:
    """Whether a fine-grained token may write to a repository, or open a pull request there."""
    fine = token.get("fineGrained") or {}
    if create_pr and "discussion.write" in fine.get("global", []):
        return True
    wanted = {"repo.write", "discussion.write"} if create_pr else {"repo.write"}
    places = {repository.lower(), repository.split("/")[0].lower()}
    return any(
        each["entity"].get("name", "").lower() in places and wanted & set(each.get("permissions", []))
        for each in fine.get("scoped", [])
    )
