"""The work queue."""

import asyncio

from finetune_operator.controller.workqueue import MAX_DELAY, WorkQueue, work


async def test_repeated_adds_are_one_get() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for _ in range(5):
        queue.add("a")
    assert await queue.get() == "a"
    queue.done("a")
    assert len(queue) == 0


async def test_a_key_has_one_worker_and_an_add_in_the_meantime_is_kept() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    await queue.get()
    queue.add("a")
    second = asyncio.create_task(queue.get())
    await asyncio.sleep(0.02)
    assert not second.done()
    queue.done("a")
    assert await asyncio.wait_for(second, 1) == "a"


async def test_the_earliest_due_time_wins() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 60)
    queue.add_after("a", 0.01)
    queue.add_after("a", 60)
    assert await asyncio.wait_for(queue.get(), 1) == "a"
    queue.done("a")
    assert len(queue) == 0


async def test_keys_come_in_the_order_of_their_time() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("later", 0.05)
    queue.add("now")
    assert [await queue.get(), await queue.get()] == ["now", "later"]


def test_delays_grow_to_a_cap_and_are_reset() -> None:
    queue: WorkQueue[str] = WorkQueue()
    delays = [queue.add_rate_limited("a") for _ in range(12)]
    assert delays[0] <= 0.5
    assert MAX_DELAY / 2 <= delays[-1] <= MAX_DELAY
    queue.forget("a")
    assert queue.add_rate_limited("a") <= 0.5
    assert queue.add_rate_limited("b", at_least=90) == 90


async def test_a_failed_key_is_returned_again_after_its_delay() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert queue.add_rate_limited(await queue.get()) <= 0.5
    queue.done("a")
    assert await asyncio.wait_for(queue.get(), 1) == "a"


async def test_a_due_key_that_no_worker_takes_is_a_stall() -> None:
    now = 0.0
    queue: WorkQueue[str] = WorkQueue(lambda: now)
    queue.add_after("a", 5)
    assert queue.stalled_for() == 0
    now = 65.0
    assert queue.stalled_for() == 60


async def test_a_long_queue_with_progress_is_not_stalled_and_one_without_is() -> None:
    now = 0.0
    queue: WorkQueue[int] = WorkQueue(lambda: now)
    for key in range(100):
        queue.add(key)
    for _ in range(90):
        now += 2
        queue.done(await queue.get())
    assert queue.stalled_for() == 0
    now += 121
    assert queue.stalled_for() == 121


async def test_after_an_idle_hour_a_new_key_is_not_overdue() -> None:
    now = 0.0
    queue: WorkQueue[str] = WorkQueue(lambda: now)
    now = 3600.0
    queue.add("a")
    assert queue.stalled_for() == 0


async def test_many_workers_handle_every_key_and_never_one_key_twice_at_once() -> None:
    queue: WorkQueue[int] = WorkQueue()
    active: set[int] = set()
    seen: set[int] = set()
    all_seen = asyncio.Event()

    async def handle(key: int) -> None:
        assert key not in active
        active.add(key)
        await asyncio.sleep(0.001)
        active.discard(key)
        seen.add(key)
        if seen == set(range(17)):
            all_seen.set()

    workers = [asyncio.create_task(work(queue, handle)) for _ in range(4)]
    for turn in range(200):
        queue.add(turn % 17)
        await asyncio.sleep(0)
    await asyncio.wait_for(all_seen.wait(), 10)
    for worker in workers:
        assert not worker.done()
        worker.cancel()
