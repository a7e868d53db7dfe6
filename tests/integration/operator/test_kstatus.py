"""What kstatus, with which Helm and Flux wait, says of every state of a job; and Flux by its own expressions."""

import copy
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import job_statuses
import yaml
from other_tests import load_tests

from finetune_api import names
from finetune_operator.controller.store import KINDS

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "gitops.md").read_text(encoding="utf-8")
Object = dict[str, Any]
Judge = Callable[..., list[str]]


def explored() -> list[Object]:
    """One job for each combination of phase and conditions that is met on many walks through the simulator."""
    found: dict[str, Object] = {}
    draw = random.Random(7)
    machine = load_tests("unit/operator/test_simulator.py").Simulator  # any sequence of events around one job
    for number in range(70):
        one = machine()
        one.create(
            draw.randint(0, 2), draw.choice([0, 1, 20]), draw.random() < 0.2, draw.choice([None, 500]),
            draw.choice([None, 900]), draw.randint(0, 8), draw.random() < 0.4, draw.random() < 0.3,
            number % 3 == 0,
        )  # fmt: skip
        for _ in range(40):
            step(one, draw)
            one.one.look()
            job = {"apiVersion": names.API_VERSION, "kind": names.KIND, **one.world.job}
            status = job["status"]
            conditions = [(each["type"], each["status"], each["reason"]) for each in status.get("conditions", [])]
            is_seen = status["observedGeneration"] == job["metadata"]["generation"]
            signature = str((status.get("phase"), is_seen, conditions))
            if signature not in found:
                found[signature] = copy.deepcopy(job)
        one.loop.close()
    return list(found.values())


def step(one: Any, draw: random.Random) -> None:
    """One event that can happen now; half of the time things just go on."""
    which = draw.randint(0, 1)
    has_pods = bool(one.world.pods_in("Running") or one.world.pods_in("Pending"))
    events: list[Callable[[], Any]] = [
        *[one.things_go_on] * 6,
        one.a_deleted_pod_ends,
        one.the_operator_restarts,
        one.the_job_controller_works,
        lambda: one.the_trainer_answers(which),
        lambda: one.kueue_works(bool(which)),
        lambda: one.time_passes(draw.choice([1, 7, 61, 200])),
        lambda: one.the_user_suspends_or_resumes(bool(which)),
        lambda: one.the_user_changes_the_limit(draw.randint(0, 3)),
        lambda: one.the_operator_looks(
            draw.randint(1, 12),
            draw.choice(["crash", "lost answer", "suspend", "clock"]),
            set(draw.sample(KINDS, draw.randint(0, 2))),
        ),
    ]
    if one.world.pods_in("Pending"):
        events.append(lambda: one.a_pod_starts(which))
    if one.world.pods_in("Running"):
        events.append(lambda: one.a_pod_does_its_work(which))
        events.append(lambda: one.a_pod_ends(which, draw.choice([0, 1, 65, 75, 76, 137, 143]), bool(which)))
    if has_pods:
        events.append(lambda: one.a_pod_is_evicted(which))
    if one.queued and one.queued.admitted():
        events.append(lambda: one.kueue_takes_the_quota_back("Preempted"))
    if one.world.jobs and not one.queued:
        name = draw.choice(sorted(one.world.jobs))
        if names.ANNOTATION_SUSPENDED_BY not in one.world.jobs[name]["metadata"]["annotations"]:
            events.append(lambda: one.world.suspend_job(name, {}, is_suspended=bool(which)))
    draw.choice(events)()


def designed(job: Object) -> str:
    """An end is an end, a job at rest because its user wants it to rest is as it should be, all else is on its way."""
    status = job["status"]
    if status["observedGeneration"] != job["metadata"]["generation"]:
        return job_statuses.IN_PROGRESS
    if status["phase"] in {"Succeeded", "Failed"}:
        return job_statuses.CURRENT if status["phase"] == "Succeeded" else job_statuses.FAILED
    running = next(one for one in status["conditions"] if one["type"] == "Running")
    is_at_rest = running["status"] == "False" and running["reason"] != "Stopping"
    is_asked = (status["phase"], status["reason"]) == ("Suspended", "UserRequested")
    return job_statuses.CURRENT if is_asked and is_at_rest else job_statuses.IN_PROGRESS


def expressions() -> dict[str, str]:
    """Those of the Kustomization in the guide."""
    blocks = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    documents = [one for block in blocks for one in yaml.safe_load_all(block) if one]
    (kustomization,) = [one for one in documents if one.get("spec", {}).get("healthCheckExprs")]
    (entry,) = kustomization["spec"]["healthCheckExprs"]
    assert (entry["apiVersion"], entry["kind"]) == (names.API_VERSION, names.KIND)
    return {name: entry[name] for name in ("inProgress", "failed", "current")}


def test_kstatus_agrees_with_the_table_for_each_state(health: Judge) -> None:
    said = health([story() for story in job_statuses.STORIES])
    assert dict(zip([one.__name__ for one in job_statuses.STORIES], said, strict=True)) == {
        story.__name__: expected for story, expected in job_statuses.STORIES.items()
    }


def test_fluxs_expressions_agree(health: Judge) -> None:
    said = health([story() for story in job_statuses.STORIES], expressions())
    assert dict(zip([one.__name__ for one in job_statuses.STORIES], said, strict=True)) == {
        story.__name__: expected.replace("Terminating", job_statuses.IN_PROGRESS)
        for story, expected in job_statuses.STORIES.items()
    }


def test_whatever_happens_to_a_job_kstatus_and_flux_agree_with_the_design(health: Judge) -> None:
    jobs = [*explored(), *(story() for story in job_statuses.STORIES if story is not job_statuses.deleted)]
    phases = {job["status"].get("phase") for job in jobs}
    assert phases >= {"Preflight", "Queued", "Starting", "Training", "Merging", "Suspended", "Succeeded", "Failed"}
    assert len(jobs) > 60
    expected = [designed(job) for job in jobs]
    for said in (health(jobs), health(jobs, expressions())):
        wrong = [(job["status"], was) for job, was, wanted in zip(jobs, said, expected, strict=True) if was != wanted]
        assert wrong == []


def test_the_answer_follows_a_real_job_through_its_life(world: Any, operator: Any, health: Judge, wait: Any) -> None:
    created = world.create()
    assert health([created]) == ["InProgress"]
    trainer = world.pass_preflight()
    world.bind(trainer)  # so that it takes until it is said to have ended
    world.run(trainer)
    world.wait_phase("Training")
    assert health([world.get()]) == ["InProgress"]
    world.patch_spec("one", {"suspend": True})
    world.wait_condition("Running", "Stopping")
    assert health([world.get()]) == ["InProgress"]
    wait(lambda: world.is_told_to_end(trainer), "a pod that is told to end")
    world.terminate(trainer, 75, world.report("Preempted"))
    world.wait_condition("Running", "NotStarted")
    assert health([world.get()]) == ["Current"]
    world.patch_spec("one", {"suspend": False})
    trainer = world.pod_of("one-1")
    assert health([world.get()]) == ["InProgress"]
    world.run(trainer)
    world.wait_phase("Training")
    world.end(trainer, 76, world.report("Failed", message="the loss is not finite"))
    world.wait_phase("Failed")
    assert health([world.get()]) == ["Failed"]
