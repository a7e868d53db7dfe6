"""Requests that the API server does not complete while it serves others: a failing webhook, Workloads not listed."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from job_operator import Operator
from job_world import KEY, WEBHOOK, World
from kueue_world import QueuedWorld

from finetune_api.names import ConditionType
from finetune_operator.kube.errors import ClusterError, Denied, Refused, RetryLater
from finetune_operator.kube.objects import FineTuneJob

MakeOperator = Callable[[World], Operator]


@pytest.fixture
def operate() -> Iterator[MakeOperator]:
    loop = asyncio.new_event_loop()
    yield lambda world: Operator(world, loop)
    loop.close()


def reason(world: World, kind: str) -> tuple[str, str, str]:
    found: Any = world.status().condition(ConditionType(kind))
    return found.status, found.reason, found.message


def test_a_failing_webhook_is_shown_from_the_second_failure_on(operate: MakeOperator) -> None:
    world = World()
    world.is_webhook_down = True
    operator = operate(world)
    operator.look()
    assert world.status().conditions is None
    operator.look()
    truth, why, message = reason(world, "Accepted")
    assert (truth, why) == ("Unknown", "APIUnavailable")
    assert WEBHOOK in message
    assert world.status().message == message
    world.is_webhook_down = False
    operator.look()
    assert reason(world, "Accepted")[:2] == ("True", "Accepted")
    assert list(world.jobs) == ["one-preflight"]


def test_the_backoff_stays_while_a_webhook_fails_and_nothing_is_written_again(operate: MakeOperator) -> None:
    world = World()
    world.is_webhook_down = True
    operator = operate(world)
    for _ in range(2):
        operator.look()
    written = world.version
    for _ in range(8):
        world.now += timedelta(seconds=60)
        operator.look()
    assert world.version == written
    assert operator.queue.add_rate_limited(KEY) >= 30.0


class ChangingWords(World):
    """Every creation of a Job fails, each time with other words."""

    creates = 0

    def __init__(self, kind: type[Exception]) -> None:
        super().__init__()
        self.kind = kind

    async def create_child(self, job: Any, child: Any) -> Any:
        await self._called()
        self.creates += 1
        raise self.kind(f"{WEBHOOK} (request {self.creates})")


@pytest.mark.parametrize("kind", [RetryLater, Refused])
def test_the_backoff_stays_if_each_failure_has_other_words(operate: MakeOperator, kind: type[Exception]) -> None:
    world = ChangingWords(kind)
    operator = operate(world)
    begin = world.now

    async def work() -> None:
        while (world.now - begin).total_seconds() < 60 and world.creates < 100:
            if operator.queue.is_idle():
                world.pass_time(0.1)
                continue
            key = await operator.queue.get()
            await operator.reconciler.handle(key)
            operator.queue.done(key)

    operator.loop.run_until_complete(work())
    assert 2 <= world.creates <= 10
    assert f"(request {world.creates})" in world.status().message


class Guarded(World):
    """A world in which a job's status cannot be written."""

    refusal: ClusterError | None = None

    def __init__(self) -> None:
        super().__init__()
        self.posted: list[Any] = []
        self.counts: list[int] = []

    async def patch_status(self, job: FineTuneJob, change: dict[str, Any]) -> FineTuneJob:
        if self.refusal:
            raise self.refusal
        return await super().patch_status(job, change)

    async def post_event(self, event: dict[str, Any]) -> None:
        self.posted.append(event)

    async def count_event(self, namespace: str, name: str, series: dict[str, Any]) -> None:
        self.counts.append(series["count"])


@pytest.mark.parametrize(
    "refusal", [Denied("patch", "finetunejobs/status", "team"), Refused("denied by policy status-guard.")]
)
def test_a_status_that_cannot_be_written_is_one_event_which_is_counted(
    operate: MakeOperator, refusal: ClusterError
) -> None:
    world = Guarded()
    world.refusal = refusal
    operator = operate(world)
    for _ in range(4):
        operator.look()
        world.now += timedelta(seconds=60)
    (event,) = world.posted
    assert (event["type"], event["reason"], world.counts) == ("Warning", "StatusRefused", [2, 3, 4])
    assert str(refusal).rstrip(".") in event["note"]
    assert world.status().conditions is None
    world.refusal = None
    operator.look()
    assert reason(world, "Accepted")[:2] == ("True", "Accepted")


