"""What a reconcile reads from memory, what it reads again, and that an old store decides nothing that stays."""

import asyncio
import gc
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from job_operator import Operator
from job_world import KEY, World
from kueue_world import QueuedWorld

from finetune_api import names
from finetune_operator.controller.intake import Intake
from finetune_operator.controller.mirror import Mirror
from finetune_operator.controller.warning_events import WarningEvents
from finetune_operator.controller.watch_cache import WatchCache
from finetune_operator.controller.workqueue import WorkQueue
from finetune_operator.kube.errors import Denied, Overloaded, RetryLater
from finetune_operator.kube.objects import Key
from finetune_operator.kube.observed import WarningEvent, Warnings
from finetune_operator.kube.pod import Pod
from finetune_operator.metrics.registry import Metrics
from finetune_operator.policy.pods.pod_diagnosis import EventQuery
from finetune_operator.settings import Settings

Operate = Callable[[World], Operator]


@pytest.fixture
def operate() -> Iterator[Operate]:
    loop = asyncio.new_event_loop()
    yield lambda world: Operator(world, loop)
    loop.close()


def start_training(world: World, operator: Operator, looks: int = 3) -> Any:
    """Bring the job to its trainer's pod, which runs."""
    for _ in range(looks):
        operator.look()
        world.control()
        for pod in world.pods_in("Pending"):
            world.start(pod)
        for pod in world.pods_in("Running"):
            if world.component(pod) == names.Component.PREFLIGHT:
                world.publish(pod)
                world.control()
    return world.pods_in("Running")[0]


def requests_of(world: World, operator: Operator, looks: int = 100) -> int:
    total = 0
    for _ in range(looks):
        operator.look()
        total += world.calls
    return total


def test_looks_at_a_job_that_does_not_change_cost_no_request(operate: Operate) -> None:
    world = World(activeDeadlineSeconds=86_400)
    operator = operate(world)
    start_training(world, operator)
    operator.look()
    assert requests_of(world, operator) == 0


def test_a_job_that_waits_for_quota_costs_no_request(operate: Operate) -> None:
    world = QueuedWorld(scheduling={"queueName": "team"})
    operator = operate(world)
    operator.look()
    world.queue(has_room=False)
    for _ in range(2):
        operator.look()
    assert requests_of(world, operator) == 0


def test_the_events_of_a_pod_that_does_not_start_are_read_ever_less_often(operate: Operate) -> None:
    world = World()
    operator = operate(world)
    operator.look()
    world.control()
    total = 0
    for _ in range(240):
        world.now += timedelta(seconds=15)
        operator.look()
        total += world.calls
    assert 5 <= total <= 25


class Events:
    """Warning events of one pod; the list of namespace `slow` never ends."""

    lists = 0

    async def list_warnings(self, namespace: str, kind: str) -> dict[str, Warnings]:
        self.lists += 1
        await (asyncio.Event().wait() if namespace == "slow" else asyncio.sleep(0.01))
        return {"pod-7": Warnings("pod-7", (WarningEvent("FailedMount", "no such volume"),))}


async def test_pods_of_a_namespace_that_do_not_start_share_one_list_of_events() -> None:
    cluster: Any = Events()
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    events = WarningEvents(cluster, lambda: now)
    queries = [EventQuery("Pod", f"pod-{number}") for number in range(1_000)]
    found = await asyncio.gather(*(events.read("team", query) for query in queries))
    explained = [one for one in found if one.items]
    assert explained == [Warnings("pod-7", (WarningEvent("FailedMount", "no such volume"),))]
    assert cluster.lists == 1
    now += timedelta(seconds=10)
    await asyncio.gather(*(events.read("team", query) for query in queries))
    assert cluster.lists == 2


async def test_a_namespace_whose_events_were_read_keeps_no_memory() -> None:
    cluster: Any = Events()
    events = WarningEvents(cluster, lambda: datetime(2026, 3, 1, 12, tzinfo=UTC))
    before = count_locks()
    for number in range(10):
        await events.read(f"team-{number}", EventQuery("Pod", f"pod-{number}"))
    assert count_locks() == before


def count_locks() -> int:
    return sum(isinstance(one, asyncio.Lock) for one in gc.get_objects())


async def test_a_namespace_whose_events_take_long_holds_up_no_other() -> None:
    cluster: Any = Events()
    events = WarningEvents(cluster, lambda: datetime(2026, 3, 1, 12, tzinfo=UTC))
    slow = asyncio.create_task(events.read("slow", EventQuery("Pod", "pod-1")))
    await asyncio.sleep(0)
    assert (await asyncio.wait_for(events.read("team", EventQuery("Pod", "pod-7")), 60)).items
    assert not slow.done()
    slow.cancel()


