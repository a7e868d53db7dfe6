"""Kueue and the operator in two clusters, of which the first sends the Jobs of one queue to the second: what
docs/multicluster.md describes. The test plays the kubelets."""

import base64
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import config
from local_webhooks import configurations, make_certificate
from waiting import wait_until

Kubectl = Callable[..., str]
Object = dict[str, Any]
GROUP, VERSION = "kueue.x-k8s.io", "v1beta2"
NAMESPACE = "kueue-system"
QUOTA = {"cpu": 64, "memory": "512Gi", "nvidia.com/gpu": 8}
IN_ITS_IMAGE = (
    *("unshare", "--map-root-user", "--mount", "sh", "-euc"),
    'mount -t tmpfs none /etc; mkdir -p /etc/kueue/metrics; cp -r "$0" /etc/kueue/metrics/certs; exec "$@"',
)
"""Runs Kueue with an /etc of its own: it looks there for a certificate of its metrics, at a path without a setting."""
CHECK = {"admissionChecks": [{"name": "elsewhere"}]}


def of_kueue(kind: str, name: str, **rest: Any) -> Object:
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind, "metadata": {"name": name}, **rest}


def cluster_queue(name: str, **spec: Any) -> Object:
    resources = [{"name": resource, "nominalQuota": quota} for resource, quota in QUOTA.items()]
    group = {"coveredResources": list(QUOTA), "flavors": [{"name": "nodes", "resources": resources}]}
    return of_kueue("ClusterQueue", name, spec={"namespaceSelector": {}, "resourceGroups": [group]} | spec)


def for_multikueue(other: Path) -> list[Object]:
    """The objects with which the first cluster sends Jobs to the second."""
    reference = {"apiGroup": GROUP, "kind": "MultiKueueConfig", "name": "elsewhere"}
    check = {"controllerName": f"{GROUP}/multikueue", "parameters": reference}
    source = {"kubeConfig": {"locationType": "Secret", "location": "elsewhere"}}
    return [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "elsewhere", "namespace": NAMESPACE},
            "data": {"kubeconfig": base64.b64encode(other.read_bytes()).decode()},
        },
        of_kueue("MultiKueueCluster", "elsewhere", spec={"clusterSource": source}),
        of_kueue("MultiKueueConfig", "elsewhere", spec={"clusters": ["elsewhere"]}),
        of_kueue("AdmissionCheck", "elsewhere", spec=check),
        cluster_queue("elsewhere", admissionChecksStrategy=CHECK),
    ]


@pytest.fixture(scope="module")
def apply(kubectl: Kubectl) -> Callable[[Path, list[Object]], None]:
    """Create or change objects of a cluster."""

    def create(kubeconfig: Path, objects: list[Object]) -> None:
        kubectl("apply", "-f", "-", f"--kubeconfig={kubeconfig}", stdin=yaml.safe_dump_all(objects))

    return create


@pytest.fixture(scope="module")
def kueue(source: Any, program: Any, running: Any, free_port: Any, install: Any) -> Callable[..., Any]:
    """Install Kueue in a cluster, and run it until the block ends; its webhook configurations."""

    @contextmanager
    def run(kubeconfig: Path) -> Iterator[list[Object]]:
        components, webhook, health = source("kueue") / "config" / "components", free_port(), free_port()
        install(components / "crd" / "bases", f"--kubeconfig={kubeconfig}")
        with tempfile.TemporaryDirectory() as folder:
            certificate, settings = make_certificate(Path(folder)), Path(folder) / "settings.yaml"
            settings.write_text(yaml.safe_dump(settings_of(certificate.parent, webhook, health)))
            command = [*IN_ITS_IMAGE, str(certificate.parent), program("kueue"), f"--config={settings}"]
            with running(command, KUBECONFIG=str(kubeconfig), TMPDIR=folder) as log:
                wait_until(lambda: is_ready(health), lambda: log.read_text()[-3000:], seconds=180)
                hooks = components / "webhook" / "manifests.yaml"
                yield list(configurations(hooks, "kueue", webhook, certificate))

    return run


