"""The connection to the API server: found by kubectl's rules, with its errors as messages.

The `kubernetes` client gives TLS and credentials; its models, which take seconds to load, are not used.
"""

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import kubernetes
import urllib3
import yaml
from kubernetes.config.config_exception import ConfigException
from kubernetes.config.kube_config import ENV_KUBECONFIG_PATH_SEPARATOR, KubeConfigMerger

from finetune_api import names
from finetune_client.errors import Conflict, FineTuneError, Forbidden, InvalidJob, NotFound, Unreachable, WrongUse

TIMEOUT = urllib3.Timeout(connect=5, read=30)
ENDLESS = urllib3.Timeout(connect=5, read=None)
IN_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
DEFAULT_KUBECONFIG = "~/.kube/config"
OWNER = re.compile(r'conflict with "([^"]*)"')
IN_HEADER_NAMES = "!#$&'*+-.^_`|~"
"""What the name of a header can have in addition to letters and digits; client-go escapes everything else, and %."""
RESOURCE = f"{names.PLURAL}.{names.GROUP}"
JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
PLUGIN = "kubectl-finetune"
Object = dict[str, Any]
Query = Mapping[str, str | int]


class Connection:
    """Requests to one API server, and the default namespace."""

    def __init__(
        self, configuration: Any, namespace: str, agent: str = PLUGIN, impersonation: Iterable[tuple[str, str]] = ()
    ) -> None:
        self.namespace = namespace
        self._agent = agent
        self._impersonation = tuple(impersonation)
        self._configuration = configuration
        self._pool: urllib3.PoolManager = kubernetes.client.ApiClient(configuration).rest_client.pool_manager

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return str(self._configuration.host)

    def call(
        self,
        verb: str,
        path: str,
        body: Object | None = None,
        query: Query | None = None,
        form: str = "",
        *,
        seconds: float | None = None,
    ) -> Object:
        """Send one request and return its answer; `form` is the media type of the body, `seconds` limits the wait."""
        timeout = TIMEOUT if seconds is None else urllib3.Timeout(connect=5, read=30, total=seconds)
        answer = self._send(verb, path, body, query or {}, timeout, form=form)
        if answer.status >= HTTPStatus.BAD_REQUEST:
            raise to_error(answer.status, answer.data)
        return read_object(answer.data)

    def stream(self, path: str, query: Query, stop: "Stop | None" = None, silence: float = 0) -> Iterator[bytes]:
        """Yield the bytes of an answer as they arrive, until it ends, or until no byte came for `silence` seconds."""
        timeout = urllib3.Timeout(connect=min(5, silence), read=silence) if silence else ENDLESS
        answer = self._send("GET", path, None, query, timeout, preload_content=False)
        try:
            if stop and not stop.watch(answer):
                return
            if answer.status >= HTTPStatus.BAD_REQUEST:
                raise to_error(answer.status, answer.read())
            while chunk := answer.read1(65536):
                yield chunk
        except urllib3.exceptions.HTTPError as error:
            raise self._unreachable(error) from None
        finally:
            answer.close()  # an answer that is not read to its end would be that of the next request

    def _send(
        self,
        verb: str,
        path: str,
        body: Object | None,
        query: Query,
        timeout: urllib3.Timeout,
        *,
        preload_content: bool = True,
        form: str = "",
    ) -> urllib3.BaseHTTPResponse:
        wanted = {name: value for name, value in query.items() if value != ""}
        url = f"{self._configuration.host}{path}" + (f"?{urlencode(wanted)}" if wanted else "")
        headers = urllib3.HTTPHeaderDict({"Accept": "application/json", "User-Agent": self._agent})
        headers["Content-Type"] = form or (MERGE_PATCH if verb == "PATCH" else JSON)
        for item in self._configuration.auth_settings().values():
            if item["in"] == "header" and item["value"]:
                headers[item["key"]] = item["value"]
        for name, value in self._impersonation:
            headers.add(name, value)
        data = json.dumps(body).encode() if body else None
        try:
            return self._pool.request(
                verb, url, body=data, headers=headers, timeout=timeout, retries=False, preload_content=preload_content
            )
        except urllib3.exceptions.HTTPError as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> Unreachable:
        reason = str(getattr(error, "reason", None) or error)
        return Unreachable(
            f"the cluster is unreachable at {self._configuration.host}: {reason.rpartition('>: ')[2] or reason}",
            "check kubectl config current-context, and that the cluster is running",
        )


