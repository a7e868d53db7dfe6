"""The work queue."""

import asyncio

import pytest

from finetune_operator.controller.workqueue import MAX_DELAY, MAX_STALE, WorkQueue, work
from finetune_operator.kube.objects import Key

A, B = Key("team", "a"), Key("team", "b")


async def test_repeated_adds_are_one_get() -> None:
    queue = WorkQueue(8)
    for _ in range(5):
        queue.add(A)
    assert await queue.get() == A
    queue.done(A)
    assert len(queue) == 0


async def test_a_key_has_one_worker_and_an_add_in_the_meantime_is_kept() -> None:
    queue = WorkQueue(8)
    queue.add(A)
    await queue.get()
    queue.add(A)
    second = asyncio.create_task(queue.get())
    await asyncio.sleep(0.02)
    assert not second.done()
    queue.done(A)
    assert await asyncio.wait_for(second, 1) == A


async def test_a_queue_is_idle_while_no_key_is_due_or_held() -> None:
    queue = WorkQueue(8)
    queue.add_after(A, 60)
    assert queue.is_idle()
    queue.add(B)
    assert not queue.is_idle()
    await queue.get()
    assert not queue.is_idle()
    queue.done(B)
    assert queue.is_idle()


async def test_the_earliest_due_time_wins() -> None:
    queue = WorkQueue(8)
    queue.add_after(A, 60)
    queue.add_after(A, 0.01)
    queue.add_after(A, 60)
    assert await asyncio.wait_for(queue.get(), 1) == A
    queue.done(A)
    assert len(queue) == 0


async def test_keys_come_in_the_order_of_their_time() -> None:
    queue = WorkQueue(8)
    queue.add_after(A, 0.05)
    queue.add(B)
    assert [await queue.get(), await queue.get()] == [B, A]


async def test_what_comes_first_is_returned_before_what_was_due_earlier_in_its_namespace() -> None:
    queue = WorkQueue(8)
    others = [Key("team", f"job-{number}") for number in range(100)]
    for key in others:
        queue.add(key)
    assert await queue.get() == others[0]
    queue.add(A, is_first=True)
    queue.add(others[50], is_first=True)
    assert {await queue.get(), await queue.get()} == {A, others[50]}
    assert await queue.get() == others[1]


def test_delays_grow_to_a_cap_and_are_reset() -> None:
    queue = WorkQueue(8)
    delays = [queue.add_rate_limited(A) for _ in range(12)]
    assert delays[0] <= 0.5
    assert MAX_DELAY / 2 <= delays[-1] <= MAX_DELAY
    queue.forget(A)
    assert queue.add_rate_limited(A) <= 0.5
    assert queue.add_rate_limited(B, at_least=90) == 90


async def test_a_failed_key_is_returned_again_after_its_delay() -> None:
    queue = WorkQueue(8)
    queue.add(A)
    assert queue.add_rate_limited(await queue.get()) <= 0.5
    queue.done(A)
    assert await asyncio.wait_for(queue.get(), 1) == A


async def test_a_due_key_that_no_worker_takes_is_a_stall() -> None:
    now = 0.0
    queue = WorkQueue(8, lambda: now)
    queue.add_after(A, 5)
    assert queue.stalled_for() == 0
    now = 65.0
    assert queue.stalled_for() == 60


async def test_a_long_queue_with_progress_is_not_stalled_and_one_without_is() -> None:
    now = 0.0
    queue = WorkQueue(8, lambda: now)
    for number in range(100):
        queue.add(Key("team", str(number)))
    for _ in range(90):
        now += 2
        queue.done(await queue.get())
    assert queue.stalled_for() == 0
    now += 121
    assert queue.stalled_for() == 121


async def test_after_an_idle_hour_a_new_key_is_not_overdue() -> None:
    now = 0.0
    queue = WorkQueue(8, lambda: now)
    now = 3600.0
    queue.add(A)
    assert queue.stalled_for() == 0


async def test_many_workers_handle_every_key_and_never_one_key_twice_at_once() -> None:
    queue = WorkQueue(8)
    active: set[Key] = set()
    seen: set[Key] = set()
    all_seen = asyncio.Event()

    async def handle(key: Key) -> None:
        assert key not in active
        active.add(key)
        await asyncio.sleep(0.001)
        active.discard(key)
        seen.add(key)
        if len(seen) == 51:
            all_seen.set()

    workers = [asyncio.create_task(work(queue, handle)) for _ in range(4)]
    for turn in range(200):
        queue.add(Key(f"team-{turn % 3}", str(turn % 17)))
        await asyncio.sleep(0)
    await asyncio.wait_for(all_seen.wait(), 10)
    for worker in workers:
        assert not worker.done()
        worker.cancel()


async def test_one_job_of_another_namespace_waits_for_one_reconcile_and_not_for_thousands() -> None:
    queue = WorkQueue(1)
    for number in range(5000):
        queue.add(Key("busy", str(number)))
    for _ in range(100):
        key = await queue.get()
        queue.add(key)  # its status changes all the time
        queue.done(key)
    queue.add(Key("quiet", "one"))
    waited = 0
    while (key := await queue.get()).namespace == "busy":
        queue.add(key)
        queue.done(key)
        waited += 1
    assert waited <= 1


async def test_each_namespace_gets_one_reconcile_in_turn_however_many_jobs_it_has() -> None:
    queue = WorkQueue(1)
    for namespace, count in (("a", 1000), ("b", 10), ("c", 3)):
        for number in range(count):
            queue.add(Key(namespace, str(number)))
    order = []
    for _ in range(20):
        key = await queue.get()
        order.append(key.namespace)
        queue.done(key)
    assert "".join(order) == "abcabcabcabababababa"


async def test_the_jobs_of_one_namespace_keep_the_order_of_their_time() -> None:
    queue = WorkQueue(1)
    keys = [Key("a", str(number)) for number in range(50)]
    for key in keys:
        queue.add(key)
    taken = []
    for _ in keys:
        taken.append(await queue.get())
        queue.done(taken[-1])
    assert taken == keys


@pytest.mark.parametrize(("workers", "most"), [(1, 1), (2, 1), (8, 4), (16, 8)])
async def test_a_namespace_whose_reconciles_never_end_leaves_workers_to_the_others(workers: int, most: int) -> None:
    queue = WorkQueue(workers)
    held: list[Key] = []
    may_end = asyncio.Event()

    async def handle(key: Key) -> None:
        held.append(key)
        await may_end.wait()

    running = [asyncio.create_task(work(queue, handle)) for _ in range(workers)]
    for number in range(100):
        queue.add(Key("slow", str(number)))
    await _let_run()
    assert len(held) == most
    if workers > 1:
        queue.add(Key("other", "one"))
        await _let_run()
        assert held[-1] == Key("other", "one")
    may_end.set()
    await _let_run()
    assert len(set(held)) == len(held) == 100 + (workers > 1)
    for worker in running:
        worker.cancel()


async def test_a_job_that_is_scheduled_far_ahead_and_changes_all_the_time_takes_no_memory_for_each_change() -> None:
    queue = WorkQueue(1)
    for _ in range(20 * MAX_STALE):
        queue.add(A)
        assert await queue.get() == A
        queue.add_after(A, 86_400)  # its deadline
        queue.done(A)
    assert len(queue) == 1
    assert len(queue._later) <= 2 * MAX_STALE


async def _let_run() -> None:
    """Let every task run until it waits."""
    for _ in range(1000):
        await asyncio.sleep(0)
