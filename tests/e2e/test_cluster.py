"""The cluster is one that the other tests can believe: what they rely on, asked of it directly."""

import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from kubernetes import client, stream, watch
from user import kubectl

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
PYTHON = "/opt/venv/bin/python"
SERVE = "import http.server; http.server.test(http.server.SimpleHTTPRequestHandler, port=8080)"
FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=10).status)"
# A trainer that is told to stop: it says so and exits 143.
STOPPABLE = "trap 'echo stopping; exit 143' TERM; echo started; while true; do sleep 0.1; done"
EAT = "blocks = []\nwhile True: blocks.append(bytearray(8 * 2**20))"


@pytest.fixture(scope="module")
def image(_kubeconfig: None) -> str:
    """The operator's own image: every deployed cluster has it, with a shell and Python in it."""
    named = os.environ.get("FINETUNE_OPERATOR_IMAGE")
    if named:
        return named
    found = client.AppsV1Api().list_deployment_for_all_namespaces(
        label_selector="app.kubernetes.io/name=finetune-operator"
    )
    assert found.items, "the operator is not deployed: run `make deploy`"
    return str(found.items[0].spec.template.spec.containers[0].image)


@pytest.fixture(scope="module")
def namespace(_kubeconfig: None) -> Iterator[str]:
    name = f"cluster-{uuid.uuid4().hex[:6]}"
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}})
    until("the namespace's service account", lambda: accounts(name))
    yield name
    client.CoreV1Api().delete_namespace(name)


@pytest.mark.usefixtures("_kubeconfig")
def test_every_api_service_is_available() -> None:
    services = client.ApiregistrationV1Api().list_api_service().items
    available = {
        one.metadata.name: [c.status for c in one.status.conditions if c.type == "Available"] for one in services
    }
    assert available
    assert set(map(tuple, available.values())) == {("True",)}, available


def test_the_operator_adds_at_most_120_mb_to_its_base_and_runs_in_a_restricted_namespace(image: str) -> None:
    operators = client.AppsV1Api().list_deployment_for_all_namespaces(
        label_selector="app.kubernetes.io/name=finetune-operator"
    )
    (operator,) = operators.items
    assert operator.spec.template.spec.containers[0].image == image
    labels = client.CoreV1Api().read_namespace(operator.metadata.namespace).metadata.labels
    assert RESTRICTED.items() <= labels.items()
    size = kubectl("exec", "-n", operator.metadata.namespace, f"deployment/{operator.metadata.name}", "--",
                   "du", "-sb", "/opt").stdout  # fmt: skip
    assert 10**7 < int(size.split()[0]) <= 120 * 10**6


def test_a_pod_logs_and_runs_what_exec_asks(namespace: str, image: str) -> None:
    apply(pod(namespace, "talker", image, ["sh", "-c", "echo hello from the pod; sleep 300"]))
    phase(namespace, "talker", "Running")

    until("the pod's log", lambda: "hello from the pod" in log(namespace, "talker"))
    answer = stream.stream(
        client.CoreV1Api().connect_get_namespaced_pod_exec,
        "talker", namespace, command=["id", "-u"], stdout=True, stderr=True, stdin=False, tty=False,
    )  # fmt: skip
    assert answer.strip() == "65532"


def test_a_service_and_each_pod_behind_it_answer_by_name(namespace: str, image: str) -> None:
    labels = {"app": "server"}
    server = pod(namespace, "server-0", image, [PYTHON, "-c", SERVE], labels=labels)
    server["spec"] |= {"hostname": "server-0", "subdomain": "peers"}
    ports = [{"port": 80, "targetPort": 8080}]
    apply(
        server,
        service(namespace, "server", {"selector": labels, "ports": ports}),
        service(namespace, "peers", {"selector": labels, "clusterIP": "None"}),
    )
    phase(namespace, "server-0", "Running")

    for url in ("http://server/", f"http://server.{namespace}.svc/", "http://server-0.peers:8080/"):
        # A pod runs before its program listens, and the node takes up a new endpoint a moment later.
        until(f"an answer of {url}", lambda url=url: fetch_from_pod(namespace, image, url) == "200")


