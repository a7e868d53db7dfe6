"""A job with a mistake that can be corrected is edited and continues, on a real API server with the real Job
controller; the test plays the kubelet."""

from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException

from finetune_api import names

MODEL = {"uri": "hf://acme/tiny", "credentialsSecretRef": {"name": "tokne"}}
CORRECTED = {"model": {"credentialsSecretRef": {"name": "token"}}}


def token_of(pod: Any) -> str:
    """The Secret with the pod's token for the hub."""
    (volume,) = (one for one in pod.spec.volumes if one.name == "hub-tokens")
    return str(volume.projected.sources[0].secret.name)


def test_a_wrong_secret_name_is_corrected_and_the_job_continues_to_its_end(
    world: Any, operator: Any, wait: Any
) -> None:
    world.create(model=MODEL)
    stuck = world.pod_of("one-preflight")
    assert token_of(stuck) == "tokne"
    world.patch_spec("one", CORRECTED)
    wait(lambda: stuck.metadata.name not in world.pods(), "the pod that waits for the wrong Secret is removed")
    preflight = world.pod_of("one-preflight")
    assert token_of(preflight) == "token"
    trainer = world.pass_preflight()
    assert token_of(trainer) == "token"
    world.run(trainer)
    world.wait_phase("Training")
    world.end(trainer, 0, world.published())
    status = world.wait_phase("Succeeded")
    assert (status["attempts"], status["runs"], status.get("failures", 0)) == (1, 1, 0)


def test_a_wrong_secret_name_of_a_waiting_trainer_is_corrected_and_counts_nothing(
    world: Any, operator: Any, wait: Any
) -> None:
    world.create()
    stuck = world.pass_preflight()
    world.patch_spec("one", {"storage": {"credentialsSecretRef": {"name": "other"}}})
    wait(lambda: stuck.metadata.name not in world.pods(), "the pod that waits for the wrong Secret is removed")
    trainer = world.pod_of("one-2")
    (volume,) = (one for one in trainer.spec.volumes if one.name == "credentials")
    assert volume.secret.secret_name == "other"
    assert world.jobs() == ["one-2", "one-preflight"]
    world.run(trainer)
    world.wait_phase("Training")
    world.end(trainer, 0, world.published())
    status = world.wait_phase("Succeeded")
    assert (status["attempts"], status["runs"]) == (2, 1)
    assert (status.get("failures", 0), status.get("preemptions", 0)) == (0, 0)


def test_a_running_trainer_keeps_its_settings_and_the_next_attempt_has_the_edited_ones(
    world: Any, operator: Any, wait: Any
) -> None:
    world.create()
    first = world.pass_preflight()
    world.run(first)
    world.wait_phase("Training")
    world.patch_spec("one", {"checkpoint": {"gracePeriodSeconds": 77}})
    wait(lambda: "takes effect with the next attempt" in world.condition("Accepted")["message"], "an announcement")
    assert first.metadata.name in world.pods()
    world.end(first, 75, world.report("Preempted"))
    second = world.pod_of("one-2")
    assert second.spec.termination_grace_period_seconds == 77
    wait(lambda: "next attempt" not in world.condition("Accepted")["message"], "no announcement")


def test_a_running_trainer_whose_labels_were_overwritten_is_not_interrupted_by_an_edit(
    world: Any, operator: Any, wait: Any
) -> None:
    """The watch reports its pod as deleted."""
    world.create(backoffLimit=0)
    pod = world.pass_preflight()
    world.run(pod)
    world.wait_phase("Training")
    labels = {names.LABEL_MANAGED_BY: "Helm"}
    world.core.patch_namespaced_pod(pod.metadata.name, world.namespace, {"metadata": {"labels": labels}})
    wait(lambda: f"no list shows {pod.metadata.name}" in operator.log.read_text(), "the pod is found by its Job")
    world.patch_spec("one", {"checkpoint": {"gracePeriodSeconds": 77}})
    wait(lambda: "takes effect with the next attempt" in world.condition("Accepted")["message"], "an announcement")
    assert (world.condition("Running")["status"], world.jobs()) == ("True", ["one-1", "one-preflight"])
    world.end(pod, 0, world.published())
    status = world.wait_phase("Succeeded")
    assert [run["result"] for run in status["history"]] == ["Succeeded"]


def test_what_a_job_trains_cannot_be_edited(world: Any, operator: Any) -> None:
    world.create(model=MODEL)
    with pytest.raises(ApiException, match="model is fixed when the job is created, except credentialsSecretRef"):
        world.patch_spec("one", {"model": {"uri": "hf://acme/other"}})
