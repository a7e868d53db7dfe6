"""Root causes in words on a real API server: what the condition, the event and `kubectl describe` say."""

from typing import Any


def test_a_limit_range_that_refuses_the_pod_is_shown_with_what_to_change(world: Any, operator: Any, wait: Any) -> None:
    limits = {"limits": [{"type": "Container", "max": {"memory": "64Mi"}, "default": {"memory": "64Mi"}}]}
    world.core.create_namespaced_limit_range(world.namespace, {"metadata": {"name": "small"}, "spec": limits})
    world.create(preflight={"resources": {"limits": {"memory": "1Gi"}}})
    shown = world.wait_condition("Running", "PodCreationRefused")
    assert "maximum memory usage per Container is 64Mi" in shown["message"]
    assert "keep preflight.resources within the LimitRange" in shown["message"]
    wait(lambda: world.events("PodCreationRefused"), "an event")
    world.core.delete_namespaced_limit_range("small", world.namespace)
    world.pod_of("one-preflight")


def test_default_requests_win_over_a_limit_range_and_empty_ones_leave_them_to_it(world: Any, operator: Any) -> None:
    chosen = {"default": {"memory": "4Gi"}, "defaultRequest": {"cpu": "100m", "memory": "256Mi"}}
    limits = {"limits": [{"type": "Container"} | chosen]}
    world.core.create_namespaced_limit_range(world.namespace, {"metadata": {"name": "own"}, "spec": limits})
    world.create("default")
    world.create("empty", resources={"gpusPerNode": 1, "requests": {}})
    found = {name: world.pass_preflight(name).spec.containers[0].resources for name in ("default", "empty")}
    assert found["default"].requests == {"cpu": "1", "memory": "2Gi", "nvidia.com/gpu": "1"}
    assert found["empty"].requests == {"cpu": "100m", "memory": "256Mi", "nvidia.com/gpu": "1"}
    assert [one.limits["memory"] for one in found.values()] == ["4Gi", "4Gi"]


def test_a_limit_of_the_namespace_below_the_default_requests_is_shown_with_what_to_change(
    world: Any, operator: Any
) -> None:
    limits = {"limits": [{"type": "Container", "default": {"memory": "1Gi"}}]}
    world.core.create_namespaced_limit_range(world.namespace, {"metadata": {"name": "small"}, "spec": limits})
    world.create()
    world.end(world.pod_of("one-preflight"), 0, world.validated())
    shown = world.wait_condition("Running", "PodCreationRefused")
    assert "must be less than or equal to memory limit" in shown["message"]
    assert "set resources.requests, or to {} for those of the LimitRange" in shown["message"]


def test_a_missing_service_account_is_shown_with_what_to_change(world: Any, operator: Any, wait: Any) -> None:
    operator.kill()
    operator.env["FINETUNE_ALLOWED_SERVICE_ACCOUNTS"] = "train"
    operator.start()
    world.create(trainer={"serviceAccountName": "train"})
    shown = world.wait_condition("Running", "PodCreationRefused")
    assert "create the service account, or change trainer.serviceAccountName" in shown["message"]


def test_a_pod_on_a_lost_node_is_named_and_never_duplicated(world: Any, operator: Any, wait: Any) -> None:
    world.create(checkpoint={"gracePeriodSeconds": 5})
    first = world.pass_preflight()
    world.bind(first)
    world.run(first)
    world.wait_phase("Training")
    world.core.delete_namespaced_pod(first.metadata.name, world.namespace)
    shown = world.wait_condition("Running", "NodeLost")
    assert f"kubectl delete node {world.node}" in shown["message"]
    assert [name for name in world.pods() if name.startswith("one-1")] == [first.metadata.name]
    world.remove_node()
    second = wait(
        lambda: next((pod for pod in world.pods() if pod.startswith("one-1") and pod != first.metadata.name), None),
        "a second trainer pod",
        120,
    )
    assert second
    status = wait(lambda: found if (found := world.status()).get("preemptions") else None, "a counted preemption")
    assert (status["preemptions"], status["attempts"], status.get("failures", 0)) == (1, 1, 0)
    assert status["history"][0]["reason"] == "DeletionByPodGC"


def test_the_cause_is_in_kubectl_describe(world: Any, operator: Any, wait: Any, kubectl: Any) -> None:
    world.create()
    trainer = world.pass_preflight()
    world.cannot_schedule(trainer, "0/4 nodes are available: 4 Insufficient nvidia.com/mig-3g.40gb.")
    world.wait_condition("Running", "Unschedulable")
    wait(lambda: world.events("Unschedulable"), "an event")
    described = kubectl("describe", "finetunejob", "one", "-n", world.namespace)
    assert described.count("wait for a free nvidia.com/mig-3g.40gb, or check resources.gpuResourceName") >= 2
