"""The ValidatingAdmissionPolicy on a real API server: the operator's account creates the operator's Jobs alone."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from chart import of_kind, render
from kubernetes import client, config
from waiting import wait_until

from finetune_api.release import ReleasedResult
from finetune_operator.kube.objects import FineTuneJob
from finetune_operator.manifests.jobs import build_attempt, build_preflight
from finetune_operator.policy.admission import LOADS_CODE
from finetune_operator.release.manifests import build_carrier, build_children
from finetune_operator.release.objects import Release
from finetune_operator.settings import Settings

IMAGE = "registry.example/trainer:1"
SETTINGS = Settings(trainer_image=IMAGE, default_hub_token_secret="hub", default_storage_credentials_secret="keys")
SPEC: dict[str, Any] = {
    "objective": "Chat",
    "model": {"uri": "hf://org/model", "revision": "main"},
    "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}},
    "output": {"uri": "s3://bucket/out", "merge": "BF16"},
    "modelCache": {"claimName": "models"},
    "storage": {"caSecretRef": {"name": "ca"}},
    "resources": {
        "gpusPerNode": 2,
        "numNodes": 2,
        "claims": [{"name": "gpus", "resourceClaimTemplateName": "two-gpus", "request": "gpu"}],
    },
    "scheduling": {
        "queueName": "team",
        "priorityClassName": "system-node-critical",
        "runtimeClassName": "nvidia",
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "schedulerName": "volcano",
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "In", "values": ["h100"]}]}]
                }
            },
            "podAntiAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "weight": 10,
                        "podAffinityTerm": {
                            "topologyKey": "kubernetes.io/hostname",
                            "labelSelector": {"matchLabels": {"app": "serving"}},
                            "namespaces": ["serving"],
                        },
                    }
                ]
            },
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"app.kubernetes.io/managed-by": "finetune-operator"}},
                "minDomains": 2,
                "nodeTaintsPolicy": "Honor",
            }
        ],
    },
    "trainer": {"serviceAccountName": "ml", "imagePullSecrets": [{"name": "pull"}]},
}
VALUES = (
    "admissionPolicy.enabled=true,trainer.image.repository=registry.example/trainer,"
    "allowed.serviceAccounts={default/ml},allowed.priorityClasses={system-node-critical},release.enabled=true"
)


def operators_jobs() -> dict[str, Any]:
    """What the operator makes of a job that asks for as much as it may."""
    plain = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"namespace": "default", "name": "one", "uid": "6f1c", "generation": 1, "resourceVersion": "5"},
        "spec": SPEC,
    }
    weights = {
        "uri": "s3://b/out/checkpoints/trained",
        "step": 1,
        "savedTime": "2026-03-01T12:00:00Z",
        "sha256": "1" * 64,
    }
    merging = FineTuneJob.from_object(plain | {"status": {"trainedWeights": weights}})
    assert not merging.status_error
    job = FineTuneJob.from_object(plain)
    return {
        "preflight": build_preflight(job, SETTINGS, IMAGE).job,
        "trainer": build_attempt(job, SETTINGS, IMAGE, 1).job,
        "merge": build_attempt(merging, SETTINGS, IMAGE, 1).job,
        "release": release_job(),
    }


def release_job() -> dict[str, Any]:
    vllm = {"url": "http://vllm:8000", "adapterName": "bot", "volume": {"claimName": "models", "path": "/adapters"}}
    result = {"uri": "s3://bucket/out", "manifestSHA256": "ab" * 32}
    release = Release.from_object(
        {
            "metadata": {"namespace": "default", "name": "bot", "uid": "7a2d", "generation": 1, "resourceVersion": "5"},
            "spec": result | {"target": {"vllm": vllm}},
        }
    )
    assert release.spec
    carrier = build_carrier(release, release.spec, None)
    candidate = ReleasedResult.model_validate(result)
    return next(
        one for one in build_children(release, release.spec, candidate, carrier, SETTINGS) if one["kind"] == "Job"
    )


OPERATOR = "system:serviceaccount:system:release-finetune-operator"


def policy(helm: str, values: str = VALUES) -> list[Any]:
    return [one for one in render(helm, "--set", values) if one["kind"].startswith("ValidatingAdmissionPolicy")]


@pytest.fixture(scope="module")
def create(helm: str, kubectl: Callable[..., str], control_plane: Path) -> Iterator[Callable[..., str]]:
    """Create a Job as the operator's account or another user, without keeping it; return the refusal, or ""."""
    roles = of_kind(render(helm), "ClusterRole") + of_kind(render(helm), "ClusterRoleBinding")
    made = yaml.safe_dump_all(
        [*policy(helm), *(one for one in roles if not one["metadata"]["name"].endswith(("view", "edit")))]
    )
    kubectl("apply", "-f", "-", stdin=made)

    def ask(job: dict[str, Any], user: str = OPERATOR) -> str:
        with config.new_client_from_config(str(control_plane)) as api:
            api.set_default_header("Impersonate-User", user)
            if user == "an-administrator":
                api.set_default_header("Impersonate-Group", "system:masters")
            try:
                client.CustomObjectsApi(api).create_namespaced_custom_object(
                    "batch", "v1", "default", "jobs", job, dry_run="All"
                )
            except client.ApiException as refusal:
                return str(refusal.body)
            return ""

    # A policy takes effect a moment after it was created.
    wait_until(lambda: "the controller of the Job" in ask(changed(lambda job: job["metadata"].pop("ownerReferences"))))
    yield ask
    kubectl("delete", "-f", "-", stdin=made)


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    job: dict[str, Any] = deepcopy(operators_jobs()["trainer"])
    change(job)
    return job


