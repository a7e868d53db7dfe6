"""Deadlines on a real API server with the real Job controller; the test plays kubelet and trainer."""

import json
import time
from datetime import UTC, datetime
from typing import Any


def seconds_since(moment: str) -> int:
    return int((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())


def test_a_trainer_that_cannot_start_in_time_ends_the_job_and_its_pod(world: Any, operator: Any, wait: Any) -> None:
    world.create(startDeadlineSeconds=3600)
    trainer = world.pass_preflight()
    world.cannot_schedule(trainer, "0/4 nodes are available: 4 Insufficient nvidia.com/gpu.")
    world.wait_condition("Running", "Unschedulable")
    operator.kill()
    world.patch_spec("one", {"startDeadlineSeconds": seconds_since(world.status()["eligibleTime"]) + 8})
    operator.start()
    status = world.wait_phase("Failed")
    assert status["reason"] == "StartDeadlineExceeded"
    assert "Insufficient nvidia.com/gpu" in status["message"]
    wait(lambda: not [name for name in world.pods() if name.startswith("one-1")], "no trainer pod")
    wait(lambda: "Failed" in world.events(), "the event of the end")


def test_active_time_is_counted_across_runs_suspensions_and_a_restart(world: Any, operator: Any, wait: Any) -> None:
    world.create(activeDeadlineSeconds=3600)
    first = world.pass_preflight()
    began = time.monotonic()
    world.run(first)
    world.wait_phase("Training")
    time.sleep(3)
    world.patch_spec("one", {"suspend": True})
    before = wait(lambda: world.status().get("activeSeconds"), "the time of a run that ended")
    assert 2 <= before <= time.monotonic() - began + 2  # the API server's times have no parts of a second
    limit = before + 8
    world.patch_spec("one", {"activeDeadlineSeconds": limit})
    time.sleep(10)  # longer than what is left: suspended time does not count
    assert world.status()["phase"] == "Suspended"
    world.patch_spec("one", {"suspend": False})
    second = world.pod_of("one-1")
    world.run(second)
    world.wait_phase("Training")
    operator.kill()
    operator.start()
    status = world.wait_phase("Failed")
    assert status["reason"] == "DeadlineExceeded"
    assert status["activeSeconds"] >= limit
    assert [run["result"] for run in status["history"]] == ["Suspended", "Failed"]
    wait(lambda: "one-1" not in world.jobs(), "the Job is removed")


def test_a_reachable_trainer_without_progress_gets_a_new_attempt(
    world: Any, operator: Any, wait: Any, trainer_at: Any
) -> None:
    operator.kill()
    operator.env["FINETUNE_PROGRESS_INTERVAL_SECONDS"] = "1"
    operator.start()
    world.create(stallTimeoutSeconds=10)
    first = world.pass_preflight()
    report = {
        "jobUID": world.get()["metadata"]["uid"],
        "podUID": first.metadata.uid,
        "heartbeat": 5,
        "progress": {"step": 6, "stage": "Training"},
    }
    with trainer_at("127.0.0.3", json.dumps(report).encode()):
        world.run(first, ip="127.0.0.3")
        second = wait(lambda: world.pod_of("one-2") if "one-2" in world.jobs() else None, "a second attempt")
    status = wait(lambda: found if (found := world.status()).get("attempts") == 2 else None, "the second attempt")
    assert status["failures"] == 1
    assert (status["history"][0]["reason"], status["history"][0]["lastStep"]) == ("NoProgress", 6)
    world.end(second, 0, world.published())
    world.wait_phase("Succeeded")


def test_what_is_left_of_a_finished_job_goes_and_the_record_stays(world: Any, operator: Any, wait: Any) -> None:
    world.create(ttlSecondsAfterFinished=3600)
    world.create("other")
    world.pod_of("other-preflight")
    world.end(world.pass_preflight(), 0, world.published())
    ended = world.wait_phase("Succeeded")["completionTime"]
    assert world.jobs() == ["one-1", "one-preflight", "other-preflight"]
    operator.kill()
    world.patch_spec("one", {"ttlSecondsAfterFinished": seconds_since(ended) + 6})
    operator.start()
    wait(lambda: world.jobs() == ["other-preflight"], "no Job of the finished job")
    configs = [item.metadata.name for item in world.core.list_namespaced_config_map(world.namespace).items]
    assert [name for name in configs if name.startswith("one-")] == []
    assert [name for name in configs if name.startswith("other-")] != []
    wait(lambda: not [name for name in world.pods() if name.startswith("one-")], "no pod of the finished job")
    assert world.status()["phase"] == "Succeeded"


def test_a_time_to_live_that_is_set_after_the_end_counts_at_once(world: Any, operator: Any, wait: Any) -> None:
    world.create()
    world.end(world.pass_preflight(), 0, world.published())
    world.wait_phase("Succeeded")
    world.patch_spec("one", {"ttlSecondsAfterFinished": 0})
    wait(lambda: world.jobs() == [], "no Job")


def test_the_defaults_of_the_platform_count_for_a_job_that_sets_none(world: Any, operator: Any, wait: Any) -> None:
    operator.kill()
    operator.env |= {
        "FINETUNE_DEFAULT_IMAGE_PULL_SECRETS": "pull",
        "FINETUNE_DEFAULT_TOLERATIONS": '[{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]',
        "FINETUNE_DEFAULT_NODE_SELECTOR": '{"node-role.kubernetes.io/gpu": ""}',
        "FINETUNE_DEFAULT_TTL_SECONDS_AFTER_FINISHED": "1",
    }
    operator.start()
    world.create()
    trainer = world.pass_preflight()
    assert trainer.spec.node_selector == {"node-role.kubernetes.io/gpu": ""}
    assert "gpu" in [one.key for one in trainer.spec.tolerations]
    assert [one.name for one in trainer.spec.image_pull_secrets] == ["pull"]
    world.end(trainer, 0, world.published())
    world.wait_phase("Succeeded")
    wait(lambda: world.jobs() == [], "no Job of the finished job")
    assert world.get()["spec"].keys().isdisjoint({"scheduling", "ttlSecondsAfterFinished"})
