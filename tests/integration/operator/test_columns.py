"""What the real kubectl prints of jobs on the real API server: the width of its tables, and what is read first."""

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kubernetes import client, config

from finetune_api import names
from finetune_api.names import Phase

Kubectl = Callable[..., str]
WIDTH = 100
LONGEST_AGE = "4d23h"
"""The longest age that kubectl prints for an object that is younger than two years."""
LONGEST_CHANGE = "+250 %"
SPEC: dict[str, Any] = {
    "objective": "DomainAdaptation",
    "model": {"uri": "s3://bucket/model"},
    "dataset": {"train": {"uri": "s3://bucket/rows.txt"}},
    "output": {"uri": "s3://bucket/out"},
    "scheduling": {"queueName": "research"},
}
STATUS: dict[str, Any] = {
    "observedGeneration": 1,
    "reason": "StartDeadlineExceeded",
    "progress": {"percent": 100, "display": "100%"},
    "evaluation": {"verdict": "Worse", "change": LONGEST_CHANGE, "before": 1.9871, "after": 1.4409},
    "metrics": {"trainLoss": 1.4231, "evalLoss": 1.5112, "bestEvalLoss": 1.4982, "baselineEvalLoss": 2.0131},
    "resolved": {"method": "QLoRA"},
    "preemptions": 12,
}


@pytest.fixture
def namespace(control_plane: Any) -> Iterator[str]:
    """A namespace of 30 characters with a job of 30 characters in each phase."""
    api = config.new_client_from_config(str(control_plane))
    core, custom = client.CoreV1Api(api), client.CustomObjectsApi(api)
    name = f"team-{uuid.uuid4().hex}"[:30]
    where = (names.GROUP, names.VERSION, name, names.PLURAL)
    core.create_namespace({"metadata": {"name": name}})
    for phase in Phase:
        job = f"{phase.lower()}-".ljust(30, "x")
        body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": job}, "spec": SPEC}
        custom.create_namespaced_custom_object(*where, body)
        custom.patch_namespaced_custom_object_status(*where, job, {"status": STATUS | {"phase": phase.value}})
    yield name
    core.delete_namespace(name)


def test_all_jobs_of_all_namespaces_fit_a_hundred_columns(namespace: str, kubectl: Kubectl) -> None:
    table = kubectl("get", "ftj", "-A", f"--field-selector=metadata.namespace={namespace}")
    header, *rows = table.splitlines()
    assert header.split() == ["NAMESPACE", "NAME", "PHASE", "DONE", "CHANGE", "AGE"]
    assert len(rows) == len(Phase)
    for row in rows:
        assert row.split()[:2] == [namespace, row.split()[1].ljust(30, "x")]
        assert row.split()[3:6] == ["100", *LONGEST_CHANGE.split()]
    assert header.index("AGE") + len(LONGEST_AGE) <= WIDTH, table
    assert max(map(len, rows)) <= WIDTH


def test_the_wide_table_has_the_rest(namespace: str, kubectl: Kubectl) -> None:
    header, *rows = kubectl("get", "ftj", "-n", namespace, "-o", "wide").splitlines()
    assert header.split()[:5] == ["NAME", "PHASE", "DONE", "CHANGE", "AGE"]
    assert header.split()[5:] == [
        "REASON", "PROGRESS", "OBJECTIVE", "METHOD", "TRAIN-LOSS", "EVAL-LOSS", "BEST", "EVAL-START",
        "BEFORE", "AFTER", "QUEUE", "PREEMPTED",
    ]  # fmt: skip
    for row in rows:
        cells = [
            "StartDeadlineExceeded", "100%", "DomainAdaptation", "QLoRA", "1.4231", "1.5112", "1.4982", "2.0131",
            "1.9871", "1.4409", "research", "12",
        ]  # fmt: skip
        assert row.split()[-12:] == cells


def test_describe_begins_its_conditions_with_the_reason_of_the_job(
    world: Any, operator: Any, kubectl: Kubectl, wait: Any
) -> None:
    world.create()
    pod = world.pod_of("one-preflight")
    world.end(pod, 65, world.report("Failed", message="no row can be trained on: convert the file"))
    world.wait_phase("Failed")
    wait(lambda: world.events("Failed"), "the event of the end")
    page = kubectl("describe", "ftj", "one", "-n", world.namespace)
    first = page.partition("Conditions:")[2].partition("Type:")[0]
    assert "no row can be trained on: convert the file" in " ".join(first.split())
    assert page.partition("Conditions:")[2].partition("Type:")[2].split()[0] == "Ready"
    events = [line for line in page.partition("Events:")[2].splitlines() if line.split()[:2] == ["Warning", "Failed"]]
    assert ["convert the file" in line for line in events] == [True]


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("status.phase=Training", ["training"]),
        ("status.phase!=Failed,status.evaluation.verdict=Worse,spec.objective=Chat", []),
        ("status.evaluation.verdict=Worse,status.phase=Failed", ["failed"]),
    ],
)
def test_jobs_are_selected_by_phase_verdict_and_objective(
    namespace: str, kubectl: Kubectl, selector: str, found: list[str]
) -> None:
    names_of = kubectl("get", "ftj", "-n", namespace, f"--field-selector={selector}", "-o", "name").split()
    assert [name.partition("/")[2].partition("-")[0] for name in names_of] == found