@pytest.fixture(scope="module")
def _clusters(
    kueue: Any, apply: Any, kubectl: Kubectl, control_plane: Path, other_control_plane: Path
) -> Iterator[None]:
    """Run Kueue for both clusters, with a queue of local quota in each; afterwards, Jobs can be created without it."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    with kueue(other_control_plane) as there, kueue(control_plane) as here:
        for kubeconfig, hooks in ((other_control_plane, there), (control_plane, here)):
            apply(kubeconfig, [namespace, *hooks])
            apply(kubeconfig, [of_kueue("ResourceFlavor", "nodes", spec={}), cluster_queue("here")])
        apply(control_plane, for_multikueue(other_control_plane))
        yield
        for hook in here:
            kubectl("delete", hook["kind"], hook["metadata"]["name"])


@pytest.fixture(scope="module", autouse=True)
def _operators(_clusters: None, operator_of: Any, control_plane: Path, other_control_plane: Path) -> None:
    """Run the operator in both clusters, where it finds Kueue."""
    for kubeconfig in (control_plane, other_control_plane):
        operator_of(kubeconfig)


def settings_of(certificates: Path, webhook: int, health: int) -> Object:
    return {
        "apiVersion": f"config.{GROUP}/{VERSION}",
        "kind": "Configuration",
        "namespace": NAMESPACE,
        "webhook": {"host": "127.0.0.1", "port": webhook, "certDir": str(certificates)},
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
        "metrics": {"bindAddress": "0"},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
        "featureGates": {"VisibilityOnDemand": False},  # both would listen at the same port
        "integrations": {"frameworks": ["batch/job"]},
    }


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return True
    except OSError:
        return False


def wait_active(read: Callable[..., Object], *where: str) -> None:
    """Wait until Kueue uses the queue as it is now."""

    def is_active() -> bool:
        found = read(GROUP, VERSION, *where)
        states = (found.get("status") or {}).get("conditions", [])
        active = next((one for one in states if one["type"] == "Active"), {})
        is_of_now = active.get("observedGeneration") == found["metadata"]["generation"]
        return is_of_now and active["status"] == "True"

    wait_until(is_active, lambda: str(read(GROUP, VERSION, *where)))


@pytest.fixture
def other(world: Any, control_plane: Path, other_control_plane: Path, apply: Any) -> Any:
    """The namespace of the same name in the second cluster; the queue `here` is in the first one alone."""
    place = type(world)(config.new_client_from_config(str(other_control_plane)), world.namespace)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": world.namespace}}

    def queue(name: str, of: str) -> Object:
        made = of_kueue("LocalQueue", name, spec={"clusterQueue": of})
        made["metadata"]["namespace"] = world.namespace
        return made

    apply(other_control_plane, [namespace, queue("elsewhere", "here")])
    apply(control_plane, [queue("elsewhere", "elsewhere"), queue("here", "here")])
    for cluster, name in ((world, "elsewhere"), (world, "here"), (place, "elsewhere")):
        wait_active(cluster.custom.get_namespaced_custom_object, world.namespace, "localqueues", name)
    return place


def workloads(world: Any) -> list[Object]:
    found: list[Object] = world.custom.list_namespaced_custom_object(GROUP, VERSION, world.namespace, "workloads")
    return found["items"]


def wait_refused(world: Any, other: Any) -> Object:
    """Wait until no Job is left in both clusters; the status of the FineTuneJob."""
    message = world.wait_condition("Accepted", "MultiKueueUnsupported")["message"]
    assert "queue elsewhere belongs to MultiKueue" in message
    assert ".queueName to a queue of this cluster, or create the job in the other one" in message
    wait_until(lambda: not world.jobs() and not workloads(world), lambda: f"a Job or a Workload: {workloads(world)}")
    wait_until(lambda: not other.jobs() and not workloads(other), lambda: f"a copy: {workloads(other)}")
    status: Object = world.wait_phase("Pending")
    assert (status["reason"], status["message"]) == ("MultiKueueUnsupported", message)
    assert (status.get("failures", 0), "progress" in status, "artifacts" in status) == (0, False, False)
    return status


def wait_admitted(world: Any) -> None:
    """Wait until Kueue lets the Job of the FineTuneJob run in this cluster."""
    world.wait_condition("QuotaReserved", "Admitted")
    assert world.condition("Accepted")["status"] == "True"
    jobs = world.batch.list_namespaced_job
    wait_until(lambda: any(not job.spec.suspend for job in jobs(world.namespace).items), "the Job is resumed")


def test_multikueue_copies_a_job_without_its_config_map_and_mirrors_counters_without_the_pods_message(
    world: Any, other: Any
) -> None:
    world.core.create_namespaced_config_map(world.namespace, {"metadata": {"name": "settings"}})
    container = {"name": "one", "image": "example", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}
    volume = {"name": "settings", "configMap": {"name": "settings"}}
    pod = {"containers": [container], "volumes": [volume], "restartPolicy": "Never"}
    meta = {"name": "plain", "labels": {"kueue.x-k8s.io/queue-name": "elsewhere"}}
    body = {"metadata": meta, "spec": {"suspend": True, "template": {"spec": pod}}}
    assert world.batch.create_namespaced_job(world.namespace, body).spec.managed_by == "kueue.x-k8s.io/multikueue"
    copied = other.pod_of("plain")
    maps = other.core.list_namespaced_config_map(world.namespace).items
    assert [one.metadata.name for one in maps if one.metadata.name != "kube-root-ca.crt"] == []
    other.run(copied)
    other.end(copied, 0, "the report")

    def mirrored() -> Any:
        status = world.batch.read_namespaced_job("plain", world.namespace).status
        return status if status.succeeded else None

    status = wait_until(mirrored, lambda: f"the status of the copy: {workloads(world)}")
    assert "Complete" in [one.type for one in status.conditions]
    assert world.pods() == []
    assert "the report" not in str(status)
    wait_until(lambda: other.jobs() == [], "the copy is removed after its end")


@pytest.mark.parametrize(
    ("spec", "fix"),
    [
        ({"scheduling": {"queueName": "elsewhere"}}, {"scheduling": {"queueName": "here"}}),
        (
            {"scheduling": {"queueName": "elsewhere"}, "preflight": {"enabled": False}},
            {"scheduling": {"queueName": "here"}},
        ),
        ({"preflight": {"queueName": "elsewhere"}}, {"preflight": {"queueName": "here"}}),
    ],
    ids=["preflight", "trainer", "queue_of_preflight"],
)
def test_a_job_of_such_a_queue_is_refused_and_continues_in_a_queue_of_its_cluster(
    world: Any, other: Any, spec: Object, fix: Object
) -> None:
    world.create(**spec)
    wait_refused(world, other)
    world.patch_spec("one", fix)
    wait_admitted(world)
    assert (world.status().get("failures", 0), other.jobs()) == (0, [])


def test_a_waiting_job_that_is_moved_to_such_a_queue_is_refused_too(world: Any, other: Any) -> None:
    world.create(scheduling={"queueName": "missing"})
    world.wait_condition("QuotaReserved", "QueueNotFound")
    world.patch_spec("one", {"scheduling": {"queueName": "elsewhere"}})
    wait_refused(world, other)
    world.patch_spec("one", {"scheduling": {"queueName": "here"}})
    wait_admitted(world)


def test_the_same_job_runs_in_the_other_cluster_and_its_result_is_there_alone(world: Any, other: Any) -> None:
    world.create(scheduling={"queueName": "elsewhere"})
    refused = wait_refused(world, other)
    other.create(scheduling={"queueName": "elsewhere"})
    pod = other.pass_preflight()
    wait_admitted(other)
    other.run(pod)
    other.end(pod, 0, other.published())
    assert other.wait_phase("Succeeded")["artifacts"]
    assert (world.status(), world.jobs()) == (refused, [])


def test_a_queue_that_leaves_multikueue_is_tried_again_after_a_change_of_spec_until_it_belongs_to_it_again(
    world: Any, other: Any, control_plane: Path, apply: Any
) -> None:
    def change(**spec: Any) -> None:
        apply(control_plane, [cluster_queue("elsewhere", **spec)])
        wait_active(world.custom.get_cluster_custom_object, "clusterqueues", "elsewhere")

    world.create(scheduling={"queueName": "elsewhere"})
    wait_refused(world, other)
    try:
        change()
        world.patch_spec("one", {"backoffLimit": 1})
        wait_admitted(world)
    finally:
        change(admissionChecksStrategy=CHECK)
    wait_refused(world, other)


def test_the_wait_for_another_queue_counts_for_the_start_deadline(world: Any, other: Any) -> None:
    world.create(scheduling={"queueName": "elsewhere"}, startDeadlineSeconds=10)
    status = world.wait_phase("Failed")
    assert status["reason"] == "StartDeadlineExceeded"
    assert "queue elsewhere belongs to MultiKueue" in status["message"]
    assert (world.jobs(), other.jobs()) == ([], [])
