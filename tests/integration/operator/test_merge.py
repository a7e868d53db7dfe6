"""A full model of a job with several GPUs, on a real API server: trained in one Job, merged in another one."""

from typing import Any

SPEC: dict[str, Any] = {
    "output": {"uri": "s3://bucket/jobs/one", "merge": "BF16"},
    "resources": {"gpusPerNode": 8, "requests": {"cpu": 1, "memory": "1Gi"}},
}
STORED = {
    "uri": "s3://bucket/jobs/one/checkpoints/trained",
    "step": 24,
    "savedTime": "2026-03-01T11:59:00Z",
    "sha256": "cd" * 32,
}


def test_gpus_are_given_back_before_the_merge_though_the_operator_is_killed_in_between(
    world: Any, operator: Any, wait: Any
) -> None:
    world.create(**SPEC)
    trainer = world.pass_preflight()
    assert trainer.spec.containers[0].resources.limits["nvidia.com/gpu"] == "8"
    world.run(trainer)
    world.wait_phase("Training")
    operator.kill()
    world.end(trainer, 0, world.report("Trained", checkpoint=STORED, lastStep=24))
    operator.start()

    merge = world.pod_of("one-2-merge")
    status = world.wait_phase("Merging")
    assert merge.metadata.labels["app.kubernetes.io/component"] == "merge"
    container = merge.spec.containers[0]
    assert (container.args, container.resources.limits) == (["finish"], None)
    assert container.resources.requests == {"cpu": "1", "memory": "1Gi"}
    assert status["trainedWeights"]["uri"] == STORED["uri"]
    world.run(merge)
    wait(lambda: world.condition("Running")["status"] == "True", lambda: str(world.condition("Running")))
    assert world.status()["phase"] == "Merging"

    world.end(merge, 0, world.published())
    status = world.wait_phase("Succeeded")
    assert (status["attempts"], status["runs"], status.get("failures", 0)) == (2, 2, 0)
    assert [run["reason"] for run in status["history"]] == ["Trained", "Succeeded"]
    assert "trainedWeights" not in status
    assert world.jobs() == ["one-1", "one-2-merge", "one-preflight"]
    wait(lambda: world.events("MergeStarted") != [], "an event")


def test_a_deleted_job_takes_its_merge_along(world: Any, operator: Any, wait: Any) -> None:
    world.create(**SPEC)
    world.end(world.pass_preflight(), 0, world.report("Trained", checkpoint=STORED, lastStep=24))
    world.pod_of("one-2-merge")
    world.delete()
    wait(lambda: world.jobs() == [] and world.pods() == [], "no Jobs and no pods", 60)