def read_object(data: bytes) -> Object:
    """Return the object of an answer; a gateway may answer with a page in place of the API server."""
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Unreachable(
            "the cluster's address answers with something else than an object of the API",
            "check the server of the kubeconfig: a gateway or a page for logging in may answer in its place",
        )
    return found


class Stop:
    """Ends a stream from another thread."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._answer: urllib3.BaseHTTPResponse | None = None

    def set(self) -> None:
        """End the stream that is read now, and each that begins later."""
        with self._lock:
            self._event.set()
            if self._answer is not None:
                with contextlib.suppress(Exception):  # it has ended by itself
                    self._answer.shutdown()

    @property
    def is_set(self) -> bool:
        """Whether no stream is to be read any more."""
        return self._event.is_set()

    def wait(self, seconds: float) -> None:
        """Wait, but not after it is set."""
        self._event.wait(seconds)

    def watch(self, answer: urllib3.BaseHTTPResponse) -> bool:
        """Note the stream that is read; return whether it may be."""
        with self._lock:
            self._answer = answer
            return not self.is_set


def open_connection(kubeconfig: Path | None, context: str | None, agent: str = PLUGIN) -> Connection:
    """Connect by the rules of kubectl: --kubeconfig, KUBECONFIG, ~/.kube/config, else the account of the pod."""
    path = str(kubeconfig) if kubeconfig else os.environ.get("KUBECONFIG") or DEFAULT_KUBECONFIG
    configuration = kubernetes.client.Configuration()
    impersonation: list[tuple[str, str]] = []
    try:
        files, current = _read_files(path)
        chosen, user = _find_context(files, context, current)
        impersonation += _read_impersonation(user)
        kubernetes.config.load_kube_config(files, chosen["name"], client_configuration=configuration)
        namespace = str((chosen.get("context") or {}).get("namespace") or "default")
    except (yaml.YAMLError, ValueError, OSError) as error:  # ValueError: another encoding, or keys that are not base64
        raise Unreachable(
            f"the kubeconfig {path} cannot be read: {_explain(error)}",
            "repair the file, or give another one with --kubeconfig",
        ) from None
    except ConfigException as error:
        if kubeconfig or context or not IN_POD.exists():
            raise Unreachable(
                f"no cluster is configured: {error}", "set KUBECONFIG or give --kubeconfig, as for kubectl"
            ) from None
        kubernetes.config.load_incluster_config(client_configuration=configuration)
        namespace = IN_POD.read_text(encoding="utf-8").strip()
    return Connection(configuration, namespace, agent, impersonation)


def _explain(error: Exception) -> str:
    """Return the fault; that of YAML without the line itself, which may have a token."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error)


def _read_files(paths: str) -> tuple[str, str]:
    """Return the files that are not empty, and the current context.

    The first context wins, as in kubectl; KubeConfigMerger takes the last one, and refuses an empty file.
    """
    files, current = [], ""
    for path in filter(None, paths.split(ENV_KUBECONFIG_PATH_SEPARATOR)):
        file = Path(path).expanduser()
        content = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else None
        if content is None:
            continue
        if not isinstance(content, dict):
            raise ConfigException(f"{path} is not a kubeconfig")
        files.append(str(file))
        current = current or str(content.get("current-context") or "")
    return ENV_KUBECONFIG_PATH_SEPARATOR.join(files), current


