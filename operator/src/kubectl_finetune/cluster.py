"""The one module that talks to the API server, and that turns its refusals into sentences."""

import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import kubernetes
import urllib3
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException

from finetune_api import names
from kubectl_finetune.errors import Forbidden, NotFound, PluginError, Unreachable, WrongUse
from kubectl_finetune.job import Job, Object

TIMEOUT = (5, 30)
PAGE = 500
IN_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
RESOURCE = f"{names.PLURAL}.{names.GROUP}"


class Cluster:
    """FineTuneJobs, their pods and events, in one namespace or in all."""

    def __init__(self, api: Any, namespace: str) -> None:
        self.namespace = namespace
        self._core = kubernetes.client.CoreV1Api(api)
        self._custom = kubernetes.client.CustomObjectsApi(api)

    def get_job(self, name: str) -> Job:
        """The job as it is stored now; one that is not there is told with names that are like it."""
        with self._translated():
            try:
                return Job.from_object(self._custom.get_namespaced_custom_object(*self._where(), name, **_limits()))
            except ApiException as error:
                if error.status != HTTPStatus.NOT_FOUND or not _details(error):
                    raise
        raise self._unknown(name)

    def find_job(self, name: str) -> Job | None:
        """The job, or None where there is none of that name."""
        try:
            return self.get_job(name)
        except NotFound:
            return None

    def list_jobs(self, *, everywhere: bool = False, selector: str = "") -> list[Job]:
        """The jobs of the namespace, or of all namespaces."""
        found: list[Job] = []
        token = ""
        while True:
            page = self._page(token, everywhere=everywhere, selector=selector)
            found += [Job.from_object(item) for item in page["items"]]
            token = page["metadata"].get("continue", "")
            if not token:
                return found

    def _page(self, token: str, *, everywhere: bool, selector: str) -> Object:
        options = {"label_selector": selector, "limit": PAGE, "_continue": token, **_limits()}
        with self._translated():
            if everywhere:
                found: Object = self._custom.list_cluster_custom_object(
                    names.GROUP, names.VERSION, names.PLURAL, **options
                )
            else:
                found = self._custom.list_namespaced_custom_object(*self._where(), **options)
        return found

    def patch_spec(self, name: str, change: Object) -> Job:
        """Changes operational fields of the spec."""
        with self._translated():
            body = {"spec": change}
            return Job.from_object(self._custom.patch_namespaced_custom_object(*self._where(), name, body, **_limits()))

    def delete_job(self, job: Job) -> None:
        """Deletes exactly that job; its Jobs, pods and ConfigMaps go with it."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": job.uid}}
        with self._translated():
            self._custom.delete_namespaced_custom_object(*self._where(), job.name, body=body, **_limits())

    def list_pods(self, job: Job, component: names.Component) -> list[Object]:
        """The job's pods of that kind, oldest first."""
        selector = f"{names.LABEL_JOB_NAME},{names.LABEL_COMPONENT}={component.value}"
        with self._translated():
            answer = self._core.list_namespaced_pod(
                job.namespace, label_selector=selector, _preload_content=False, **_limits()
            )
        items: list[Object] = json.loads(answer.data)["items"]
        mine = [
            one for one in items if one["metadata"].get("annotations", {}).get(names.ANNOTATION_JOB_NAME) == job.name
        ]
        return sorted(mine, key=lambda one: str(one["metadata"]["creationTimestamp"]))

    def list_events(self, job: Job) -> list[Object]:
        """The events on the job, oldest first; none where they may not be read."""
        try:
            with self._translated():
                answer = self._core.list_namespaced_event(
                    job.namespace, field_selector=f"involvedObject.uid={job.uid}", _preload_content=False, **_limits()
                )
        except Forbidden:
            return []
        items: list[Object] = json.loads(answer.data)["items"]
        return sorted(items, key=lambda one: str(one.get("lastTimestamp") or one.get("eventTime") or ""))

    def read_log(self, pod: Object, *, follow: bool, tail: int | None, timestamps: bool) -> Iterator[bytes]:
        """The log of the pod's trainer container, as it is written."""
        options: dict[str, Any] = {"follow": follow, "timestamps": timestamps, "container": names.TRAINER_CONTAINER}
        if tail is not None:
            options["tail_lines"] = tail
        meta = pod["metadata"]
        with self._translated():
            answer = self._core.read_namespaced_pod_log(
                meta["name"], meta["namespace"], _preload_content=False, _request_timeout=(5, None), **options
            )
            try:
                yield from answer.stream(4096)
            finally:
                answer.release_conn()

    def _where(self) -> tuple[str, str, str, str]:
        return names.GROUP, names.VERSION, self.namespace, names.PLURAL

    def _unknown(self, name: str) -> NotFound:
        try:
            there = [job.name for job in self.list_jobs()]
        except PluginError:
            there = []
        near = difflib.get_close_matches(name, there, n=3, cutoff=0.5)
        fix = f"did you mean {' or '.join(near)}?" if near else ""
        if not near:
            fix = "kubectl finetune list -A shows the jobs of all namespaces"
        return NotFound(f"no {names.KIND} {name} in namespace {self.namespace}", fix)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ApiException as error:
            raise _as_sentence(error) from None
        except urllib3.exceptions.HTTPError as error:
            host = self._core.api_client.configuration.host
            raise Unreachable(
                f"the cluster does not answer at {host}: {_cause(error)}",
                "check kubectl config current-context, and that the cluster runs",
            ) from None


