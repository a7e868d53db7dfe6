"""The operator as a process with exactly its documented rights, and a hand that plays the kubelet."""

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from free_ports import free_port
from http_servers import QuietHandler
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException, NotFoundException
from pod_reports import IMAGE, build_report, container_status, published_blocks, validated_blocks
from preloaded import OPERATOR, fork_of, shared_folder, shared_python
from waiting import wait_until

from finetune_api import handoff, names
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.kube.child_names import slug

ROOT = Path(__file__).parents[3]
WIRE_TIME = "%Y-%m-%dT%H:%M:%SZ"
SPEC: dict[str, Any] = {
    "objective": "Chat",
    "storage": {"endpoint": "http://storage.example:9000", "credentialsSecretRef": {"name": "s3"}},
    "model": {"uri": "s3://bucket/models/tiny"},
    "dataset": {"train": {"uri": "s3://bucket/data/rows.jsonl"}, "validationSplitPercent": 10},
    "output": {"uri": "s3://bucket/jobs/one"},
    "resources": {"gpusPerNode": 1},
}
Object = dict[str, Any]


def rules() -> list[Object]:
    """The rights of operator/README.md, read from it, so that the document cannot drift from what works."""
    text = (ROOT / "operator" / "README.md").read_text()
    block = text.split("```yaml", 1)[1].split("```", 1)[0]
    found: list[Object] = yaml.safe_load(block)["rules"]
    return found


