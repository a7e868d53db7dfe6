"""Many pods of one attempt on a real API server with the real Job controller; the test plays the kubelets."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from kubernetes import client

NODES = {"numNodes": 2, "gpusPerNode": 2}


@pytest.fixture
def pair(world: Any, wait: Any) -> Callable[[str], list[Any]]:
    """The two pods of a Job that have not ended, by their rank."""

    def find(job: str) -> list[Any]:
        def look() -> list[Any]:
            pods = world.core.list_namespaced_pod(
                world.namespace, label_selector=f"batch.kubernetes.io/job-name={job}"
            ).items
            alive = [pod for pod in pods if pod.status.phase not in {"Succeeded", "Failed"}]
            alive.sort(key=lambda pod: int(pod.metadata.annotations["batch.kubernetes.io/job-completion-index"]))
            return alive if len(alive) == 2 else []

        # The Job controller waits for 10 s after a pod's failure, and for 20 s after the second one.
        found: list[Any] = wait(look, f"two pods of {job}", 60)
        return found

    return find


@pytest.fixture
def training(world: Any, operator: Any, pair: Any) -> list[Any]:
    """The first two pods, each on a node and running."""
    world.create(resources=NODES)
    world.pass_preflight()
    return start(world, pair("one-1"))


def start(world: Any, pods: list[Any]) -> list[Any]:
    for pod in pods:
        world.bind(pod)
        world.run(pod)
    world.wait_phase("Training")
    return pods


def lost(world: Any, **blocks: Any) -> str:
    """What a pod says that ended because another one did."""
    return str(world.report("Preempted", reason="PeerLost", **blocks))


def test_pods_of_one_attempt_have_names_that_a_service_resolves(training: Any, world: Any) -> None:
    job = world.batch.read_namespaced_job("one-1", world.namespace).spec
    assert (job.completion_mode, job.completions, job.parallelism, job.backoff_limit) == ("Indexed", 2, 2, 0)
    service = world.core.read_namespaced_service("one-1", world.namespace)
    assert (service.spec.cluster_ip, service.spec.publish_not_ready_addresses) == ("None", True)
    assert [(port.name, port.port) for port in service.spec.ports] == [("rendezvous", 29500), ("lifeline", 29400)]
    assert service.metadata.owner_references[0].uid == world.get()["metadata"]["uid"]
    for rank, pod in enumerate(training):
        assert (pod.spec.hostname, pod.spec.subdomain) == (f"one-1-{rank}", "one-1")
        assert service.spec.selector.items() <= pod.metadata.labels.items()
    volume = next(one for one in training[1].spec.volumes if one.name == "config")
    config = world.core.read_namespaced_config_map(volume.config_map.name, world.namespace).data["config.json"]
    assert '"firstPod":"one-1-0.one-1"' in config
    assert len(world.core.list_namespaced_service(world.namespace).items) == 1


def test_pods_of_one_attempt_have_a_token_and_a_policy_before_they_start(
    world: Any, access: Any, operator_with: Any, wait: Any, pair: Any
) -> None:
    operator_with(access.kubeconfig, FINETUNE_ISOLATE_TRAINING_PODS="true", FINETUNE_POD_EGRESS="[]").start()
    world.create(resources=NODES, ttlSecondsAfterFinished=1)
    world.pass_preflight()
    first, second = start(world, pair("one-1"))
    token = world.core.read_namespaced_config_map("one-1-peers", world.namespace)
    assert re.fullmatch("[0-9a-f]{64}", token.data["token"])
    assert token.metadata.owner_references[0].uid == world.get()["metadata"]["uid"]
    networking = client.NetworkingV1Api(world.core.api_client)
    policy = networking.read_namespaced_network_policy("one-1", world.namespace)
    assert policy.spec.policy_types == ["Ingress", "Egress"]
    for pod in (first, second):
        assert policy.spec.pod_selector.match_labels.items() <= pod.metadata.labels.items()
        assert policy.metadata.creation_timestamp <= pod.metadata.creation_timestamp
        assert token.metadata.creation_timestamp <= pod.metadata.creation_timestamp
    world.end(first, 0, world.published())
    world.end(second, 0)
    world.wait_phase("Succeeded")
    wait(lambda: networking.list_namespaced_network_policy(world.namespace).items == [], "no NetworkPolicies", 40)


def test_the_condition_shows_which_pod_is_missing_and_why(world: Any, operator: Any, pair: Any) -> None:
    world.create(resources=NODES)
    world.pass_preflight()
    first, second = pair("one-1")
    world.run(first)
    world.cannot_schedule(second, "0/4 nodes are available: 4 Insufficient nvidia.com/gpu.")
    shown = world.wait_condition("Running", "Unschedulable")
    assert shown["message"].startswith(
        f"1 of 2 pods are running; pod 1 ({second.metadata.name}): No node can run the pod"
    )
    world.run(second)
    world.wait_phase("Training")
    assert world.status()["currentRun"]["podName"] == first.metadata.name


def test_the_first_ranks_result_completes_the_job_and_everything_is_tidied_away(
    training: Any, world: Any, wait: Any
) -> None:
    world.patch_spec("one", {"ttlSecondsAfterFinished": 1})
    first, second = training
    world.end(first, 0, world.published())
    wait(lambda: world.is_told_to_end(second), "the other pod to be told to end")
    world.terminate(second, 137)
    status = world.wait_phase("Succeeded")
    assert (status["attempts"], status["runs"], status.get("failures", 0)) == (1, 1, 0)
    wait(lambda: world.jobs() == [], "no Jobs", 40)
    assert world.core.list_namespaced_service(world.namespace).items == []


def test_a_failure_of_another_rank_is_one_failure_and_a_new_attempt(
    training: Any, world: Any, pair: Any, wait: Any
) -> None:
    first, second = training
    world.end(second, 137, reason="OOMKilled")
    wait(lambda: world.is_told_to_end(first), "the first pod to be told to end")
    world.terminate(first, 75, lost(world, lastStep=40))
    again = start(world, pair("one-2"))
    status = world.status()
    assert (status["attempts"], status["runs"], status["failures"], status.get("preemptions", 0)) == (2, 1, 1, 0)
    run = status["history"][0]
    assert (run["result"], run["podName"]) == ("Failed", first.metadata.name)
    assert (run["reason"], run["exitCode"], run["lastStep"]) == ("OutOfMemory", 137, 40)
    assert f"pod 1 ({second.metadata.name})" in run["message"]
    world.end(again[1], 0)
    world.end(again[0], 0, world.published())
    status = world.wait_phase("Succeeded")
    assert (status["attempts"], status["runs"], status["failures"]) == (2, 2, 1)


def test_a_failure_of_another_rank_while_the_operator_is_down_is_counted_from_what_is_left(
    training: Any, world: Any, operator: Any, pair: Any, wait: Any
) -> None:
    first, second = training
    operator.kill()
    world.end(second, 137, reason="OOMKilled")
    wait(lambda: world.is_told_to_end(first), "the first pod to be told to end")
    world.terminate(first, 75, lost(world))

    def has_failed() -> bool:
        conditions = world.batch.read_namespaced_job("one-1", world.namespace).status.conditions or []
        return any(one.type == "Failed" and one.status == "True" for one in conditions)

    wait(has_failed, "the Job's end")
    operator.start()
    start(world, pair("one-2"))
    status = world.status()
    assert (status["attempts"], status["runs"], status["failures"], status.get("preemptions", 0)) == (2, 1, 1, 0)
    run = status["history"][0]
    assert (run["podName"], run["reason"], run["exitCode"]) == (first.metadata.name, "OutOfMemory", 137)


def test_an_eviction_of_another_rank_is_one_preemption_in_the_same_attempt(
    training: Any, world: Any, pair: Any, wait: Any
) -> None:
    first, second = training
    world.core.delete_namespaced_pod(second.metadata.name, world.namespace)
    world.end(second, 75, world.report("Preempted"), disruption="EvictionByEvictionAPI")
    wait(lambda: "1 of 2 pods are running" in world.condition("Running")["message"], "that the first pod is alone")
    world.core.delete_namespaced_pod(second.metadata.name, world.namespace, grace_period_seconds=0)
    world.end(first, 75, world.report("Preempted", lastStep=40))
    again = start(world, pair("one-1"))
    assert {pod.metadata.uid for pod in again}.isdisjoint(pod.metadata.uid for pod in training)
    status = wait(lambda: found if (found := world.status()).get("preemptions") else None, "a preemption")
    assert (status["attempts"], status["runs"], status["preemptions"], status.get("failures", 0)) == (1, 1, 1, 0)
    run = status["history"][0]
    assert (run["result"], run["reason"], run["lastStep"]) == ("Preempted", "EvictionByEvictionAPI", 40)
    world.end(again[0], 0, world.published())
    world.end(again[1], 0)
    assert world.wait_phase("Succeeded")["preemptions"] == 1


def test_a_terminal_failure_fails_the_job_on_any_rank(training: Any, world: Any, wait: Any) -> None:
    first, second = training
    world.end(second, 79, world.report("Failed", reason="GPUOutOfMemory", message="step 1 does not fit"))
    wait(lambda: world.is_told_to_end(first), "the first pod to be told to end")
    world.terminate(first, 75, lost(world))
    status = world.wait_phase("Failed")
    assert status["reason"] == "GPUOutOfMemory"
    assert "step 1 does not fit" in status["message"]
    assert (status["attempts"], status["runs"], status["failures"]) == (1, 1, 1)


def test_many_pods_are_suspended_and_resume_together(training: Any, world: Any, pair: Any, wait: Any) -> None:
    world.patch_spec("one", {"suspend": True})
    for pod in training:
        wait(lambda pod=pod: world.is_told_to_end(pod), "a pod that is told to end")
    world.terminate(training[0], 75, world.report("Preempted", lastStep=40))
    world.patch_spec("one", {"suspend": False})
    world.wait_condition("Suspended", "NotSuspended")
    assert world.batch.read_namespaced_job("one-1", world.namespace).spec.suspend is True
    world.terminate(training[1], 137)
    again = start(world, pair("one-1"))
    status = world.status()
    assert (status["runs"], status.get("failures", 0), status.get("preemptions", 0)) == (1, 0, 0)
    assert status["history"][0]["result"] == "Suspended"
    world.end(again[0], 0, world.published())
    wait(lambda: world.is_told_to_end(again[1]), "the other pod to be told to end")
    world.terminate(again[1], 0)
    assert world.wait_phase("Succeeded")["attempts"] == 1


def test_a_foreign_service_is_a_name_conflict_until_it_is_deleted(world: Any, operator: Any, wait: Any) -> None:
    ports = [{"port": 80}]
    world.core.create_namespaced_service(world.namespace, {"metadata": {"name": "one-1"}, "spec": {"ports": ports}})
    world.create(resources=NODES)
    world.end(world.pod_of("one-preflight"), 0, world.validated())
    assert "Service one-1" in world.wait_condition("Accepted", "NameConflict")["message"]
    world.core.delete_namespaced_service("one-1", world.namespace)
    wait(lambda: "one-1" in world.jobs(), "the trainer Job", 40)
