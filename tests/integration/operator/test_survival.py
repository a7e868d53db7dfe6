"""What the operator must survive: kills, missing rights, conflicts, names, and being idle."""

import json
import re
import sys
import time
from typing import Any

import pytest
from thin_slice import thin_slice


@pytest.mark.parametrize("delay", thin_slice([0.0, 0.1, 0.25, 0.5, 1.0], 0.0, 0.25))
def test_an_operator_killed_between_its_steps_makes_one_job_per_step(
    world: Any, operator: Any, wait: Any, delay: float
) -> None:
    world.create()
    time.sleep(delay)
    operator.kill()
    operator.start()
    preflight = world.pod_of("one-preflight")
    world.end(preflight, 0, world.validated())
    time.sleep(delay)
    operator.kill()
    operator.start()
    trainer = world.pod_of("one-1")
    world.run(trainer)
    world.end(trainer, 0, world.published())
    time.sleep(delay)
    operator.kill()
    operator.start()
    status = world.wait_phase("Succeeded")
    assert world.jobs() == ["one-1", "one-preflight"]
    assert (status["attempts"], status["runs"], status.get("failures", 0)) == (1, 1, 0)
    happened = world.events()
    assert len(happened) == len(set(happened))


def test_a_job_that_finished_while_the_operator_was_down_becomes_complete(world: Any, operator: Any, wait: Any) -> None:
    world.create()
    trainer = world.pass_preflight()
    world.run(trainer)
    world.wait_phase("Training")
    operator.kill()
    world.end(trainer, 0, world.published())
    wait(lambda: world.batch.read_namespaced_job("one-1", world.namespace).status.completion_time, "the Job's end")
    time.sleep(2)
    operator.start()
    status = world.wait_phase("Succeeded")
    ended = world.batch.read_namespaced_job("one-1", world.namespace).status.completion_time
    assert status["completionTime"] == ended.strftime("%Y-%m-%dT%H:%M:%SZ")


def test_unobserved_failures_are_counted_from_the_job(world: Any, operator: Any, wait: Any) -> None:
    world.create()
    trainer = world.pass_preflight()
    world.run(trainer)
    world.wait_phase("Training")
    operator.kill()
    world.end(trainer, 1)
    wait(lambda: world.batch.read_namespaced_job("one-1", world.namespace).status.failed == 1, "a failed pod")
    world.core.delete_namespaced_pod(trainer.metadata.name, world.namespace, grace_period_seconds=0)
    operator.start()
    wait(lambda: world.status().get("failures") == 1, "a counted failure")
    assert world.status()["runs"] == 1


def test_an_unobserved_preemption_is_counted(world: Any, operator: Any, wait: Any) -> None:
    world.create()
    first = world.pass_preflight()
    world.run(first)
    world.wait_phase("Training")
    operator.kill()
    world.end(first, 75, world.report("Preempted"))
    world.core.delete_namespaced_pod(first.metadata.name, world.namespace, grace_period_seconds=0)
    second = world.pod_of("one-1")
    assert second.metadata.uid != first.metadata.uid
    operator.start()
    wait(lambda: world.status().get("preemptions") == 1, "a counted preemption")
    status = world.status()
    assert (status["runs"], status.get("failures", 0)) == (1, 0)
    assert (status["history"][0]["reason"], status["history"][0]["podUID"]) == ("Unobserved", first.metadata.uid)