def connect(kubeconfig: Path | None, context: str | None, namespace: str | None) -> Cluster:
    """A client by the rules of kubectl: --kubeconfig, KUBECONFIG, ~/.kube/config, else the pod's own account."""
    path = str(kubeconfig) if kubeconfig else None
    try:
        contexts, active = kubernetes.config.list_kube_config_contexts(path)
        chosen = next((one for one in contexts if one["name"] == context), None) if context else active
        if context and chosen is None:
            known = ", ".join(one["name"] for one in contexts)
            raise WrongUse(f"the kubeconfig has no context {context}", f"it has {known}")
        api = kubernetes.config.new_client_from_config(path, context)
        own = (chosen or {}).get("context", {}).get("namespace")
    except ConfigException as error:
        if kubeconfig or context or not IN_POD.exists():
            raise Unreachable(
                f"no cluster is configured: {error}", "set KUBECONFIG or give --kubeconfig, as for kubectl"
            ) from None
        kubernetes.config.load_incluster_config()
        api, own = kubernetes.client.ApiClient(), IN_POD.read_text(encoding="utf-8").strip()
    api.configuration.retries = False
    return Cluster(_without_retries(api), namespace or own or "default")


def _without_retries(api: Any) -> Any:
    """A cluster that is away is told at once; the client has made its pool of connections already."""
    return kubernetes.client.ApiClient(api.configuration)


def _limits() -> dict[str, Any]:
    return {"_request_timeout": TIMEOUT}


def _as_sentence(error: ApiException) -> PluginError:
    status = _status(error)
    message = str(status.get("message") or error.reason or error.status)
    if error.status == HTTPStatus.UNAUTHORIZED:
        return Forbidden("the cluster does not know you (401)", "log in again, or renew the token in the kubeconfig")
    if error.status == HTTPStatus.FORBIDDEN:
        return Forbidden(message, "ask an administrator for the verb and the resource that the message names")
    if error.status == HTTPStatus.NOT_FOUND and not _details(error):
        return NotFound(
            f"this cluster has no {RESOURCE}: the operator's CustomResourceDefinition is not installed",
            "helm install finetune-operator helm/finetune-operator, or check --context",
        )
    return NotFound(message) if error.status == HTTPStatus.NOT_FOUND else PluginError(message)


def _details(error: ApiException) -> Object:
    """What the answer is about; an unknown kind of object has no such part."""
    details: Object = _status(error).get("details") or {}
    return details if details.get("name") else {}


def _status(error: ApiException) -> Object:
    try:
        found = json.loads(error.body or "")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _cause(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return str(reason).rpartition(">: ")[2] or str(reason)
