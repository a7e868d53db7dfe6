"""Real Volcano in place of Kubernetes' scheduler: all pods of a job are placed, or none."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client
from test_cluster import image, pod  # noqa: F401 - a fixture
from user import Bench, Job, kubectl, wait_for

pytestmark = [pytest.mark.alone, pytest.mark.nightly]

CLUSTER = Path(__file__).resolve().parents[1] / "cluster" / "cluster.py"
PAIR = {"numNodes": 2, "gpusPerNode": 1, "requests": {"cpu": "250m", "memory": "1Gi"}}
SCHEDULER = """\
actions: "enqueue, allocate, backfill"
tiers:
- plugins: [{name: priority}, {name: gang}, {name: conformance}]
- plugins: [{name: overcommit}, {name: drf}, {name: predicates}, {name: proportion}, {name: nodeorder}]
"""


def cluster(*arguments: str) -> str:
    command = [sys.executable, str(CLUSTER), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def volcano(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Volcano's definitions in the cluster, and its two programs on this machine; yields the folder of their logs."""
    folder = tmp_path_factory.mktemp("volcano")
    (folder / "scheduler.yaml").write_text(SCHEDULER, encoding="utf-8")
    source = cluster("source", "volcano-scheduler")
    definitions = [f"--filename={source}/config/crd/{one}/bases" for one in ("volcano", "jobflow")]
    kubectl("apply", "--server-side", *definitions)
    options = {
        "volcano-controller": ["--healthz-address=127.0.0.1:0"],
        "volcano-scheduler": [f"--scheduler-conf={folder / 'scheduler.yaml'}"],
    }
    running = []
    try:
        for name, more in options.items():
            command = [cluster("program", name), "--leader-elect=false", f"--kubeconfig={os.environ['KUBECONFIG']}"]
            with (folder / f"{name}.log").open("wb") as log:
                running.append(
                    subprocess.Popen([*command, "--listen-address=127.0.0.1:0", *more], stdout=log, stderr=log)
                )
        yield folder
        assert [one.poll() for one in running] == [None, None], f"Volcano ended: see {folder}"
    finally:
        for one in running:
            one.kill()
            one.wait()
        kubectl("delete", "--ignore-not-found", *definitions)


def pods_by_node(job: Job) -> list[str | None]:
    return [one.spec.node_name for one in job.pods()]


def test_no_pod_is_placed_before_all_fit_and_then_all_are(bench: Bench, image: str, volcano: Path) -> None:  # noqa: F811
    core = client.CoreV1Api()
    gpus = sum(int(one.status.allocatable.get("nvidia.com/gpu", 0)) for one in core.list_node().items)
    filler: dict[str, Any] = pod(
        bench.namespace, "filler", image, ["sleep", "3600"], limits={"nvidia.com/gpu": str(gpus - 1)}
    )
    core.create_namespaced_pod(bench.namespace, filler)
    wait_for("the filler", lambda: core.read_namespaced_pod("filler", bench.namespace).spec.node_name)

    job = bench.apply("pair", resources=PAIR, tuning={"method": "LoRA"}, scheduling={"schedulerName": "volcano"})
    waits = wait_for(
        "why the pods wait",
        lambda: next((m for m in [job.condition("Running").get("message", "")] if "pod group is not ready" in m), ""),
        state=job.status,
    )
    assert "0 of 2 pods are running" in waits
    assert "wait until all pods of the job fit at once; kubectl describe podgroups shows what is missing" in waits
    assert pods_by_node(job) == [None, None]

    core.delete_namespaced_pod("filler", bench.namespace, grace_period_seconds=0)
    status = job.wait("Complete")
    assert (status["attempts"], status["runs"]) == (1, 1)
    assert all(pods_by_node(job))


def test_a_scheduler_that_does_not_exist_is_named(bench: Bench) -> None:
    job = bench.apply("misspelt", scheduling={"schedulerName": "volcanic"})
    message = wait_for(
        "the scheduler's name",
        lambda: next((m for m in [job.condition("Running").get("message", "")] if "volcanic" in m), ""),
        state=job.status,
    )
    assert "scheduler volcanic has not handled the pod: check scheduling.schedulerName" in message