def test_a_pod_reaches_the_object_store_which_requires_keys(namespace: str, image: str) -> None:
    url = os.environ.get("FINETUNE_S3_ENDPOINT_IN_CLUSTER", os.environ["AWS_ENDPOINT_URL"])

    assert "403" in fetch_from_pod(namespace, image, url)


def test_a_job_that_exits_0_is_complete_and_its_exit_code_stays_visible(namespace: str, image: str) -> None:
    apply(job(namespace, "short", image, ["sh", "-c", "exit 0"]))

    condition(namespace, "short", "Complete")
    assert [one.state.terminated.exit_code for one in statuses(namespace, "short")] == [0]


def test_a_job_fails_at_once_on_an_exit_code_its_policy_names(namespace: str, image: str) -> None:
    policy = {"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [78]}}]}
    apply(job(namespace, "hopeless", image, ["sh", "-c", "exit 78"], backoffLimit=4, podFailurePolicy=policy))

    assert condition(namespace, "hopeless", "Failed").reason == "PodFailurePolicy"
    assert [one.state.terminated.exit_code for one in statuses(namespace, "hopeless")] == [78]


def test_memory_beyond_the_limit_is_an_oom_kill_with_exit_code_137(namespace: str, image: str) -> None:
    apply(pod(namespace, "hungry", image, [PYTHON, "-c", EAT], limits={"memory": "64Mi"}))

    phase(namespace, "hungry", "Failed")
    ended = client.CoreV1Api().read_namespaced_pod("hungry", namespace).status.container_statuses[0].state.terminated
    assert (ended.reason, ended.exit_code) == ("OOMKilled", 137)


def test_an_evicted_run_gets_sigterm_is_replaced_and_uses_no_retry(namespace: str, image: str) -> None:
    policy = {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]}
    apply(job(namespace, "evicted", image, ["sh", "-c", STOPPABLE], backoffLimit=0, podFailurePolicy=policy))
    first = until("the first run", lambda: running(namespace, "evicted"))
    until("its trap", lambda: "started" in log(namespace, first))

    eviction = client.V1Eviction(metadata=client.V1ObjectMeta(name=first, namespace=namespace))
    before = client.CoreV1Api().list_namespaced_pod(namespace).metadata.resource_version
    client.CoreV1Api().create_namespaced_pod_eviction(first, namespace, eviction)

    assert exit_code_seen(namespace, first, since=before) == 143
    second = until("a second run", lambda: set(running_all(namespace, "evicted")) - {first})
    assert second
    status = client.BatchV1Api().read_namespaced_job("evicted", namespace).status
    assert not status.failed
    assert not [one for one in status.conditions or [] if one.type == "Failed"]


@pytest.mark.alone
def test_gpus_are_counted(namespace: str, image: str) -> None:
    total = sum(int(node.status.allocatable.get("nvidia.com/gpu", 0)) for node in client.CoreV1Api().list_node().items)
    assert total > 0
    one, many = {"nvidia.com/gpu": "1"}, {"nvidia.com/gpu": str(total + 1)}
    apply(
        pod(namespace, "one-gpu", image, ["sh", "-c", "exit 0"], limits=one),
        pod(namespace, "too-many", image, ["sh", "-c", "exit 0"], limits=many),
    )

    phase(namespace, "one-gpu", "Succeeded")
    refused = until("the scheduler's word", lambda: scheduled(namespace, "too-many"))
    assert refused.reason == "Unschedulable"
    assert "Insufficient nvidia.com/gpu" in refused.message


def test_a_deleted_namespace_takes_what_is_in_it_and_is_gone(image: str) -> None:
    name = f"cluster-gone-{uuid.uuid4().hex[:6]}"
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}})
    until("the namespace's service account", lambda: accounts(name))
    apply(pod(name, "sleeper", image, ["sh", "-c", STOPPABLE]))
    phase(name, "sleeper", "Running")

    client.CoreV1Api().delete_namespace(name)

    until("the namespace to be gone", lambda: name not in namespaces())


