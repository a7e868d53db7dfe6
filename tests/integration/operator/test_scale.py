"""Thousands of objects: how many requests the operator needs for them, and how much memory.

The API server is one in memory, because a real one takes minutes to get so many objects; it counts every request.
"""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from counting_api import CountingApi
from many_jobs import SPEC, finished, hold, job
from thin_slice import thin_slice

Object = dict[str, Any]


@pytest.fixture
def api() -> CountingApi:
    return CountingApi()


@pytest.fixture
def operate(
    api: CountingApi, operator_in: Callable[..., Any], tmp_path: Path, wait: Any
) -> Iterator[Callable[..., Any]]:
    """Start an operator, and return it once it has listed everything."""

    def start(**settings: str) -> Any:
        one = operator_in("team", kubeconfig, **settings).launch()
        wait(lambda: one.get("/readyz") == 200, lambda: str(one.log.read_text()[-2000:]), 300)
        return one

    with api.serving(tmp_path) as kubeconfig:
        yield start


def foreign_workload(number: int) -> Object:
    """A Workload of somebody else's Job, of an ordinary size."""
    meta = {"namespace": f"tenant-{number % 50}", "name": f"job-{number}", "labels": {"kueue.x-k8s.io/job-uid": "x"}}
    env = [{"name": f"VARIABLE_{one}", "value": f"{number}-{one}"} for one in range(20)]
    pod = {"containers": [{"name": "main", "image": "registry.example/other:1", "env": env}]}
    sets = [{"name": "main", "count": 1, "template": {"metadata": {}, "spec": pod}}]
    return {"metadata": meta, "spec": {"podSets": sets}, "status": {"conditions": []}}


def phases(api: CountingApi) -> list[str]:
    return [one["status"].get("phase", "") for one in list(api.objects["finetunejobs"].values())]


def test_a_restart_with_a_thousand_finished_jobs_takes_twenty_requests(api: CountingApi, operate: Any) -> None:
    for number in range(1_000):
        finished(api, number)
    operate()
    time.sleep(1)  # for requests that it must not make
    assert len(api.requests) <= 20, api.count()


def test_a_new_job_gets_its_first_job_by_four_writes_and_no_read(api: CountingApi, operate: Any, wait: Any) -> None:
    operate()
    listed = api.count()
    for number in range(20):
        api.put("finetunejobs", job(f"job-{number}"))
    wait(lambda: len(api.objects["events"]) == 20, lambda: str(api.count()))
    made = {name: count for name, count in (api.count() - listed).items() if not name.startswith("WATCH")}
    made.pop("GET events", None)  # on a slow machine: why a Job has no pod after 10 s
    writes = ["POST configmaps", "POST jobs", "PATCH finetunejobs", "POST events"]
    assert made == dict.fromkeys(writes, 20)


@pytest.mark.parametrize(("streams_lists", "cut_lists"), [(True, 0), (True, 2), (False, 0)])
def test_all_jobs_are_found_also_if_a_streamed_list_breaks_or_lists_are_not_streamed(
    api: CountingApi, operate: Any, wait: Any, streams_lists: bool, cut_lists: int
) -> None:
    api.streams_lists, api.cut_lists = streams_lists, cut_lists
    for number in range(20):
        api.put("finetunejobs", job(f"job-{number}"))
    operate()
    wait(lambda: len(api.objects["jobs"]) == 20, lambda: str(api.count()))
    kinds = ("finetunejobs", "jobs", "pods", "workloads")
    assert [f"GET {kind}" in api.count() for kind in kinds] == [not streams_lists] * 4
    assert api.count()["DELETE jobs"] == 0


@pytest.mark.parametrize("count", thin_slice([200, 1_000], 200))
def test_queued_jobs_cost_no_request_while_nothing_changes(
    api: CountingApi, operate: Any, wait: Any, count: int
) -> None:
    hold(api)
    operate()
    for number in range(count):
        one = job(f"job-{number}")
        one["spec"] = SPEC | {"scheduling": {"queueName": "team"}}
        api.put("finetunejobs", one)
    wait(lambda: phases(api).count("Queued") == count, lambda: str(api.count()), 300)
    # Events are posted when all work on jobs is done, which may take long after the last other request.
    wait(lambda: len(api.objects["events"]) == 2 * count, lambda: str(api.count()), 300)

    def is_quiet() -> bool:
        before = len(api.requests)
        time.sleep(5)  # a machine with other work may run nothing here for seconds
        return len(api.requests) == before

    wait(is_quiet, lambda: str(api.count()), 60)
    before = api.count()
    time.sleep(60)
    made = api.count() - before
    assert {name: count for name, count in made.items() if not name.startswith("WATCH")} == {}
    assert sum(made.values()) <= 4


def test_fifty_thousand_workloads_of_others_take_ten_mebibytes(api: CountingApi, operate: Any) -> None:
    without = operate(python=sys.executable).resident_mib()
    for number in range(50_000):
        api.put("workloads", foreign_workload(number))
    with_them = operate(python=sys.executable, FINETUNE_WATCH_NAMESPACES="").resident_mib()
    assert with_them - without <= 10, (without, with_them)
