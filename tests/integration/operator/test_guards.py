"""Webhooks and policies of a company's cluster: what they change in the operator's objects, refuse, or leave open."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from admission_webhook import AdmissionWebhook, serving
from kubernetes import client, config
from pod_reports import IMAGE

from finetune_api import handoff

Object = dict[str, Any]
DENIAL = "\n\nresource was blocked due to these policies \n\nrequire-team:\n  team: 'The label `team` is required.'\n"
"""A denial as Kyverno writes it, in several lines."""


@pytest.fixture
def api(control_plane: Path) -> Iterator[client.ApiClient]:
    with config.new_client_from_config(str(control_plane)) as one:
        yield one


@pytest.fixture
def guard(world: Any, api: client.ApiClient, tmp_path: Path, wait: Any) -> Iterator[AdmissionWebhook]:
    """The webhooks of the world's namespace, once the API server asks them."""
    with serving(api, tmp_path, world.namespace) as webhook:
        probe = {"metadata": {"generateName": "probe-"}}

        def is_asked() -> bool:
            world.core.create_namespaced_config_map(world.namespace, probe)
            return bool(webhook.asked)

        wait(is_asked, "a request to the webhook")
        webhook.asked.clear()
        yield webhook


def take_from_mirror(pod: Object) -> None:
    """Change a pod as mutating policies do: the image's registry, a sidecar before it, variables, placement."""
    for container in pod["containers"]:
        container["image"] = f"mirror.example/{container['image']}"
        container["env"].append({"name": "CORPORATE", "value": "1"})
    pod["containers"].insert(0, {"name": "proxy", "image": "mirror.example/proxy:1"})
    pod["initContainers"] = [{"name": "agent", "image": "mirror.example/agent:1", "restartPolicy": "Always"}]
    pod |= {"imagePullSecrets": [{"name": "mirror"}], "nodeSelector": {"pool": "gpu"}}
    pod["tolerations"] = [*pod.get("tolerations", []), {"key": "corporate", "operator": "Exists"}]


def change_pods(obj: Object) -> None:
    if obj["kind"] == "Pod":
        take_from_mirror(obj["spec"])


def change_jobs(obj: Object) -> None:
    """Kyverno applies rules for pods to the templates of Jobs too, unless a policy says otherwise."""
    if obj["kind"] == "Job":
        take_from_mirror(obj["spec"]["template"]["spec"])
        obj["spec"] |= {"ttlSecondsAfterFinished": 900, "backoffLimit": 0}


@pytest.mark.parametrize("change", [change_pods, pytest.param(change_jobs, marks=pytest.mark.nightly)])
def test_a_job_whose_pods_are_changed_by_policies_keeps_its_image_and_counts_its_gpus(
    world: Any, operator: Any, guard: AdmissionWebhook, wait: Any, change: Callable[[Object], None]
) -> None:
    guard.change = change
    world.create()
    first = world.pass_preflight()
    assert [one.image for one in first.spec.containers] == ["mirror.example/proxy:1", f"mirror.example/{IMAGE}"]
    world.run(first)
    status = world.wait_phase("Training")
    assert status["lineage"]["trainerImage"] == IMAGE  # the name that the webhook gets: not mirror.example/mirror.…
    assert status["currentRun"]["gpus"] == 1
    world.end(first, handoff.ExitCode.GPU_FAULT)  # after which the attempt gets another Job
    second = world.pod_of("one-2")
    assert second.spec.containers[1].image == f"mirror.example/{IMAGE}"
    world.run(second)
    world.end(second, 0, world.published())
    world.wait_phase("Succeeded")
    made = Counter((operation, kind) for operation, kind, _ in guard.asked)
    assert (made["CREATE", "Job"], made["UPDATE", "Job"], made["DELETE", "Job"]) == (3, 0, 0)
    assert made["CREATE", "Pod"] == 3


def refuse_new(kind: str) -> Callable[[str, Object], str]:
    return lambda operation, obj: DENIAL if (operation, obj["kind"]) == ("CREATE", kind) else ""


@pytest.mark.parametrize(
    "kind",
    [
        "Job",
        *(pytest.param(one, marks=pytest.mark.nightly) for one in ("ConfigMap", "Service", "NetworkPolicy", "Pod")),
    ],
)
def test_what_a_policy_refuses_is_named_in_one_line_and_tried_again_until_it_is_lifted(
    world: Any, operator: Any, guard: AdmissionWebhook, wait: Any, kind: str
) -> None:
    operator.kill()
    operator.env["FINETUNE_ISOLATE_TRAINING_PODS"] = "true"
    operator.start()
    world.create(resources={"gpusPerNode": 1, "numNodes": 2})
    pod = world.pod_of("one-preflight")
    guard.refuse = refuse_new(kind)
    world.run(pod)
    world.end(pod, 0, world.validated())
    message = world.wait_condition("Running", "PodCreationRefused")["message"]
    name = "" if kind == "Pod" else f"{kind} one-1"
    assert f"The API server refuses what the job needs: {name}" in message
    assert "policies require-team: team: 'The label `team` is required.'" in message
    assert "trainer.defaults.podLabels" in message
    assert "\\n" not in message
    guard.asked.clear()
    guard.refuse = lambda _operation, _object: ""
    wait(lambda: len([one for one in world.pods() if one.startswith("one-1-")]) == 2, "both pods", 120)
    assert Counter(guard.asked).most_common(1)[0][1] == 1, "an object was created twice"


def test_a_job_whose_labels_a_policy_replaces_is_not_run_unseen(
    world: Any, operator: Any, guard: AdmissionWebhook, wait: Any
) -> None:
    def rename(obj: Object) -> None:
        if obj["kind"] == "Job":
            obj["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "corporate"

    guard.change = rename
    world.create()
    message = world.wait_condition("Running", "PodCreationRefused")["message"]
    assert "another app.kubernetes.io/managed-by, by which the operator finds it" in message
    wait(lambda: not world.jobs() and not world.pods(), "the Job and its pod to be removed")
    guard.change = lambda _: None

    def has_only_its_pod() -> bool:
        """Whether every pod is of a Job that exists; the Job controller may create one for a Job that was removed."""
        jobs = {job.metadata.uid for job in world.batch.list_namespaced_job(world.namespace).items}
        pods = world.core.list_namespaced_pod(world.namespace).items
        owners = {owner.uid for pod in pods for owner in pod.metadata.owner_references}
        return bool(owners) and owners <= jobs

    wait(has_only_its_pod, "the pod of the next Job alone")
    world.pass_preflight()


def test_a_policy_that_refuses_the_claim_of_a_workspace_is_named(world: Any, operator: Any, wait: Any) -> None:
    quota = {"metadata": {"name": "no-disks"}, "spec": {"hard": {"persistentvolumeclaims": "0"}}}
    world.core.create_namespaced_resource_quota(world.namespace, quota)
    world.create(resources={"gpusPerNode": 1, "workspace": {"sizeLimit": "10Gi", "storageClassName": "fast"}})
    pod = world.pod_of("one-preflight")
    claim = f'persistentvolumeclaim "{pod.metadata.name}-workspace"'
    world.cannot_schedule(pod, f"0/1 nodes are available: waiting for ephemeral volume controller to create {claim}")
    shown = wait(
        lambda: found if "exceeded quota" in (found := world.condition("Running")).get("message", "") else None,
        lambda: str(world.status()),
    )
    assert shown["reason"] == "Unschedulable"
    assert "exceeded quota: no-disks" in shown["message"]