async def test_events_that_cannot_be_listed_hold_up_no_job_and_known_ones_are_kept() -> None:
    cluster: Any = Events()
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    events = WarningEvents(cluster, lambda: now)
    known = await events.read("team", EventQuery("Pod", "pod-7"))

    async def fail(namespace: str, kind: str) -> dict[str, Warnings]:
        cluster.lists += 1
        raise RetryLater("the store of the events is away")

    cluster.list_warnings = fail
    now += timedelta(seconds=10)
    assert await events.read("team", EventQuery("Pod", "pod-7")) == known
    assert await events.read("team", EventQuery("Pod", "pod-8")) == Warnings("pod-8", ())
    assert cluster.lists == 2


async def test_a_pause_that_the_api_server_asks_for_is_kept_for_events_too() -> None:
    cluster: Any = Events()

    async def refuse(*_: str) -> dict[str, Warnings]:
        raise Overloaded("busy", 5.0)

    cluster.list_warnings = refuse
    with pytest.raises(Overloaded):
        await WarningEvents(cluster, lambda: datetime(2026, 3, 1, 12, tzinfo=UTC)).read("team", EventQuery("Pod", "p"))


class Counted(World):
    """A world that counts the writes by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: Counter[str] = Counter()

    async def create_child(self, job: Any, child: Any) -> Any:
        self.writes["create"] += 2  # with its ConfigMap
        return await super().create_child(job, child)

    async def patch_status(self, job: Any, change: Any) -> Any:
        self.writes["patch status"] += 1
        return await super().patch_status(job, change)

    async def post_event(self, event: Any) -> None:
        self.writes[f"event {event['reason']}"] += 1


def test_creation_takes_eight_writes_and_the_whole_life_twelve(operate: Operate) -> None:
    world = Counted()
    operator = operate(world)
    start_training(world, operator, looks=2)
    assert "one-1" in world.jobs
    assert world.writes.total() <= 8, world.writes
    pod = start_training(world, operator, looks=1)
    operator.look()
    operator.pull(1, step=1)
    operator.look()
    world.publish(pod)
    operator.look()
    world.control()
    for _ in range(3):
        operator.look()
    assert world.status().phase == "Succeeded"
    assert world.writes.total() <= 12 + 1, world.writes  # and one of progress


def test_a_failure_that_the_watch_of_the_pods_has_not_delivered_counts_once(operate: Operate) -> None:
    """The Job's count comes before the pod that failed."""
    world = World()
    operator = operate(world)
    operator.look()
    world.control()
    world.start(world.pods_in("Pending")[0])
    world.publish(world.pods_in("Running")[0])
    world.control()
    operator.look()
    operator.behind = {"pods"}
    world.control()
    world.start(world.pods_in("Pending")[0])
    world.end(world.pods_in("Running")[0], 1)
    world.control()
    for _ in range(3):
        operator.look()
    operator.behind = set()
    for _ in range(3):
        operator.look()
    assert world.status().failures == 1
    assert [run.result for run in world.status().history or []] == ["Failed"]


def test_a_trainer_that_the_watches_have_not_delivered_is_not_created_again(operate: Operate) -> None:
    """Another operator has created it, and has written so."""
    world = World()
    one, other = operate(world), operate(world)
    one.behind = {"jobs", "pods"}
    start_training(world, other)
    other.look()
    for _ in range(4):
        one.look()
        world.now += timedelta(seconds=10)
    assert sorted(world.jobs) == ["one-1", "one-preflight"]
    assert not world.status().failures
    assert world.status().attempts == 1


def test_a_job_is_not_ended_by_an_old_state_of_its_status(operate: Operate) -> None:
    """The user has resumed it, and the watch of the jobs delivers nothing."""
    world = World(suspend=True)
    operator = operate(world)
    operator.look()
    operator.behind = {"finetunejobs"}
    world.edit(suspend=False)
    operator.look()
    assert world.jobs == {}
    world.edit(backoffLimit=1)
    operator.behind = set()
    operator.look()
    assert list(world.jobs) == ["one-preflight"]


