"""What holds while no operator runs, when another version takes over, and when there is nothing to do."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kubernetes.client.exceptions import ApiException

FINISHED = 200
"""A fifth of what the design names, for the time it takes to create them; a look at each would show at once."""


def requests(operator: Any, verbs: tuple[str, ...]) -> float:
    """Requests of the operator to the API server so far."""
    operator.get("/metrics")
    lines = [line for line in operator.text.splitlines() if line.startswith("finetune_operator_api_requests_total{")]
    return sum(float(line.split()[-1]) for line in lines if any(f'verb="{verb}"' in line for verb in verbs))


def looks(operator: Any) -> float:
    operator.get("/metrics")
    lines = [line for line in operator.text.splitlines() if line.startswith("finetune_operator_reconcile_total{")]
    return sum(float(line.split()[-1]) for line in lines)


def ended_watches(world: Any) -> float:
    """Watches of FineTuneJobs that have ended, as the API server counts them: with each list another one begins."""
    api = world.core.api_client
    answer = api.rest_client.request("GET", f"{api.configuration.host}/metrics")
    lines = (answer.read() or answer.data).decode().splitlines()
    mine = [one for one in lines if 'resource="finetunejobs"' in one and 'verb="WATCH"' in one]
    return sum(float(one.split()[-1]) for one in mine if one.startswith("apiserver_request_total{"))


WRITES = ("POST", "PUT", "PATCH", "DELETE")


def is_quiet(operator: Any) -> bool:
    """Whether two texts of the operator, which makes one a second, show the same looks and writes."""
    before = looks(operator), requests(operator, WRITES)
    time.sleep(1.2)
    return before == (looks(operator), requests(operator, WRITES))


def test_a_job_deleted_while_the_operator_is_down_takes_everything_along(world: Any, operator: Any, wait: Any) -> None:
    world.create()
    world.run(world.pass_preflight())
    world.wait_phase("Training")
    operator.kill()
    world.delete()
    try:
        found = world.get()
    except ApiException as gone:
        found = {"gone": gone.status}
    assert found == {"gone": 404}
    wait(lambda: world.jobs() == world.pods() == config_maps(world) == [], "no Jobs, pods and ConfigMaps", 60)
    operator.start()
    wait(lambda: operator.get("/metrics") and "finetune_operator_reconcile_total" in operator.text, "metrics")
    assert 'name="one"' not in operator.text


def config_maps(world: Any) -> list[str]:
    found = world.core.list_namespaced_config_map(world.namespace).items
    return [one.metadata.name for one in found if one.metadata.name != "kube-root-ca.crt"]


def test_a_namespace_ends_without_an_operator(world: Any, operator: Any, wait: Any) -> None:
    world.create()
    world.run(world.pass_preflight())
    world.wait_phase("Training")
    operator.kill()
    world.core.delete_namespace(world.namespace)

    def is_gone() -> bool:
        try:
            world.core.read_namespace(world.namespace)
        except ApiException as problem:
            return bool(problem.status == 404)
        return False

    wait(is_gone, "the namespace's end", 180)
    # The fixture deletes it once more.
    world.core.create_namespace({"metadata": {"name": world.namespace}})


def test_an_operator_of_another_version_leaves_a_running_trainer_alone_and_takes_its_result(
    world: Any, operator: Any, wait: Any
) -> None:
    """A report may lack what is new and hold what is not known here."""
    world.create()
    trainer = world.pass_preflight()
    world.run(trainer)
    world.wait_phase("Training")
    before = world.batch.read_namespaced_job("one-1", world.namespace)
    operator.kill()
    operator.env["FINETUNE_TRAINER_IMAGE"] = "registry.example/finetune-trainer:2"
    operator.start()
    wait(lambda: looks(operator) > 0, "a look at the job")
    world.end(trainer, 0, world.published(somethingOfTheOtherVersion=1))
    status = world.wait_phase("Succeeded")
    after = world.batch.read_namespaced_job("one-1", world.namespace)
    assert (after.metadata.uid, after.spec.template) == (before.metadata.uid, before.spec.template)
    assert world.jobs() == ["one-1", "one-preflight"]
    assert (status["attempts"], status["runs"], status.get("failures", 0)) == (1, 1, 0)


def test_labels_and_the_same_manifest_again_write_nothing(world: Any, operator: Any, wait: Any) -> None:
    created = world.create()
    world.cannot_schedule(world.pod_of("one-preflight"), "0/4 nodes are available: 4 Insufficient cpu.")
    world.wait_condition("Running", "Unschedulable")
    wait(lambda: world.events("Unschedulable"), "an event")
    wait(lambda: is_quiet(operator), "the look that posted it is counted, as is the request")
    seen, written = looks(operator), requests(operator, WRITES)
    where = ("finetune.dev", "v1alpha1", world.namespace, "finetunejobs", "one")
    labels = {"labels": {"team": "blue"}}
    world.custom.patch_namespaced_custom_object(*where, {"metadata": labels, "spec": created["spec"]})
    version = world.get()["metadata"]["resourceVersion"]
    wait(lambda: looks(operator) > seen, "another look")
    assert requests(operator, WRITES) == written
    assert world.get()["metadata"]["resourceVersion"] == version


def test_finished_jobs_cause_no_read_and_no_write(world: Any, operator: Any, wait: Any) -> None:
    operator.kill()
    world.create()
    operator.start()
    world.end(world.pass_preflight(), 0, world.published())
    status = world.wait_phase("Succeeded")
    operator.kill()
    where = ("finetune.dev", "v1alpha1", world.namespace, "finetunejobs")

    def finish(name: str) -> None:
        world.create(name)
        world.custom.patch_namespaced_custom_object_status(*where, name, {"status": status})

    with ThreadPoolExecutor(8) as many:
        list(many.map(finish, [f"done-{number}" for number in range(FINISHED)]))
    operator.env["FINETUNE_RESYNC_SECONDS"] = "1"
    operator.start()
    wait(lambda: operator.get("/metrics") and f'name="done-{FINISHED - 1}"' in operator.text, "all series")
    ended = ended_watches(world)
    wait(lambda: ended_watches(world) >= ended + 3, "three more lists of all jobs")
    # The Jobs and pods that are left of the first one bring it up, each at most once.
    assert looks(operator) <= 4
    assert requests(operator, ("PATCH", "PUT", "DELETE")) == 0
    assert world.jobs() == ["one-1", "one-preflight"]