def test_a_job_created_again_after_its_deletion_gets_children_of_its_own(world: Any, operator: Any, wait: Any) -> None:
    world.create()
    first = world.get()["metadata"]["uid"]
    world.pass_preflight()
    world.delete()
    world.create()
    second = world.get()["metadata"]["uid"]

    def owner() -> str:
        owners = [
            job.metadata.owner_references[0].uid
            for job in world.batch.list_namespaced_job(world.namespace).items
            if job.metadata.name == "one-preflight" and not job.metadata.deletion_timestamp
        ]
        return owners[0] if owners else ""

    wait(lambda: owner() == second != first, "a preflight Job of the second job", 40)
    pod = wait(
        lambda: next(
            (
                one
                for one in world.core.list_namespaced_pod(world.namespace).items
                if one.metadata.name.startswith("one-preflight") and one.status.phase == "Pending"
            ),
            None,
        ),
        "its pod",
    )
    world.end(pod, 0, world.report("Adopted", artifacts={"uri": "s3://bucket/jobs/one", "manifestSHA256": "ab" * 32}))
    assert world.wait_phase("Succeeded")["reason"] == "Adopted"
    wait(lambda: world.jobs() == ["one-preflight"], lambda: str(world.jobs()))  # the first job's are collected


def test_nothing_is_written_while_nothing_changes(world: Any, operator: Any, wait: Any) -> None:
    world.create()
    world.create("bad", trainer={"image": "registry.example/other:1"})
    world.create("long")
    trainer = world.pass_preflight()
    world.end(trainer, 0, world.published())
    world.wait_phase("Succeeded")
    world.wait_condition("Accepted", "Forbidden", "bad")
    preflight = world.pod_of("long-preflight")
    world.cannot_schedule(preflight, "0/1 nodes are available: 1 Insufficient cpu.")
    world.wait_condition("Running", "Unschedulable", "long")
    wait(lambda: {"Completed", "Refused", "Unschedulable"} <= set(world.events()), lambda: str(world.events()))
    versions = {name: world.get(name)["metadata"]["resourceVersion"] for name in ("one", "bad", "long")}
    events = len(world.events())
    operator.kill()
    operator.env["FINETUNE_RESYNC_SECONDS"] = "1"
    operator.start()
    time.sleep(15)  # that nothing happens shows only over time: fifteen resyncs
    assert {name: world.get(name)["metadata"]["resourceVersion"] for name in versions} == versions
    assert len(world.events()) == events
    operator.get("/metrics")
    writes = [
        line
        for line in operator.text.splitlines()
        if line.startswith("finetune_operator_api_requests_total") and 'verb="PATCH"' in line
    ]
    assert writes == []


def test_a_missing_right_is_named_and_the_job_continues_when_it_is_granted(
    world: Any, operator: Any, access: Any, wait: Any
) -> None:
    full = rules_of(access)
    without = [
        rule | {"verbs": [verb for verb in rule["verbs"] if rule["resources"] != ["jobs"] or verb != "create"]}
        for rule in full
    ]
    access.set_rules(without)
    try:
        world.create()
        denied = world.wait_condition("Accepted", "APIDenied")
        assert "create jobs" in denied["message"]
        assert world.jobs() == []
    finally:
        access.set_rules(full)
    wait(lambda: world.jobs() == ["one-preflight"], "the preflight Job")
    assert world.wait_condition("Accepted", "Accepted")["status"] == "True"


LISTS = ("list", "watch")
"""A list is streamed by a watch since Kubernetes 1.34."""


def test_a_right_lost_in_mid_run_is_named_and_nothing_is_counted(
    world: Any, operator: Any, access: Any, wait: Any
) -> None:
    """A watch that is connected continues; the next list is refused."""
    operator.kill()
    operator.env["FINETUNE_RESYNC_SECONDS"] = "1"
    operator.start()
    world.create()
    trainer = world.pass_preflight()
    world.run(trainer)
    world.wait_phase("Training")
    full = rules_of(access)
    access.set_rules(
        [
            rule | {"verbs": [verb for verb in rule["verbs"] if rule["resources"] != ["jobs"] or verb not in LISTS]}
            for rule in full
        ]
    )
    try:
        world.run(trainer)
        message = world.wait_condition("Accepted", "APIDenied")["message"]
        assert re.search("(list|watch) jobs", message), message
    finally:
        access.set_rules(full)
    wait(lambda: world.condition("Accepted")["status"] == "True", "accepted again")
    assert world.status().get("failures", 0) == 0
    assert world.jobs() == ["one-1", "one-preflight"]