def _find_context(files: str, context: str | None, current: str) -> tuple[Object, Object]:
    """Return the context of that name, else the current one, and its user."""
    merged = KubeConfigMerger(files).config
    if merged is None:
        raise ConfigException("the kubeconfig is missing or empty")
    contexts: list[Object] = [one.value for one in merged.safe_get("contexts") or []]
    for one in contexts:
        if one["name"] == (context or current):
            users = [user.value for user in merged.safe_get("users") or []]
            name = (one.get("context") or {}).get("user")
            return one, next((user.get("user") or {} for user in users if user["name"] == name), {})
    if not context:
        raise ConfigException(f"the current context {current} does not exist" if current else "no context is current")
    known = ", ".join(str(one["name"]) for one in contexts) or "none"
    raise WrongUse(f"the kubeconfig has no context {context}", f"it has {known}")


def _read_impersonation(user: Object) -> Iterator[tuple[str, str]]:
    """Yield the headers of a user who acts as another one; the kubernetes client ignores these fields."""
    if user.get("as"):
        yield "Impersonate-User", str(user["as"])
    if user.get("as-uid"):
        yield "Impersonate-Uid", str(user["as-uid"])
    for group in user.get("as-groups") or []:
        yield "Impersonate-Group", str(group)
    for key, values in (user.get("as-user-extra") or {}).items():
        for value in values or []:
            yield f"Impersonate-Extra-{quote(str(key), safe=IN_HEADER_NAMES)}", str(value)


class Expired(FineTuneError):  # noqa: N818 - named after the failure
    """The API server no longer has the version from which a watch was to begin."""


class BadRequest(FineTuneError):  # noqa: N818 - named after the failure
    """The API server does not understand the request."""


class FieldConflict(Conflict):
    """Other managers own fields that are applied."""

    def __init__(self, message: str, managers: frozenset[str]) -> None:
        super().__init__(message, "leave these fields out, or take them over: force=True")
        self.managers = managers


REFUSALS: dict[int, type[FineTuneError]] = {
    HTTPStatus.BAD_REQUEST: BadRequest,
    HTTPStatus.CONFLICT: Conflict,
    HTTPStatus.GONE: Expired,
    HTTPStatus.UNPROCESSABLE_ENTITY: InvalidJob,
}


def to_error(code: int, body: bytes) -> FineTuneError:
    """Return the failure for an error response."""
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    status: Object = found if isinstance(found, dict) else {}
    message = str(status.get("message") or f"the API server returned {code}")
    if code == HTTPStatus.UNAUTHORIZED:
        return Forbidden(
            "the cluster does not accept your credentials (401)", "log in again, or renew the token in the kubeconfig"
        )
    if code == HTTPStatus.FORBIDDEN:
        return Forbidden(message, "ask an administrator for the verb and the resource that the message names")
    if code == HTTPStatus.TOO_MANY_REQUESTS or code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Unreachable(message, "the API server, or its gateway, is busy or starting: try again")
    if code != HTTPStatus.NOT_FOUND:
        owners = _find_owners(status)
        return FieldConflict(message, owners) if owners else REFUSALS.get(code, FineTuneError)(message)
    if (status.get("details") or {}).get("name"):
        return NotFound(message, "check its name, and that it still exists")
    return NoApi(
        f"this cluster has no {RESOURCE}: the operator's CustomResourceDefinition is not installed",
        "install the operator's chart, or check --context",
    )


def _find_owners(status: Object) -> frozenset[str]:
    """Return the managers whose fields an apply would change."""
    causes = (status.get("details") or {}).get("causes") or []
    found = [OWNER.match(str(one.get("message"))) for one in causes if one.get("reason") == "FieldManagerConflict"]
    return frozenset(one[1] if one else "" for one in found)


class NoApi(NotFound):
    """The API server has no FineTuneJob resource."""


RETRIES = 30
_T = TypeVar("_T")


def retry_unreachable(look: Callable[[], _T], interval: float) -> _T:
    """Return the answer; retry while the API server is unreachable, and raise any other error at once."""
    for _ in range(RETRIES):
        try:
            return look()
        except Unreachable:
            time.sleep(interval)
    return look()
