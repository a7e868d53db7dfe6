"""Pods into which a proxy is injected that runs on after the trainer, as by a service mesh without native sidecars."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from user import Bench, Job, kubectl, wait_for

PROXY = """[JSONPatch{op: "add", path: "/spec/containers/-", value: Object.spec.containers{
  name: "proxy",
  image: object.spec.containers[0].image,
  command: ["python3", "-c", "import signal, sys, time; signal.signal(15, lambda *_: sys.exit()); time.sleep(1e6)"],
  securityContext: Object.spec.containers.securityContext{
    allowPrivilegeEscalation: false,
    capabilities: Object.spec.containers.securityContext.capabilities{drop: ["ALL"]}
  }
}}]"""
POD = """
apiVersion: v1
kind: Pod
metadata: {name: injected}
spec:
  securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
  containers:
  - {name: a, image: a, securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}
"""


@pytest.fixture(scope="module", autouse=True)
def _injected(bench: Bench) -> Iterator[None]:
    """Let the API server add the proxy to every pod of the namespace."""
    policy: dict[str, Any] = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": bench.namespace},
        "spec": {
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": bench.namespace}},
                "resourceRules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
                ],
            },
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": PROXY}}],
        },
    }
    binding = policy | {"kind": "MutatingAdmissionPolicyBinding", "spec": {"policyName": bench.namespace}}
    made = yaml.safe_dump_all([policy, binding])
    kubectl("apply", "-f", "-", stdin=made)
    look = ("create", "-n", bench.namespace, "--dry-run=server", "-o", "jsonpath={.spec.containers[*].name}", "-f", "-")
    wait_for("the injection", lambda: kubectl(*look, stdin=POD).stdout == "a proxy")
    yield
    kubectl("delete", "-f", "-", stdin=made)


@pytest.mark.nightly
def test_a_job_is_complete_and_its_gpu_free_although_the_proxy_runs_on(bench: Bench) -> None:
    job = bench.apply("meshed")
    trainer = job.running_pod()
    assert [one.name for one in trainer.spec.containers] == ["trainer", "proxy"]
    status = job.wait("Complete")
    assert (status["attempts"], status["runs"], status.get("failures", 0)) == (1, 1, 0)
    assert status["evaluation"]["verdict"]
    wait_for("the pods to be gone", lambda: not job.pods() and not job.pods("preflight"), state=job.status)


@pytest.mark.nightly
def test_a_preflight_that_fails_fails_the_job_although_the_proxy_runs_on(bench: Bench) -> None:
    job: Job = bench.apply("meshed-nothing", model={"uri": bench.uri("models/nothing")})
    assert job.wait("Failed")["reason"] == "ModelUnavailable"
    assert job.pods("trainer") == []
    wait_for("the pod to be gone", lambda: not job.pods("preflight"), state=job.status)
