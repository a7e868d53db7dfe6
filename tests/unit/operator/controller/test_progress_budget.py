"""What the progress of running jobs costs: no read, and a write only when it matters."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from job_operator import Operator
from job_world import KEY, World
from scraped import read_scrape

from finetune_api import names
from finetune_operator.controller.progress_budget import ProgressBudget
from finetune_operator.kube.objects import Key


class Training:
    """A job whose trainer runs and reports."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.world = World(stallTimeoutSeconds=120)
        self.operator = Operator(self.world, loop)
        for _ in range(3):
            self.operator.look()
            self.world.control()
            for pod in self.world.pods_in("Pending"):
                self.world.start(pod)
            for pod in self.world.pods_in("Running"):
                if self.world.component(pod) == names.Component.PREFLIGHT:
                    self.world.publish(pod)
                    self.world.control()
        for _ in range(2):
            self.operator.look()
        self.requests = 0
        self.written = self.world.version

    def report(self, heartbeat: int, seconds: float = 10, **progress: Any) -> None:
        """Let some seconds pass, poll the trainer, and reconcile."""
        self.world.now += timedelta(seconds=seconds)
        self.operator.pull(heartbeat, **progress)
        self.operator.look()
        self.requests += self.world.calls

    @property
    def writes(self) -> int:
        return self.world.version - self.written


@pytest.fixture
def training() -> Iterator[Training]:
    loop = asyncio.new_event_loop()
    yield Training(loop)
    loop.close()


def test_an_hour_of_small_steps_is_written_twice_a_minute_and_costs_no_other_request(training: Training) -> None:
    for number in range(360):
        training.report(number, step=number, total_steps=100_000, stage="Training")
    assert training.writes <= 121
    assert training.requests == 2 * training.writes  # the world counts a write before and after it


def test_a_percent_of_the_steps_another_stage_and_a_checkpoint_are_written_at_once(training: Training) -> None:
    training.report(1, step=10, total_steps=1000, stage="Training")
    before = training.writes
    training.report(2, step=19, total_steps=1000, stage="Training", seconds=2)
    assert training.writes == before
    training.report(3, step=20, total_steps=1000, stage="Training", seconds=2)
    assert training.writes == before + 1
    training.report(4, step=20, total_steps=1000, stage="Evaluating", seconds=2)
    assert training.writes == before + 2


def test_what_was_held_back_is_written_within_half_a_minute(training: Training) -> None:
    training.report(1, step=10, total_steps=1000, stage="Training")
    training.report(2, step=11, total_steps=1000, stage="Training", seconds=2)
    assert training.world.status().progress.step == 10
    training.world.now += timedelta(seconds=29)
    training.operator.look()
    assert training.world.status().progress.step == 11


def test_metrics_have_the_last_report_although_it_is_not_written(training: Training) -> None:
    training.report(1, step=10, total_steps=1000, stage="Training")
    training.report(2, step=11, total_steps=1000, stage="Training", seconds=2)
    steps = next(one for one in read_scrape(training.operator.metrics) if one.name == "finetune_job_step")
    assert [sample.value for sample in steps.samples] == [11]
    assert training.world.status().progress.step == 10


def test_a_trainer_whose_heartbeat_is_not_written_is_restarted_in_time_all_the_same(training: Training) -> None:
    training.report(1, step=10, total_steps=1000, stage="Training")
    training.report(2, step=11, total_steps=1000, stage="Training", seconds=2)
    for _ in range(11):
        training.report(2, step=11, total_steps=1000, stage="Training")
    assert "one-1" in training.world.jobs
    for _ in range(2):
        training.report(2, step=11, total_steps=1000, stage="Training")
    assert "one-1" not in training.world.jobs


def test_all_jobs_together_write_once_a_second_and_each_gets_its_turn() -> None:
    now = 100.0
    budget = ProgressBudget(lambda: now)
    keys = [Key("team", f"job-{number}") for number in range(300)]
    written: dict[Key, int] = dict.fromkeys(keys, 0)
    for _ in range(600):
        for key in keys:
            written[key] += budget.wait(key) == 0
        now += 1
    assert sum(written.values()) <= 601
    assert min(written.values()) >= 1


def test_the_progress_of_a_namespace_does_not_wait_for_that_of_hundreds_of_jobs_in_another_one() -> None:
    now = 100.0
    budget = ProgressBudget(lambda: now)
    crowd = [Key("crowd", f"job-{number}") for number in range(300)]
    others = [Key("team-a", "one"), Key("team-b", "one"), Key("team-b", "two")]
    written: dict[Key, list[float]] = {key: [] for key in [*crowd, *others]}
    for _ in range(600):
        for key in [*crowd, *others]:
            if budget.wait(key) == 0:
                written[key].append(now)
        now += 1
    for key in others:
        gaps = [later - sooner for sooner, later in pairwise([100.0, *written[key]])]
        assert max(gaps) <= 8
        assert len(gaps) > 60
    assert min(len(written[key]) for key in crowd) >= 1
    assert sum(map(len, written.values())) <= 2 * 600


@pytest.mark.parametrize("stays", [False, True], ids=["deleted", "kept by a finalizer"])
def test_a_job_that_is_deleted_gives_its_turn_back(training: Training, stays: bool) -> None:
    operator, world = training.operator, training.world
    budget = operator.cache.budget
    first, last = Key("team", "first"), Key("team", "last")
    assert [budget.wait(first), budget.wait(KEY)] == [0, 1]
    if stays:
        world.job["metadata"] |= {"deletionTimestamp": world.stamp(), "finalizers": ["example.com/backup"]}
        world.version += 1
        operator.look()
    else:
        operator.intake.forget_job(KEY, world.job["metadata"]["uid"])
    assert budget.wait(last) == 1


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_job_that_is_deleted_while_it_is_read_leaves_no_series(training: Training, call: int) -> None:
    training.report(1, step=10, total_steps=1000, stage="Training")
    operator, world = training.operator, training.world
    operator.pull(2, step=11, total_steps=1000, stage="Training")
    operator.cache.doubted.add(KEY)

    async def delete() -> None:
        operator.intake.remove("finetunejobs", world.job)

    operator.look(at=call, interruption=delete)
    assert operator.surprises() == 0
    assert len(operator.metrics.jobs) == 0


def test_namespaces_with_one_job_each_write_once_a_second_together() -> None:
    now = 100.0
    budget = ProgressBudget(lambda: now)
    written = 0
    for _ in range(300):
        written += sum(budget.wait(Key(f"team-{number}", "one")) == 0 for number in range(100))
        now += 1
    assert 290 <= written <= 310


@pytest.mark.parametrize("total_steps", [1000, 100_000], ids=["large", "small"])
def test_progress_is_written_after_the_clock_was_set_back(training: Training, total_steps: int) -> None:
    for number in range(1, 40):
        training.report(number, step=10 * number, total_steps=total_steps, stage="Training", seconds=2)
    training.world.now -= timedelta(hours=1)
    for number in range(40, 80):
        training.report(number, step=10 * number, total_steps=total_steps, stage="Training", seconds=2)
    assert training.world.status().progress.step > 600
