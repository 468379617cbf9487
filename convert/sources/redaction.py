"""Keep credentials out of everything that is printed or stored."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote, unquote, urlsplit

from convert.files.base import shown

LONGEST = 300
"""Characters of a server's words that an error repeats."""
SHORTEST = 4
"""Characters of the shortest secret that is looked for in a text; a shorter one would blot out common words."""
PLACE = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:\d*)?")
"""Host and port of an address."""
PATTERNS = (
    (re.compile(r"(\w://)[^\s/?#]*@"), r"\1"),  # user and password of an address
    (re.compile(r"(\w://[^\s?'\"]*)\?[^\s'\"]*"), r"\1"),  # the query of an address may be a signature
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), "hf_…"),  # a token of the Hub
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), r"\1 …"),  # RFC 6750 and 7617
)


def redacted(text: object, secrets: Iterable[str] = ()) -> str:
    """Return a text as one line of at most `LONGEST` characters, without `secrets` and what looks like one."""
    line = str(text)
    for secret in secrets:
        if len(secret) >= SHORTEST:
            for spelling in (secret, repr(secret)[1:-1], quote(secret, safe="")):
                line = line.replace(spelling, "…")
    for pattern, replacement in PATTERNS:
        line = pattern.sub(replacement, line)
    return shown(" ".join(line.split()), LONGEST)


def without_credentials(url: str) -> str:
    """Return an address without user and password; of one that is malformed, what follows the last @."""
    scheme, slashes, rest = url.partition("://")
    if not slashes:
        return url.rpartition("@")[2]
    end = next((at for at, letter in enumerate(rest) if letter in "/?#"), len(rest))
    place = rest[:end].rpartition("@")[2]
    if not PLACE.fullmatch(place):
        return f"{scheme}{slashes}{rest.rpartition('@')[2]}"
    return f"{scheme}{slashes}{place}{rest[end:]}"


def credentials(url: str) -> tuple[str, str] | None:
    """Return user and password of an address; None if there are none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    if parts.username is None and parts.password is None:
        return None
    return unquote(parts.username or ""), unquote(parts.password or "")