def rules_of(access: Any) -> list[dict[str, Any]]:
    from kubernetes import client

    role = client.RbacAuthorizationV1Api(access.api).read_cluster_role(access.name)
    return [
        {"apiGroups": rule.api_groups, "resources": rule.resources, "verbs": rule.verbs} for rule in role.rules or []
    ]


def test_a_foreign_job_of_the_same_name_is_not_changed_and_the_job_waits(world: Any, operator: Any, wait: Any) -> None:
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}]}}
    stranger = {"metadata": {"name": "one-preflight"}, "spec": {"template": template}}
    uid = world.batch.create_namespaced_job(world.namespace, stranger).metadata.uid
    world.create()
    assert "one-preflight" in world.wait_condition("Accepted", "NameConflict")["message"]
    assert world.batch.read_namespaced_job("one-preflight", world.namespace).metadata.uid == uid
    world.batch.delete_namespaced_job("one-preflight", world.namespace, propagation_policy="Background")
    world.wait_condition("Accepted", "Accepted")
    wait(lambda: world.jobs() == ["one-preflight"], "our preflight Job")


def test_a_job_that_another_client_planted_in_the_jobs_name_is_deleted_and_made_again(
    world: Any, operator: Any, wait: Any
) -> None:
    operator.kill()
    created = world.create()
    owner = {
        "apiVersion": created["apiVersion"],
        "kind": created["kind"],
        "name": "one",
        "uid": created["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": False,
    }
    pod = {"restartPolicy": "Never", "containers": [{"name": "trainer", "image": "evil"}]}
    planted = {"metadata": {"name": "one-preflight", "ownerReferences": [owner]}, "spec": {"template": {"spec": pod}}}
    evil = world.batch.create_namespaced_job(world.namespace, planted).metadata.uid
    operator.start()

    def found() -> list[Any]:
        items = world.batch.list_namespaced_job(world.namespace).items
        return [one for one in items if one.metadata.uid != evil]

    wait(found, "a Job of the operator", 40)
    (own,) = found()
    assert (own.metadata.name, own.spec.template.spec.containers[0].image != "evil") == ("one-preflight", True)


@pytest.mark.parametrize("name", ["dots.in.a-name", "1st", "n" * 52, "a" * 30 + "." + "b" * 200])
def test_unusual_names_get_valid_children(world: Any, operator: Any, name: str) -> None:
    world.create(name)
    world.end(world.pass_preflight(name), 0, world.published(name))
    world.wait_phase("Succeeded", name)


@pytest.mark.parametrize(
    "spec",
    [
        {"trainer": {"image": "registry.example/other:1"}},
        {"trainer": {"serviceAccountName": "admin"}},
        {"scheduling": {"priorityClassName": "system-node-critical"}},
        {"storage": {"endpoint": "http://169.254.169.254"}},
    ],
)
def test_what_is_not_on_an_allow_list_is_refused_without_a_job(world: Any, operator: Any, spec: Any) -> None:
    world.create(**spec)
    refused = world.wait_condition("Accepted", "Forbidden")
    assert "allowed" in refused["message"]
    time.sleep(1)
    assert world.jobs() == []
    assert world.status()["phase"] == "Pending"


def test_a_refused_job_continues_once_its_spec_is_fixed(world: Any, operator: Any, wait: Any) -> None:
    world.create(trainer={"image": "registry.example/other:1"})
    world.wait_condition("Accepted", "Forbidden")
    world.patch_spec("one", {"trainer": {"image": "registry.example/finetune-trainer:2"}})
    wait(lambda: world.jobs() == ["one-preflight"], "the preflight Job")


def test_the_schedulers_and_the_kubelets_messages_are_shown(world: Any, operator: Any) -> None:
    world.create()
    trainer = world.pass_preflight()
    world.cannot_schedule(trainer, "0/4 nodes are available: 4 Insufficient nvidia.com/gpu.")
    shown = world.wait_condition("Running", "Unschedulable")
    assert "4 Insufficient nvidia.com/gpu" in shown["message"]
    assert world.status()["reason"] == "Unschedulable"


def test_an_image_that_cannot_be_pulled_is_shown_while_preflight_waits_for_it(world: Any, operator: Any) -> None:
    world.create()
    pod = world.pod_of("one-preflight")
    world.wait_for_image(pod, "ErrImagePull", "manifest unknown")
    assert "manifest unknown" in world.wait_condition("Running", "ImagePullFailed")["message"]
    assert world.status()["reason"] == "ImagePullFailed"


def test_a_refused_pod_is_shown_with_the_api_servers_message(world: Any, operator: Any, wait: Any) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    world.core.create_namespaced_resource_quota(world.namespace, quota)
    wait(lambda: world.core.read_namespaced_resource_quota("none", world.namespace).status.hard, "the quota's status")
    world.create()
    shown = world.wait_condition("Running", "PodCreationRefused")
    assert "exceeded quota: none" in shown["message"]
    world.core.delete_namespaced_resource_quota("none", world.namespace)


def test_a_missing_secret_is_shown_from_the_pods_events(world: Any, operator: Any) -> None:
    world.create()
    pod = world.pod_of("one-preflight")
    world.core.create_namespaced_event(
        world.namespace,
        {
            "metadata": {"name": f"{pod.metadata.name}.1"},
            "involvedObject": {
                "kind": "Pod", "name": pod.metadata.name, "namespace": world.namespace, "uid": pod.metadata.uid,
            },
            "type": "Warning",
            "reason": "FailedMount",
            "message": 'MountVolume.SetUp failed for volume "credentials" : secret "s3" not found',
        },
    )  # fmt: skip
    assert 'secret "s3" not found' in world.wait_condition("Running", "MountFailed")["message"]


def test_a_running_trainers_losses_reach_the_status(world: Any, operator: Any, wait: Any, trainer_at: Any) -> None:
    world.create()
    trainer = world.pass_preflight()
    report = {
        "jobUID": world.get()["metadata"]["uid"],
        "podUID": trainer.metadata.uid,
        "heartbeat": 5,
        "progress": {"display": "25%", "percent": 25, "step": 6, "totalSteps": 24, "stage": "Training"},
        "metrics": {"trainLoss": 2.123456789, "learningRate": 1e-4},
    }
    with trainer_at("127.0.0.2", json.dumps(report).encode()):
        world.run(trainer, ip="127.0.0.2")
        wait(lambda: world.status().get("progress", {}).get("display") == "25%", "live progress")
    status = world.status()
    assert status["metrics"] == {"trainLoss": 2.1235, "learningRate": 0.0001}
    assert status["phase"] == "Training"
    series = f'finetune_job_train_loss{{name="one",namespace="{world.namespace}"}} 2.1235'
    wait(lambda: operator.get("/metrics") and series in operator.text, lambda: str(operator.text))


def test_a_deleted_job_takes_its_series_along(world: Any, operator: Any, wait: Any) -> None:
    world.create()
    wait(lambda: operator.get("/metrics") and 'name="one"' in operator.text, "the job's series")
    world.delete()
    wait(lambda: operator.get("/metrics") and 'name="one"' not in operator.text, "no series")


def test_the_operator_is_small_and_ends_on_sigterm(access: Any, operator_with: Any) -> None:
    operator = operator_with(access.kubeconfig, python=sys.executable).start()
    assert operator.resident_mib() < 150
    print(f"ready after {operator.seconds_to_ready:.1f} s, {operator.resident_mib():.0f} MiB")
    assert operator.stop() == 0


def test_a_job_that_was_not_observed_has_a_status_that_shows_it(world: Any) -> None:
    assert world.create()["status"] == {"observedGeneration": -1}
