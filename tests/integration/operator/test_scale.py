"""Thousands of objects: how many requests the operator needs for them, and how much memory.

The API server is one in memory, because a real one takes minutes to get so many objects; it counts every request.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from counting_api import CountingApi

from finetune_api import names

Object = dict[str, Any]
SPEC: Object = {
    "objective": "Chat",
    "model": {"uri": "s3://bucket/model"},
    "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}},
    "output": {"uri": "s3://bucket/out"},
}
TIME = "2026-03-01T12:00:00Z"
WAITING = (
    "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor default, 1 more"
)


@pytest.fixture
def api() -> CountingApi:
    return CountingApi()


@pytest.fixture
def operate(
    api: CountingApi, operator_in: Callable[..., Any], tmp_path: Path, wait: Any
) -> Iterator[Callable[..., Any]]:
    """Starts an operator, and returns it once it has listed everything."""

    def start(**settings: str) -> Any:
        one = operator_in("team", kubeconfig, **settings).launch()
        wait(lambda: one.get("/readyz") == 200, lambda: str(one.log.read_text()[-2000:]), 300)
        return one

    with api.serving(tmp_path) as kubeconfig:
        yield start


def job(name: str, **status: Any) -> Object:
    meta = {"namespace": "team", "name": name, "generation": 1}
    return {"metadata": meta, "spec": SPEC, "status": {"observedGeneration": -1} | status}


def finished(api: CountingApi, number: int) -> None:
    """A job that is complete, with its Jobs and their pods."""
    done = {"type": "Complete", "status": "True", "reason": "Succeeded", "message": "", "lastTransitionTime": TIME}
    one = job(f"job-{number}", observedGeneration=1, phase="Succeeded", conditions=[done], completionTime=TIME)
    uid = api.put("finetunejobs", one)["metadata"]["uid"]
    for component, suffix in (("preflight", "preflight"), ("trainer", "1")):
        meta = {"namespace": "team", "name": f"job-{number}-{suffix}", "labels": labels(f"job-{number}", component)}
        meta["annotations"] = {names.ANNOTATION_JOB_NAME: f"job-{number}"}
        owner = {"kind": names.KIND, "uid": uid, "controller": True}
        pod = {"containers": [{"name": "trainer", "image": "x"}]}
        child = {"metadata": meta | {"ownerReferences": [owner]}, "spec": {"template": {"spec": pod}}, "status": {}}
        api.put("jobs", child)
        api.put("pods", {"metadata": dict(meta), "spec": pod, "status": {"phase": "Succeeded"}})


def labels(name: str, component: str) -> Object:
    return {
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_JOB_NAME: name,
        names.LABEL_COMPONENT: component,
        names.LABEL_ATTEMPT: "1",
    }


def hold(api: CountingApi) -> None:
    """Let Kueue hold every Job: its Workload waits for quota."""

    def on_create(kind: str, obj: Object) -> None:
        if kind != "jobs":
            return
        api.put(kind, obj | {"spec": obj["spec"] | {"suspend": True}}, event="MODIFIED")
        meta = {"namespace": "team", "name": f"job-{obj['metadata']['name']}"}
        meta["labels"] = {names.LABEL_QUEUED_JOB_UID: obj["metadata"]["uid"]}
        sets = [{"template": {"metadata": obj["spec"]["template"]["metadata"]}}]
        reserved = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": WAITING}
        api.put("workloads", {"metadata": meta, "spec": {"podSets": sets}, "status": {"conditions": [reserved]}})

    api.on_create = on_create


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


def test_a_thousand_queued_jobs_cost_no_request_while_nothing_changes(
    api: CountingApi, operate: Any, wait: Any
) -> None:
    hold(api)
    operate(FINETUNE_API_QPS="2000", FINETUNE_API_BURST="2000")
    for number in range(1_000):
        one = job(f"job-{number}")
        one["spec"] = SPEC | {"scheduling": {"queueName": "team"}}
        api.put("finetunejobs", one)
    wait(lambda: phases(api).count("Queued") == 1_000, lambda: str(api.count()), 300)

    def is_quiet() -> bool:
        before = len(api.requests)
        time.sleep(2)
        return len(api.requests) == before

    wait(is_quiet, lambda: str(api.count()), 60)
    before = api.count()
    time.sleep(60)
    made = api.count() - before
    assert {name: count for name, count in made.items() if not name.startswith("WATCH")} == {}
    assert sum(made.values()) <= 4


def test_fifty_thousand_workloads_of_others_take_ten_mebibytes(api: CountingApi, operate: Any) -> None:
    without = operate().resident_mib()
    for number in range(50_000):
        api.put("workloads", foreign_workload(number))
    with_them = operate(FINETUNE_WATCH_NAMESPACES="").resident_mib()
    assert with_them - without <= 10, (without, with_them)