def test_a_job_that_cannot_be_created_ends_at_its_start_deadline(operate: MakeOperator) -> None:
    world = World(startDeadlineSeconds=300)
    world.is_webhook_down = True
    operator = operate(world)
    for _ in range(12):
        operator.look()
        world.now += timedelta(seconds=30)
    status, why, message = reason(world, "Failed")
    assert (status, why) == ("True", "StartDeadlineExceeded")
    assert WEBHOOK in message


def test_a_trainer_that_cannot_be_created_ends_the_job_at_its_start_deadline(operate: MakeOperator) -> None:
    world = World(startDeadlineSeconds=300)
    operator = operate(world)
    operator.look()
    world.control()
    world.start(world.pods_in("Pending")[0])
    world.is_webhook_down = True
    world.publish(world.pods_in("Running")[0])
    world.control()
    for _ in range(3):
        operator.look()
    assert reason(world, "Accepted")[1] == "APIUnavailable"
    assert reason(world, "Validated")[1] == "DatasetValid"
    for _ in range(12):
        operator.look()
        world.now += timedelta(seconds=30)
    assert reason(world, "Failed")[:2] == ("True", "StartDeadlineExceeded")


def test_workloads_that_cannot_be_listed_do_not_stop_the_status(operate: MakeOperator) -> None:
    world = QueuedWorld(scheduling={"queueName": "team"})
    operator = operate(world)
    operator.look()
    world.queue(has_room=True)
    world.are_workloads_unreadable = True
    for _ in range(3):
        operator.look()
    truth, why, message = reason(world, "QuotaReserved")
    assert (truth, why) == ("Unknown", "APIUnavailable")
    assert WEBHOOK in message
    world.control()
    world.start(world.pods_in("Pending")[0])
    world.publish(world.pods_in("Running")[0])
    world.control()
    for _ in range(2):
        operator.look()
    assert reason(world, "Validated")[1] == "DatasetValid"
    assert "one-1" in world.jobs


def test_deadlines_run_while_workloads_cannot_be_listed(operate: MakeOperator) -> None:
    world = QueuedWorld(scheduling={"queueName": "team"}, startDeadlineSeconds=300)
    operator = operate(world)
    operator.look()
    world.are_workloads_unreadable = True
    for _ in range(12):
        operator.look()
        world.now += timedelta(seconds=30)
    assert reason(world, "Failed")[:2] == ("True", "StartDeadlineExceeded")
    assert world.jobs == {}


def test_a_suspension_is_written_while_workloads_cannot_be_listed_and_done_afterwards(operate: MakeOperator) -> None:
    world = QueuedWorld(scheduling={"queueName": "team"})
    operator = operate(world)
    operator.look()
    world.queue(has_room=True)
    world.are_workloads_unreadable = True
    world.edit(suspend=True)
    for _ in range(3):
        operator.look()
    assert reason(world, "Suspended")[:2] == ("True", "UserRequested")
    world.are_workloads_unreadable = False
    operator.look()
    operator.look()
    assert [one["spec"]["active"] for one in world.workloads.values()] == [False]


def test_a_run_that_ends_while_workloads_cannot_be_listed_is_judged_afterwards(operate: MakeOperator) -> None:
    world = QueuedWorld(scheduling={"queueName": "team"})
    operator = operate(world)
    for _ in range(6):
        operator.look()
        world.queue(has_room=True)
        world.control()
        for pod in world.pods_in("Pending"):
            world.start(pod)
        for pod in world.pods_in("Running"):
            if world.component(pod) == "preflight":
                world.publish(pod)
    (trainer,) = world.pods_in("Running")
    for suspend in (True, False):
        world.edit(suspend=suspend)
        operator.look()
        operator.look()
        world.queue(has_room=True)
        world.control()
        world.are_workloads_unreadable = True
    operator.look()
    operator.look()
    world.end(trainer, 75, world.report("Preempted"))
    for _ in range(2):
        operator.deliver_events()
        operator.look()
    assert world.status().history is None
    world.are_workloads_unreadable = False
    operator.look()
    assert [run.result for run in world.status().history or []] == ["Suspended"]
