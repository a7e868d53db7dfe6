"""The server that each key of a developer's machine belongs to, and whether a manifest's server may get the key."""

from collections.abc import Collection
from dataclasses import dataclass
from urllib.request import getproxies, proxy_bypass

from finetune_api.endpoints import is_loopback, is_same_server, parse_host

FLAG = "--send-keys-to"


@dataclass(frozen=True, slots=True)
class OwnKey:
    """A key of this machine, under its name in messages, and its server; `setting` is the variable that names it."""

    name: str
    server: str | None
    setting: str

    @property
    def owner(self) -> str:
        """Return the key's server for messages."""
        return f"{self.server} (see {self.setting})" if self.server else f"no server, because {self.setting} is not set"


def explain_other_server(key: OwnKey, field: str, endpoint: str, named: Collection[str]) -> str | None:
    """Return why the key does not belong to the endpoint of a field; None if it does, or if the user named it."""
    if any(is_same_server(endpoint, one) for one in (key.server or "", *named)):
        return None
    return (
        f"{field} is {endpoint}, but {key.name} belongs to {key.owner}: if it is meant for both, add {FLAG} {endpoint}"
    )


def explain_withheld(token: OwnKey, field: str, endpoint: str, named: Collection[str]) -> str | None:
    """Return why a token, which a request contains as it is, may not be sent to an endpoint; None if it may."""
    if endpoint.startswith("http://"):
        prefix = f"{field} is {endpoint}, but {token.name} is not sent over http, which is not encrypted"
        if not is_loopback(endpoint):
            return f"{prefix}: use https, or forward a port of this machine and use http://localhost"
        if _is_proxied(endpoint):
            return f"{prefix}, through the proxy in HTTP_PROXY or ALL_PROXY: add {parse_host(endpoint)} to NO_PROXY"
    return explain_other_server(token, field, endpoint, named)


def _is_proxied(endpoint: str) -> bool:
    proxies = getproxies()
    return bool(proxies.get("http") or proxies.get("all")) and not proxy_bypass(parse_host(endpoint))