class Access:
    """A service account with a role of its own and a kubeconfig for it."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        self.api = config.new_client_from_config(str(kubeconfig))
        self.name = f"operator-{uuid.uuid4().hex[:6]}"
        core, rbac = client.CoreV1Api(self.api), client.RbacAuthorizationV1Api(self.api)
        meta = {"name": self.name}
        core.create_namespaced_service_account("default", {"metadata": meta})
        rbac.create_cluster_role({"metadata": meta, "rules": rules()})
        rbac.create_cluster_role_binding(
            {
                "metadata": meta,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": self.name},
                "subjects": [{"kind": "ServiceAccount", "name": self.name, "namespace": "default"}],
            }
        )
        body = {"spec": {"expirationSeconds": 7200}}
        token = core.create_namespaced_service_account_token(self.name, "default", body).status.token
        admin = yaml.safe_load(kubeconfig.read_text())
        admin["users"] = [{"name": admin["users"][0]["name"], "user": {"token": token}}]
        self.kubeconfig = folder / f"{self.name}.yaml"
        self.kubeconfig.write_text(yaml.safe_dump(admin))

    def set_rules(self, wanted: list[Object]) -> None:
        """Change the role and return once the API server judges by it."""
        client.RbacAuthorizationV1Api(self.api).patch_cluster_role(self.name, {"rules": wanted})
        granted = _rights(wanted)
        for right in _rights(rules()) | granted:
            deadline = time.monotonic() + 20
            while self._may(*right) != (right in granted):
                assert time.monotonic() < deadline, f"the API server does not take up the change of {right}"
                time.sleep(0.05)

    def _may(self, group: str, resource: str, verb: str) -> bool:
        name, _, part = resource.partition("/")
        asked = {"group": group, "resource": name, "subresource": part, "verb": verb}
        user = f"system:serviceaccount:default:{self.name}"
        review = {"spec": {"user": user, "resourceAttributes": asked}}
        return bool(client.AuthorizationV1Api(self.api).create_subject_access_review(review).status.allowed)


def _rights(wanted: list[Object]) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for rule in wanted
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@dataclass(frozen=True)
class Account:
    """An identity that somebody else has set up."""

    kubeconfig: Path


class Operator:
    """The operator's process."""

    def __init__(
        self, access: Access | Account, namespace: str, folder: Path, python: str = sys.executable, **settings: str
    ) -> None:
        self.access = access
        self.python = python
        self.log = folder / "operator.log"
        self.port, self.health_port = free_port(), free_port()
        self.env = os.environ | {
            "KUBECONFIG": str(access.kubeconfig),
            "FINETUNE_TRAINER_IMAGE": IMAGE,
            "FINETUNE_WATCH_NAMESPACES": namespace,
            "FINETUNE_METRICS_PORT": str(self.port),
            "FINETUNE_HEALTH_PORT": str(self.health_port),
            "FINETUNE_LOG_FORMAT": "text",
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.pid: int | None = None
        """Of the operator itself; of a fork, once it was ready."""

    def launch(self, *wrapper: str) -> "Operator":
        """Start it, with the command of the wrapper around it, without waiting."""
        with self.log.open("ab") as log:
            python = sys.executable if wrapper else self.python
            command = [*wrapper, python, "-m", "finetune_operator"]
            self.process = subprocess.Popen(command, env=self.env, stderr=log, stdout=log)
        self.pid = self.process.pid if python == sys.executable else None
        return self

    def start(self, *wrapper: str) -> "Operator":
        started = time.monotonic()
        process = self.launch(*wrapper).process
        while process and process.poll() is None and time.monotonic() - started < 180:
            if self.get("/readyz") == 200:
                self.seconds_to_ready = time.monotonic() - started
                self.pid = self.pid or fork_of(self.python, process.pid)
                return self
            time.sleep(0.1)
        raise TimeoutError(self.log.read_text()[-3000:])

    def get(self, path: str) -> int:
        port = self.port if path == "/metrics" else self.health_port
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                self.text = answer.read().decode()
                return int(answer.status)
        except urllib.error.HTTPError as refused:
            return refused.code
        except OSError:
            return 0

    def last_event(self, resource: str) -> float:
        """Return the Unix time of the last watch event of that resource."""
        self.get("/metrics")
        found = re.search(rf'last_event_timestamp_seconds\{{resource="{resource}"\}} (\S+)', self.text)
        return float(found[1]) if found else 0.0

    def resident_mib(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            if self.pid:  # a fork ends a moment after what stands in for it
                wait_until(lambda: not Path(f"/proc/{self.pid}").exists(), f"the end of {self.pid}", pause=0.01)

    def stop(self) -> int:
        assert self.process
        self.process.terminate()
        return self.process.wait(30)


class World:
    """A namespace: FineTuneJobs, their Jobs and pods, and what a kubelet would say of the pods."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self.namespace = namespace
        self.core = client.CoreV1Api(api)
        self.batch = client.BatchV1Api(api)
        self.custom = client.CustomObjectsApi(api)
        self._where = (names.GROUP, names.VERSION, namespace, names.PLURAL)
        self.node = f"node-of-{namespace}"
        self._has_node = False

    def add_node(self) -> None:
        """Create the node of this world unless it exists; nothing reports its status."""
        if not self._has_node:
            self.core.create_node({"metadata": {"name": self.node}})
            self._has_node = True

    def remove_node(self) -> None:
        """Delete the node of this world, after which the garbage collector removes its pods."""
        if self._has_node:
            self.core.delete_node(self.node)
            self._has_node = False

    def create(self, name: str = "one", **spec: Any) -> Object:
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": SPEC | spec,
        }
        created: Object = self.custom.create_namespaced_custom_object(*self._where, body)
        return created

    def get(self, name: str = "one") -> Object:
        found: Object = self.custom.get_namespaced_custom_object(*self._where, name)
        return found

    def delete(self, name: str = "one") -> None:
        self.custom.delete_namespaced_custom_object(*self._where, name)

    def patch_spec(self, name: str, spec: Object) -> None:
        self.custom.patch_namespaced_custom_object(*self._where, name, {"spec": spec})

    def status(self, name: str = "one") -> Object:
        return self.get(name).get("status") or {}

    def condition(self, kind: str, name: str = "one") -> Object:
        return next((one for one in self.status(name).get("conditions", []) if one["type"] == kind), {})

    def jobs(self) -> list[str]:
        return sorted(job.metadata.name for job in self.batch.list_namespaced_job(self.namespace).items)

    def events(self, reason: str = "") -> list[str]:
        fields = f"involvedObject.kind={names.KIND}"
        items = self.core.list_namespaced_event(self.namespace, field_selector=fields).items
        return [item.reason for item in items if not reason or item.reason == reason]

    def pod_of(self, job: str) -> Any:
        """The newest pod of a Job that has not ended."""

        def find() -> Any:
            selector = f"batch.kubernetes.io/job-name={job}"
            pods = self.core.list_namespaced_pod(self.namespace, label_selector=selector).items
            alive = [pod for pod in pods if pod.status.phase not in {"Succeeded", "Failed"}]
            return max(alive, key=lambda pod: pod.metadata.creation_timestamp, default=None)

        return until(find, f"a pod of {job}")

    def run(self, pod: Any, ip: str = "127.0.0.1") -> None:
        """What the kubelet says when the container has started."""
        started = {"running": {"startedAt": _now()}}
        self._patch(pod, {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], **container_status(started)})

    def end(
        self, pod: Any, code: int, message: str = "", reason: str = "", disruption: str = "", *, ran: float = 0
    ) -> None:
        """What the kubelet says when the container has ended, `ran` seconds or the real time after its start."""
        terminated = {
            "exitCode": code,
            "reason": reason or ("Completed" if code == 0 else "Error"),
            "startedAt": _now(-ran) if ran else self._started(pod) or _now(),
            "finishedAt": _now(),
            "message": message,
        }
        status = {"phase": "Failed" if code else "Succeeded", **container_status({"terminated": terminated})}
        if disruption:
            status["conditions"] = [_condition("DisruptionTarget", "True", disruption)]
        self._patch(pod, status)

    def bind(self, pod: Any) -> None:
        """Put the pod on the node of this world: a deleted pod of no node goes at once.

        The node exists, or the garbage collector would end its pods at any time.
        """
        self.add_node()
        target = {"apiVersion": "v1", "kind": "Node", "name": self.node}
        body = {"metadata": {"name": pod.metadata.name}, "target": target}
        self.core.create_namespaced_pod_binding(pod.metadata.name, self.namespace, body, _preload_content=False)

    def touch(self, pod: Any) -> float:
        """Change a label of the pod; return the time before it."""
        before = time.time()
        body = {"metadata": {"labels": {"example.com/touched": f"{before:.0f}"}}}
        self.core.patch_namespaced_pod(pod.metadata.name, self.namespace, body)
        return before

    def is_told_to_end(self, pod: Any) -> bool:
        """Whether somebody has deleted it and the kubelet has not ended it yet."""
        try:
            found = self.core.read_namespaced_pod(pod.metadata.name, self.namespace)
        except ApiException:
            return False
        return found.metadata.deletion_timestamp is not None

    def terminate(self, pod: Any, code: int, message: str = "") -> None:
        """What the kubelet does with a pod that is told to end: it says how it ended, and removes it."""
        self.end(pod, code, message)
        with suppress(NotFoundException):  # its Job controller or the garbage collector was faster
            self.core.delete_namespaced_pod(pod.metadata.name, self.namespace, grace_period_seconds=0)

    def pods(self) -> list[str]:
        return [pod.metadata.name for pod in self.core.list_namespaced_pod(self.namespace).items]

    def wait_for_image(self, pod: Any, reason: str, message: str) -> None:
        self._patch(pod, {"phase": "Pending", **container_status({"waiting": {"reason": reason, "message": message}})})

    def cannot_schedule(self, pod: Any, message: str) -> None:
        condition = _condition("PodScheduled", "False", "Unschedulable") | {"message": message}
        self._patch(pod, {"conditions": [condition]})

    def _started(self, pod: Any) -> str | None:
        found = self.core.read_namespaced_pod(pod.metadata.name, self.namespace).status.container_statuses
        running = found[0].state.running if found else None
        return running.started_at.strftime(WIRE_TIME) if running else None

    def _patch(self, pod: Any, status: Object) -> None:
        self.core.patch_namespaced_pod_status(pod.metadata.name, self.namespace, {"status": status})

    def report(self, outcome: str, name: str = "one", **blocks: Any) -> str:
        """A report as the trainer writes it."""
        job = self.get(name)
        spec = FineTuneJobSpec.model_validate(job["spec"])
        return build_report(outcome, job["metadata"]["uid"], handoff.config_sha256(spec), **blocks)

    def published(self, name: str = "one", **blocks: Any) -> str:
        """The report of a successful training."""
        return self.report("Published", name, **published_blocks() | blocks)

    def validated(self, name: str = "one") -> str:
        """The report of a passed preflight."""
        return self.report("Validated", name, **validated_blocks())

    def pass_preflight(self, name: str = "one") -> Any:
        """Bring a job to its first trainer pod."""
        pod = self.pod_of(f"{slug(name)}-preflight")
        self.run(pod)
        self.end(pod, 0, self.validated(name))
        return self.pod_of(f"{slug(name)}-1")

    def wait_phase(self, phase: str, name: str = "one", seconds: float = 180) -> Object:
        """The status once the job is in that phase."""
        return until(
            lambda: status if (status := self.status(name)).get("phase") == phase else None,
            lambda: f"phase {phase}: {json.dumps(self.status(name), indent=1)}",
            seconds,
        )

    def wait_condition(self, kind: str, reason: str, name: str = "one", seconds: float = 180) -> Object:
        """The condition once it has that reason."""
        return until(
            lambda: found if (found := self.condition(kind, name)).get("reason") == reason else None,
            lambda: f"{kind}/{reason}: {json.dumps(self.status(name), indent=1)}",
            seconds,
        )


def _condition(kind: str, status: str, reason: str) -> Object:
    return {"type": kind, "status": status, "reason": reason, "lastTransitionTime": _now()}


def _now(later: float = 0) -> str:
    return time.strftime(WIRE_TIME, time.gmtime(time.time() + later))


def until(probe: Callable[[], Any], what: str | Callable[[], str], seconds: float = 180) -> Any:
    """Return the first true result of a probe."""
    return wait_until(probe, what, seconds=seconds)


@pytest.fixture(scope="session")
def access(control_plane: Path, tmp_path_factory: pytest.TempPathFactory) -> Access:
    return Access(control_plane, tmp_path_factory.mktemp("access"))


@pytest.fixture
def world(control_plane: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    """A namespace of its own, with the name that a test gives, or a random one."""
    api = config.new_client_from_config(str(control_plane))
    core = client.CoreV1Api(api)
    namespace = getattr(request, "param", f"t-{uuid.uuid4().hex[:8]}")
    core.create_namespace({"metadata": {"name": namespace}})
    until(lambda: _has_default_account(core, namespace), "the default service account")
    made = World(api, namespace)
    yield made
    made.remove_node()
    core.delete_namespace(namespace)


def _has_default_account(core: client.CoreV1Api, namespace: str) -> bool:
    try:
        core.read_namespaced_service_account("default", namespace)
    except ApiException:
        return False
    return True


@pytest.fixture(scope="session")
def operator_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A stand-in for `sys.executable` whose libraries of the operator are loaded already."""
    with shared_python(shared_folder(tmp_path_factory.getbasetemp(), "operator-python"), OPERATOR) as program:
        yield program


@pytest.fixture
def operator_in(tmp_path: Path, operator_python: str) -> Iterator[Callable[..., Operator]]:
    """Make an operator for a namespace with another kubeconfig or other settings; it ends with the test."""
    made: list[Operator] = []

    def make(namespace: str, kubeconfig: Path, python: str = operator_python, **settings: str) -> Operator:
        folder = tmp_path / f"operator-{len(made)}"
        folder.mkdir()
        made.append(Operator(Account(kubeconfig), namespace, folder, python, **settings))
        return made[-1]

    yield make
    for one in made:
        one.kill()


@pytest.fixture
def operator_with(world: World, operator_in: Callable[..., Operator]) -> Callable[..., Operator]:
    """Make an operator for the world's namespace."""
    return partial(operator_in, world.namespace)


@pytest.fixture
def operator(access: Access, world: World, tmp_path: Path, operator_python: str) -> Iterator[Operator]:
    process = Operator(access, world.namespace, tmp_path, operator_python)
    try:
        process.start()
        yield process
    finally:
        process.kill()  # also one that was not ready in time


class _Trainer(ThreadingHTTPServer):
    """A trainer that answers for its progress."""

    def __init__(self, address: str, answer: bytes) -> None:
        body = answer

        class Handler(QuietHandler):
            def do_GET(self) -> None:
                self.send_response(200 if self.path == "/progress" else 404)
                self.end_headers()
                self.wfile.write(body)

        super().__init__((address, 8080), Handler)


@contextmanager
def _answering(address: str, answer: bytes) -> Iterator[None]:
    server = _Trainer(address, answer)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def trainer_at() -> Callable[[str, bytes], AbstractContextManager[None]]:
    """A trainer at a loopback address, for as long as the context lasts."""
    return _answering


@pytest.fixture
def wait() -> Callable[..., Any]:
    return until