def pod(
    namespace: str,
    name: str,
    image: str,
    command: list[str],
    *,
    labels: dict[str, str] | None = None,
    limits: dict[str, str] | None = None,
) -> dict[str, Any]:
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        "resources": {"limits": limits or {}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels or {}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 10,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
        },
    }


def job(namespace: str, name: str, image: str, command: list[str], **spec: Any) -> dict[str, Any]:
    template = {"spec": pod(namespace, name, image, command)["spec"]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"template": template, "podReplacementPolicy": "Failed", **spec},
    }


def service(namespace: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def apply(*objects: dict[str, Any]) -> None:
    done = subprocess.run(
        ["kubectl", "apply", "-f", "-"], check=False, input=yaml.safe_dump_all(objects), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def fetch_from_pod(namespace: str, image: str, url: str) -> str:
    """The HTTP status a pod sees, or the last line of its error."""
    name = f"fetch-{uuid.uuid4().hex[:6]}"
    apply(pod(namespace, name, image, [PYTHON, "-c", FETCH, url]))
    until(f"the answer of {url}", lambda: phase_of(namespace, name) in {"Succeeded", "Failed"})
    return log(namespace, name).strip().splitlines()[-1]


def until(what: str, look: Callable[[], Any], *, seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.25)
    raise AssertionError(f"waited {seconds:.0f} s for {what}")


def phase(namespace: str, name: str, wanted: str) -> None:
    try:
        until(f"{name} to be {wanted}", lambda: phase_of(namespace, name) == wanted)
    except AssertionError as error:
        status = client.CoreV1Api().read_namespaced_pod(name, namespace).status
        error.add_note(json.dumps(client.ApiClient().sanitize_for_serialization(status), indent=1))
        raise


def phase_of(namespace: str, name: str) -> str:
    return str(client.CoreV1Api().read_namespaced_pod(name, namespace).status.phase)


def log(namespace: str, name: str) -> str:
    return str(client.CoreV1Api().read_namespaced_pod_log(name, namespace))


def pods_of(namespace: str, job_name: str) -> list[Any]:
    return list(client.CoreV1Api().list_namespaced_pod(namespace, label_selector=f"job-name={job_name}").items)


def running_all(namespace: str, job_name: str) -> list[str]:
    return [one.metadata.name for one in pods_of(namespace, job_name) if one.status.phase == "Running"]


def running(namespace: str, job_name: str) -> str | None:
    return next(iter(running_all(namespace, job_name)), None)


def statuses(namespace: str, job_name: str) -> list[Any]:
    return [status for one in pods_of(namespace, job_name) for status in one.status.container_statuses]


def exit_code_seen(namespace: str, name: str, *, since: str) -> int | None:
    """The exit code as a watch sees it: the pod itself may be gone a moment later."""
    events = watch.Watch().stream(
        client.CoreV1Api().list_namespaced_pod,
        namespace,
        field_selector=f"metadata.name={name}",
        resource_version=since,
        timeout_seconds=120,
    )
    for event in events:
        ended = [one.state.terminated for one in event["object"].status.container_statuses or []]
        if ended and ended[0]:
            return int(ended[0].exit_code)
    return None


def condition(namespace: str, job_name: str, kind: str) -> Any:
    def look() -> Any:
        conditions = client.BatchV1Api().read_namespaced_job(job_name, namespace).status.conditions or []
        return next((one for one in conditions if one.type == kind and one.status == "True"), None)

    return until(f"{job_name} to be {kind}", look)


def scheduled(namespace: str, name: str) -> Any:
    conditions = client.CoreV1Api().read_namespaced_pod(name, namespace).status.conditions or []
    return next((one for one in conditions if one.type == "PodScheduled"), None)


def accounts(namespace: str) -> list[Any]:
    found = client.CoreV1Api().list_namespaced_service_account(namespace).items
    return [one for one in found if one.metadata.name == "default"]


def namespaces() -> list[str]:
    return [one.metadata.name for one in client.CoreV1Api().list_namespace().items]
