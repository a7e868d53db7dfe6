"""Errors of the API server, typed by what the operator must do about them."""

import re
from http import HTTPStatus

import orjson

from finetune_api import names

_RBAC = re.compile(r'cannot (\w+) resource "([^"]+)"')
_DENIAL = re.compile(r'admission webhook "[^"]*" denied the request')
"""A webhook chooses the code of its denial."""
_SOURCE = re.compile(r"\S{1,64}:\d{1,5}->")
"""The API server's own end of a broken connection, whose port is another one each time."""


class ClusterError(Exception):
    """The API server did not do what was requested."""


class RetryLater(ClusterError):  # noqa: N818 -- the name is the advice
    """Overload, time-out or a lost connection: the same request may succeed later."""

    def __init__(self, message: str, after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.after_seconds = after_seconds


class Overloaded(RetryLater):
    """The API server refuses requests of this client for some time (429)."""


class Denied(ClusterError):  # noqa: N818
    """The operator lacks a right."""

    def __init__(self, verb: str, resource: str, namespace: str) -> None:
        super().__init__(f"the operator may not {verb} {resource} in namespace {namespace}")
        self.verb = verb
        self.resource = resource


class Gone(ClusterError):  # noqa: N818
    """The object or its namespace does not exist."""


class AlreadyExists(ClusterError):  # noqa: N818
    """An object with that name already exists."""


class Outdated(ClusterError):  # noqa: N818
    """Another client has changed the object since it was read."""


class Refused(ClusterError):  # noqa: N818
    """The API server rejects the request (admission, validation, quota), with this message."""

    def of(self, kind: str, name: str) -> "Refused":
        """Return the refusal of an object with its name, which not every webhook repeats."""
        return self if name in str(self) else Refused(f"{kind} {name}: {self}")


class NameTaken(ClusterError):  # noqa: N818
    """An object with the name of a child exists, but does not belong to the job or release."""

    def __init__(self, kind: str, name: str, owner_kind: str = names.KIND) -> None:
        super().__init__(f"{kind} {name} exists but is not owned by this {owner_kind}")
        self.kind = kind
        self.name = name


def error_from(code: int, body: bytes, retry_after: str | None, path: str) -> ClusterError:
    """Return the typed error of an answer."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        answer = {}
    answer = answer if isinstance(answer, dict) else {}
    # The messages of policy engines have several lines, and are shown in one.
    text, reason = " ".join(str(answer.get("message") or f"{path}: HTTP {code}").split()), answer.get("reason")
    message = _SOURCE.sub("", text)
    if _DENIAL.match(message):
        return Refused(message)
    if code == HTTPStatus.FORBIDDEN:
        return _forbidden(message, path)
    if code == HTTPStatus.NOT_FOUND:
        return Gone(message)
    if code == HTTPStatus.CONFLICT:
        return AlreadyExists(message) if reason == "AlreadyExists" else Outdated(message)
    if code in {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.REQUEST_ENTITY_TOO_LARGE}:
        return Refused(message)
    kind = Overloaded if code == HTTPStatus.TOO_MANY_REQUESTS else RetryLater
    return kind(message, float(retry_after) if retry_after and retry_after.isdigit() else None)


def _forbidden(message: str, path: str) -> ClusterError:
    """Distinguish the causes of a 403: a missing right, a terminating namespace, or a policy."""
    found = _RBAC.search(message)
    if found:
        parts = path.strip("/").split("/")
        namespace = parts[parts.index("namespaces") + 1] if "namespaces" in parts else "(all)"
        return Denied(found.group(1), found.group(2), namespace)
    if "is being terminated" in message:
        return Gone(message)
    return Refused(message)