@pytest.mark.parametrize(("is_finished", "most_bytes"), [(True, 6_000), (False, 10_000)], ids=["finished", "open"])
def test_a_job_is_kept_as_text_and_a_finished_one_as_numbers(
    scene: Callable[..., Any], settings: Settings, is_finished: bool, most_bytes: int
) -> None:
    one = scene().to_training()
    if is_finished:
        one.end(one.pod("one-1"), 0, one.published())
        one.complete("one-1")
        one.settle()
    body = orjson.dumps(one.object)
    intake = Intake(WatchCache(), WorkQueue(1), Metrics(), settings)

    def put(numbers: range) -> None:
        for number in numbers:
            other = orjson.loads(body)
            other["metadata"] |= {"name": f"job-{number}", "uid": f"uid-{number}", "resourceVersion": str(number)}
            intake.put("finetunejobs", other)

    tracemalloc.start()
    put(range(1, 200))  # more than are kept as objects, too
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    put(range(200, 300))
    gc.collect()
    size = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(intake.cache.store.jobs) == 299
    assert size / 100 <= most_bytes, f"{size / 100:.0f} bytes for each"


def test_what_cannot_be_listed_in_one_namespace_stops_no_job_of_another(operate: Operate) -> None:
    world = World()
    operator = operate(world)
    operator.intake.report_problem("pods", Denied("list", "pods", "other"), "other")
    operator.look()
    assert world.status().condition("Accepted").status == "True"
    operator.intake.report_problem("pods", Denied("list", "pods", "team"), "team")
    operator.look()
    assert world.status().condition("Accepted").reason == "APIDenied"
    operator.intake.end_listing("pods", operator.intake.begin_listing("pods", "team"), is_complete=True)
    operator.look()
    assert world.status().condition("Accepted").status == "True"


@pytest.fixture
def pods(scene: Callable[..., Any]) -> Iterator[Callable[..., Pod]]:
    one = scene().to_training()

    def build(uid: str, version: int, ip: str = "10.0.0.1") -> Pod:
        pod = one.pod("one-1", uid)
        pod["metadata"] |= {"uid": uid, "resourceVersion": str(version)}
        pod["status"]["podIP"] = ip
        return Pod.from_object(pod)

    return build  # type: ignore[return-value]


def test_an_older_state_does_not_replace_a_newer_one_and_the_same_state_changes_nothing(pods: Any) -> None:
    mirror: Mirror[Pod] = Mirror()
    assert mirror.put(KEY, pods("a", 5, "10.0.0.5"))
    assert not mirror.put(KEY, pods("a", 4, "10.0.0.4"))
    assert [pod.ip for pod in mirror.of(KEY)] == ["10.0.0.5"]
    assert mirror.has("a", 5)
    assert not mirror.has("a", 6)


def test_a_list_removes_what_it_does_not_contain_except_what_came_after_its_begin(pods: Any) -> None:
    mirror: Mirror[Pod] = Mirror()
    other = Key("another", "one")
    for key, uid in ((KEY, "kept"), (KEY, "gone"), (other, "elsewhere")):
        mirror.put(key, pods(uid, 1))
    listing = mirror.begin_listing(KEY.namespace)
    mirror.put(KEY, pods("kept", 1))
    mirror.put(KEY, pods("new", 9))
    assert mirror.end_listing(listing) == {KEY}
    assert [pod.uid for pod in mirror.of(KEY)] == ["kept", "new"]
    assert [pod.uid for pod in mirror.of(other)] == ["elsewhere"]


def test_a_list_that_was_interrupted_removes_nothing(pods: Any) -> None:
    mirror: Mirror[Pod] = Mirror()
    mirror.put(KEY, pods("a", 1))
    assert mirror.end_listing(mirror.begin_listing(None), is_complete=False) == set()
    assert len(mirror) == 1


def test_a_late_event_of_a_deleted_object_does_not_bring_it_back(pods: Any) -> None:
    mirror: Mirror[Pod] = Mirror()
    mirror.put(KEY, pods("a", 1))
    assert mirror.remove("a")
    assert not mirror.put(KEY, pods("a", 2))
    assert mirror.of(KEY) == ()


def test_an_object_that_only_the_labels_hid_is_back_in_its_next_state(pods: Any) -> None:
    mirror: Mirror[Pod] = Mirror()
    mirror.put(KEY, pods("a", 1))
    assert mirror.remove("a", 5)
    assert not mirror.put(KEY, pods("a", 4))
    assert mirror.put(KEY, pods("a", 6))
    assert [pod.version for pod in mirror.of(KEY)] == [6]


def test_what_a_live_read_does_not_show_is_gone_unless_it_came_during_the_read(pods: Any) -> None:
    mirror: Mirror[Pod] = Mirror()
    mirror.put(KEY, pods("gone", 1))
    known = mirror.of(KEY)
    mirror.put(KEY, pods("came", 7))
    mirror.replace(KEY, known, [pods("listed", 3)])
    assert [pod.uid for pod in mirror.of(KEY)] == ["came", "listed"]