def pod(job: dict[str, Any]) -> Any:
    return job["spec"]["template"]["spec"]


def main(job: dict[str, Any]) -> Any:
    return pod(job)["containers"][0]


@pytest.mark.parametrize("kind", ["preflight", "trainer", "merge", "release"])
def test_the_operators_own_jobs_pass(create: Callable[..., str], kind: str) -> None:
    assert create(operators_jobs()[kind]) == ""


def with_variable(name: str, value: str) -> Callable[[dict[str, Any]], None]:
    def change(job: dict[str, Any]) -> None:
        given = [one for one in main(job)["env"] if one["name"] != name]
        main(job)["env"] = [*given, {"name": name, "value": value}]

    return change


def with_mount(path: str, source: dict[str, Any] | None = None, **more: str) -> Callable[[dict[str, Any]], None]:
    def change(job: dict[str, Any]) -> None:
        others = [one for one in main(job)["volumeMounts"] if one["mountPath"] != path]
        main(job)["volumeMounts"] = [*others, {"name": "own", "mountPath": path, **more}]
        pod(job)["volumes"].append({"name": "own", **(source or {"configMap": {"name": "code"}})})

    return change


def as_ephemeral(**more: Any) -> dict[str, Any]:
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, **more}
    return {"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}


COPY = {"kind": "PersistentVolumeClaim", "name": "filled"}
HOST_PATH = {"name": "host", "hostPath": {"path": "/"}}
API_TOKEN = {"name": "api", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}
REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no owner": (lambda job: job["metadata"].pop("ownerReferences"), "the controller of the Job"),
    "another owner": (
        lambda job: job["metadata"]["ownerReferences"][0].update(kind="Pod"),
        "the controller of the Job",
    ),
    "the command of a release": (lambda job: main(job).update(args=["release"]), "of its controller's kind"),
    "a command": (lambda job: main(job).update(command=["sh"]), "one container"),
    "arguments": (lambda job: main(job).update(args=["run", "x"]), "one container"),
    "a hook": (lambda job: main(job).update(lifecycle={"preStop": {"sleep": {"seconds": 1}}}), "one container"),
    "a command by a probe": (
        lambda job: main(job).update(startupProbe={"exec": {"command": ["sh", "-c", "id"]}}),
        "without hooks and probes",
    ),
    "code by a variable": (with_variable("PYTHONPATH", "/model-cache/code"), "a variable must be the operator's own"),
    "a library by a variable": (with_variable("LD_PRELOAD", "/model-cache/a.so"), "a variable must be the operator's"),
    "a plugin by a variable": (with_variable("NCCL_NET_PLUGIN", "/claims/a/b.so"), "a variable must be the operator's"),
    "a cache with code": (with_variable("TRITON_CACHE_DIR", "/claims/a/cache"), "a variable must be the operator's"),
    "code in the working directory": (with_variable("PYTHONSAFEPATH", ""), "a variable must be the operator's own"),
    "another working directory": (lambda job: main(job).update(workingDir="/claims/a"), "where the program runs"),
    "another home": (with_variable("HOME", "/claims/a"), "a variable must be the operator's own"),
    "code by a mount": (with_mount("/opt/finetune/finetune_trainer"), "where the operator mounts it"),
    "code by a part of a volume": (with_mount("/etc/finetune/ca", subPath="a"), "where the operator mounts it"),
    "code above the mounts": (with_mount("/claims/../opt/venv"), "where the operator mounts it"),
    "a workspace with files": (with_mount("/workspace"), "must be empty"),
    "a workspace with caches": (with_mount("/workspace/.cache"), "where the operator mounts it"),
    "a workspace of a copy": (with_mount("/workspace", as_ephemeral(dataSource=COPY)), "must be empty"),
    "two containers": (lambda job: pod(job)["containers"].append({**main(job), "name": "b"}), "one container"),
    "an init container": (lambda job: pod(job).update(initContainers=[{"name": "i", "image": IMAGE}]), "one container"),
    "an image": (
        lambda job: main(job).update(image="registry.example/trainer2:1"),
        "image registry.example/trainer2:1",
    ),
    "a token": (lambda job: pod(job).update(automountServiceAccountToken=True), "no service-account token"),
    "an account": (lambda job: pod(job).update(serviceAccountName="admin"), "allowed.serviceAccounts"),
    "the host's network": (lambda job: pod(job).update(hostNetwork=True), "node's network"),
    "the host's processes": (lambda job: pod(job).update(hostPID=True), "node's network"),
    "a node": (lambda job: pod(job).update(nodeName="control-plane"), "node's network"),
    "a host port": (lambda job: main(job)["ports"][0].update(hostPort=8080), "node's network"),
    "a host path": (lambda job: pod(job)["volumes"].append(HOST_PATH), "a volume must be"),
    "a projected token": (lambda job: pod(job)["volumes"].append(API_TOKEN), "a volume must be"),
    "an environment of a Secret": (
        lambda job: main(job).update(envFrom=[{"secretRef": {"name": "other"}}]),
        "a variable must be",
    ),
    "a variable of a Secret": (
        lambda job: main(job)["env"].append({"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}),
        "a variable must be",
    ),
    "root": (lambda job: pod(job)["securityContext"].update(runAsUser=0), "another user than root"),
    "root by the container": (lambda job: main(job)["securityContext"].update(runAsUser=0), "read-only root"),
    "no seccomp": (
        lambda job: pod(job)["securityContext"]["seccompProfile"].update(type="Unconfined"),
        "another user than root",
    ),
    "an SELinux label": (
        lambda job: pod(job)["securityContext"].update(seLinuxOptions={"type": "spc_t"}),
        "SELinux label of the runtime",
    ),
    "an SELinux label of the container": (
        lambda job: main(job)["securityContext"].update(seLinuxOptions={"level": "s0"}),
        "no profile of its own",
    ),
    "no AppArmor": (
        lambda job: pod(job)["securityContext"].update(appArmorProfile={"type": "Unconfined"}),
        "SELinux label of the runtime",
    ),
    "no AppArmor for the container": (
        lambda job: main(job)["securityContext"].update(appArmorProfile={"type": "Unconfined"}),
        "no profile of its own",
    ),
    "no AppArmor by an annotation": (
        lambda job: job["spec"]["template"]["metadata"]["annotations"].update(
            {"container.apparmor.security.beta.kubernetes.io/trainer": "unconfined"}
        ),
        "AppArmor profiles",
    ),
    "privilege": (lambda job: main(job)["securityContext"].update(privileged=True), ""),
    "escalation": (lambda job: main(job)["securityContext"].pop("allowPrivilegeEscalation"), "read-only root"),
    "a capability": (
        lambda job: main(job)["securityContext"]["capabilities"].update(add=["NET_RAW"]),
        "read-only root",
    ),
    "a writable root": (
        lambda job: main(job)["securityContext"].update(readOnlyRootFilesystem=False),
        "read-only root",
    ),
    "a priority": (lambda job: pod(job).update(priorityClassName="system-cluster-critical"), "allowed.priorityClasses"),
    "a runtime": (lambda job: pod(job).update(runtimeClassName="other"), "allowed.runtimeClasses"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_operators_account_creates_no_other_pod(create: Callable[..., str], name: str) -> None:
    change, said = REFUSED[name]
    refusal = create(changed(change))
    assert refusal
    assert said in refusal


def test_variables_of_the_list_and_a_workspace_on_a_volume_pass(create: Callable[..., str]) -> None:
    assert create(changed(with_variable("NCCL_DEBUG", "INFO"))) == ""
    assert create(changed(with_mount("/workspace", as_ephemeral(storageClassName="fast")))) == ""


def test_the_policy_knows_the_variables_that_load_code(helm: str) -> None:
    assert f"matches('{LOADS_CODE.pattern}')" in str(yaml.safe_dump(policy(helm), width=10**6)).replace("''", "'")


def test_jobs_of_other_users_pass(create: Callable[..., str]) -> None:
    job = changed(lambda job: job["metadata"].pop("ownerReferences"))
    assert create(job, user="an-administrator") == ""


@pytest.fixture
def owner(kubectl: Callable[..., str]) -> Iterator[str]:
    """The UID of a FineTuneJob, without which the garbage collector removes a Job."""
    made = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "one"}, "spec": SPEC}
    kubectl("create", "-n", "default", "-f", "-", stdin=yaml.safe_dump(made))
    yield str(orjson.loads(kubectl("get", "finetunejob", "-n", "default", "one", "-o", "json"))["metadata"]["uid"])
    kubectl("delete", "finetunejob", "-n", "default", "one")


def test_after_the_lists_have_changed_the_operator_can_stop_its_job_but_start_no_other(
    helm: str, kubectl: Callable[..., str], control_plane: Path, create: Callable[..., str], owner: str
) -> None:
    own = changed(lambda job: job["metadata"]["ownerReferences"][0].update(uid=owner))
    foreign = changed(lambda job: job["metadata"].update(name="foreign", ownerReferences=[]))
    name = own["metadata"]["name"]
    with config.new_client_from_config(str(control_plane)) as api:
        jobs = client.CustomObjectsApi(api)
        where = ("batch", "v1", "default", "jobs")

        def change(name: str, **body: Any) -> str:
            api.set_default_header("Impersonate-User", OPERATOR)
            try:
                jobs.patch_namespaced_custom_object(*where, name, body)
            except client.ApiException as refusal:
                return str(refusal.body)
            return ""

        jobs.create_namespaced_custom_object(*where, foreign | {"spec": foreign["spec"] | {"suspend": True}})
        api.set_default_header("Impersonate-User", OPERATOR)
        jobs.create_namespaced_custom_object(*where, own | {"spec": own["spec"] | {"suspend": False}})
        values = "admissionPolicy.enabled=true,trainer.image.repository=registry.new/trainer"
        kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(policy(helm, values)))
        other = changed(lambda job: job["metadata"].update(name="other"))
        wait_until(lambda: "is not in trainer.image" in create(other))
        assert change(name, spec={"suspend": True}) == ""
        for field in (
            {"containers": [main(own) | {"image": "registry.example/trainer:2"}]},
            {"serviceAccountName": "admin"},
            {"priorityClassName": "system-cluster-critical"},
            {"runtimeClassName": "other"},
        ):
            assert "field is immutable" in change(name, spec={"template": {"spec": field}})
        adopted = change("foreign", metadata={"ownerReferences": own["metadata"]["ownerReferences"]})
        assert "is not in trainer.image" in adopted
    kubectl("delete", "job", "-n", "default", "foreign")


DELETED = (("batch/v1", "Job", "jobs"), ("v1", "ConfigMap", "configmaps"), ("v1", "Service", "services"),
           ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"))  # fmt: skip


@pytest.mark.parametrize(("version", "kind", "resource"), DELETED)
def test_the_operators_account_deletes_what_a_finetunejob_controls_and_nothing_else(
    create: Callable[..., str], kubectl: Callable[..., str], version: str, kind: str, resource: str
) -> None:
    plain = {
        "objective": "Chat",
        "model": SPEC["model"],
        "dataset": SPEC["dataset"],
        "output": {"uri": "s3://bucket/out"},
    }
    job = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": resource}, "spec": plain}
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump(job))
    uid = kubectl("get", "finetunejob", resource, "-o", "jsonpath={.metadata.uid}")
    named = {"apiVersion": job["apiVersion"], "kind": job["kind"], "name": resource, "uid": uid}
    own = [named | {"controller": True}]  # one that exists: the garbage collector deletes what has no owner
    spec = {"Job": yaml.safe_load(JOB_SPEC), "Service": {"ports": [{"port": 80}]}, "NetworkPolicy": {"podSelector": {}}}
    for name, owners in (("ours", own), ("theirs", []), ("pretended", [named])):
        made = {"apiVersion": version, "kind": kind, "metadata": {"name": name, "ownerReferences": owners}}
        kubectl("apply", "-f", "-", stdin=yaml.safe_dump(made | ({"spec": spec[kind]} if kind in spec else {})))

    def delete(name: str, *user: str) -> str:
        try:
            return kubectl("delete", resource, name, *user)
        except AssertionError as refusal:
            return str(refusal)

    try:
        for name in ("theirs", "pretended"):
            assert "the controller of what is deleted must be a FineTuneJob" in delete(name, "--as", OPERATOR)
        assert "deleted" in delete("ours", "--as", OPERATOR)
    finally:
        for name in ("theirs", "pretended"):
            assert "deleted" in delete(name), "an administrator may"
        kubectl("delete", "finetunejob", resource)


JOB_SPEC = """
suspend: true
template:
  spec: {restartPolicy: Never, containers: [{name: a, image: a}]}
"""
