"""An image for preflight alone: what trains is pinned from the first trainer's pod."""

from collections.abc import Callable
from typing import Any

from finetune_operator.settings import Settings

Build = Callable[..., Any]
SLIM = "registry.example/preflight:1"
DIGEST = "registry.example/trainer@sha256:" + "1" * 64


def image_of(one: Any, job: str) -> str:
    return str(one.children[job]["spec"]["template"]["spec"]["containers"][0]["image"])


def slim(one: Any) -> Any:
    one.settings = Settings(trainer_image="registry.example/trainer:1", preflight_image=SLIM)
    return one


def start(one: Any, job: str) -> Any:
    """Run a pod of the Job, on a node that reports the image's digest."""
    pod = one.pod(job)
    one.run(pod)
    one.settle()
    return pod


def test_preflight_has_its_own_image_and_the_first_trainer_pins_the_jobs(scene: Build) -> None:
    one = slim(scene())
    one.settle()
    reported = {"baseModelURI": "s3://bucket/model", "trainerImage": SLIM}
    one.end(one.pod("one-preflight"), 0, one.report("Validated", lineage=reported))
    one.complete("one-preflight")
    one.settle()
    assert image_of(one, "one-preflight") == SLIM
    assert image_of(one, "one-1") == "registry.example/trainer:1"
    assert one.status["lineage"]["baseModelURI"] == "s3://bucket/model"
    assert "trainerImage" not in one.status["lineage"]

    pod = start(one, "one-1")
    assert one.status["lineage"]["trainerImage"] == DIGEST
    one.end(pod, 0)
    one.complete("one-1")
    one.settings = Settings(trainer_image="registry.example/trainer:2", preflight_image=SLIM)
    one.settle()
    assert image_of(one, "one-2") == DIGEST


def test_a_trainer_that_ended_unseen_pins_the_image_too(scene: Build) -> None:
    one = slim(scene()).to_training()
    one.end(one.pod("one-1"), 0)
    one.complete("one-1")
    one.settle()
    assert one.status["lineage"]["trainerImage"] == DIGEST
    assert image_of(one, "one-2") == DIGEST


def test_a_container_that_a_webhook_puts_first_is_not_the_trainers_image(scene: Build) -> None:
    one = slim(scene()).to_training()
    pod = one.pod("one-1")
    proxy = {"name": "proxy", "image": "docker.io/istio/proxyv2:1.24"}
    pod["spec"] = {"containers": [proxy, *pod["spec"]["containers"]]}
    one.run(pod)
    one.settle()
    assert one.status["lineage"]["trainerImage"] == DIGEST


def mirror(one: Any, pod: Any) -> None:
    """Let a webhook have put the name of a mirror into the pod, from which the node has then pulled the image."""
    container = pod["spec"]["containers"][0]
    container["image"] = f"mirror.example/{container['image']}"
    pod["status"]["containerStatuses"][0]["imageID"] = "mirror.example/registry.example/trainer@sha256:" + "1" * 64


def test_an_image_that_a_webhook_takes_from_a_mirror_is_pinned_under_the_name_that_the_webhook_gets(
    scene: Build,
) -> None:
    one = scene()
    one.settings = Settings(trainer_image="registry.example/trainer:1")
    one.settle()
    pod = one.pod("one-preflight")
    one.end(pod, 0, one.report("Validated", dataset={"rows": 5, "acceptedRows": 5}))
    mirror(one, pod)
    one.complete("one-preflight")
    one.settle()
    assert one.status["lineage"]["trainerImage"] == DIGEST
    assert image_of(one, "one-1") == DIGEST


def test_the_image_of_the_first_trainer_is_pinned_so_too(scene: Build) -> None:
    one = slim(scene()).to_training()
    pod = one.pod("one-1")
    one.run(pod)
    mirror(one, pod)
    one.settle()
    assert one.status["lineage"]["trainerImage"] == DIGEST


def test_a_pinned_image_keeps_the_spelling_that_an_admission_policy_lists(scene: Build) -> None:
    one = scene()
    one.settings = Settings(trainer_image="myorg/trainer:1")
    one.settle()
    pod = one.pod("one-preflight")
    one.end(pod, 0, one.report("Validated", dataset={"rows": 5, "acceptedRows": 5}))
    pod["status"]["containerStatuses"][0]["imageID"] = "docker.io/myorg/trainer@sha256:" + "1" * 64
    one.complete("one-preflight")
    one.settle()
    assert image_of(one, "one-1") == "myorg/trainer@sha256:" + "1" * 64


def test_a_jobs_own_image_also_runs_preflight(scene: Build) -> None:
    one = slim(scene(trainer={"image": "registry.example/trainer:9"}))
    one.to_training()
    assert image_of(one, "one-preflight") == "registry.example/trainer:9"
    assert image_of(one, "one-1") == DIGEST


def test_a_preflight_image_is_not_pinned_after_the_setting_was_removed(scene: Build) -> None:
    one = slim(scene())
    one.settle()
    one.settings = Settings(trainer_image="registry.example/trainer:1")
    one.to_training()
    assert image_of(one, "one-1") == "registry.example/trainer:1"
