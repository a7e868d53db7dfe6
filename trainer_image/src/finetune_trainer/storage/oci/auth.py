"""How a registry knows the user: a key from a Secret of type `kubernetes.io/dockerconfigjson`, by its challenge."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode
from urllib.request import parse_http_list, parse_keqv_list

from finetune_api.endpoints import is_endpoint

DOCKER_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
"""The names of one registry: in references, in configurations of Docker, and of the server itself."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a registry asks for with status 401: `basic`, or `bearer` with the address of its server of tokens."""

    scheme: str
    realm: str = ""
    service: str = ""


def find_key(config: bytes, host: str, path: str) -> str | None:
    """Return user and password for a repository as a Basic header has them; None if the file has no entry for it.

    Of several entries the one with the longest path counts, as for a kubelet. Raise ValueError for an unusable one.
    """
    try:
        entries = json.loads(config)["auths"]
        wanted = f"{_canonical(host)}/{path}/"
        found = [name for name in entries if wanted.startswith(f"{_entry_name(name)}/")]
        entry = entries[max(found, key=lambda name: len(_entry_name(name)))] if found else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError('is not a configuration of Docker, as {"auths": {"HOST": {"auth": "…"}}}') from None
    return None if entry is None else _read_entry(entry)


def _entry_name(name: str) -> str:
    rest = name.partition("://")[2] or name
    host, _, path = rest.rstrip("/").partition("/")
    path = "" if path in {"v1", "v2"} else path
    return f"{_canonical(host)}/{path}".rstrip("/")


def _canonical(host: str) -> str:
    return "docker.io" if host.lower() in DOCKER_HUB else host.lower()


def _read_entry(entry: Mapping[str, Any]) -> str:
    """Return the value of a Basic header."""
    try:
        if given := entry.get("auth"):
            pair = base64.b64decode(given, validate=True).rstrip(b"\0")
        else:
            pair = f"{entry['username']}:{entry['password']}".encode()
    except (ValueError, TypeError, KeyError, AttributeError):
        pair = b""
    if b":" not in pair[1:]:
        raise ValueError("has neither auth (user:password in base64) nor username and password for the registry")
    return base64.b64encode(pair).decode("ascii")


def parse_challenge(headers: Sequence[str]) -> Challenge | None:
    """Return what the headers `WWW-Authenticate` ask for; None if it is nothing that a registry asks for."""
    for header in headers:
        scheme, _, rest = header.partition(" ")
        if scheme.lower() == "basic":
            return Challenge("basic")
        if scheme.lower() != "bearer":
            continue
        try:
            given = {name.strip().lower(): value for name, value in parse_keqv_list(parse_http_list(rest)).items()}
        except (ValueError, IndexError):
            return None
        return Challenge("bearer", given.get("realm", ""), given.get("service", ""))
    return None


def token_address(challenge: Challenge, path: str, *, is_insecure: bool) -> str | None:
    """Return where a token for pushes to one repository is requested; None if no key may be sent there.

    The registry chooses the server, but neither what the token is for nor, if it is reached over TLS, a plain one.
    """
    if not is_endpoint(challenge.realm) or not (challenge.realm.startswith("https://") or is_insecure):
        return None
    service = {"service": challenge.service} if challenge.service else {}
    return f"{challenge.realm}?{urlencode({**service, 'scope': f'repository:{path}:pull,push'})}"
