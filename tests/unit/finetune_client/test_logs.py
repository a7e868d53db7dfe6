from collections.abc import Callable
from typing import Any

import pytest
from plugin_world import make_job

from finetune_client import logs
from finetune_client.cluster.connection import RETRIES

Answer = tuple[int, Any]
COMPLETE = [
    {
        "type": kind,
        "status": "True",
        "reason": "Succeeded",
        "message": "Published.",
        "lastTransitionTime": "2026-03-01T12:25:00Z",
    }
    for kind in ("Validated", "Complete")
]
POD: dict[str, Any] = {
    "metadata": {
        "name": "one-1-abc",
        "namespace": "team-a",
        "uid": "u1",
        "creationTimestamp": "2026-03-01T12:01:00Z",
        "annotations": {"finetune.dev/job-name": "one"},
    },
    "status": {"phase": "Running", "containerStatuses": [{"name": "trainer", "state": {"running": {}}}]},
}


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "WAIT_SECONDS", 0.01)


@pytest.fixture
def running(job: Callable[..., Any]) -> Answer:
    return 200, job().raw


@pytest.fixture
def complete(job: Callable[..., Any]) -> Answer:
    done = job(phase="Succeeded", conditions=COMPLETE).raw
    return 200, done | {"metadata": done["metadata"] | {"resourceVersion": "2"}}


def test_a_log_that_is_unavailable_at_first_is_requested_again_and_nothing_of_it_is_lost(
    front: Any, finetune: Callable[..., Any], running: Answer, complete: Answer
) -> None:
    ended = POD | {"status": {"containerStatuses": [{"name": "trainer", "state": {"terminated": {"exitCode": 0}}}]}}
    front.answers["one"] = [running, running, (500, b""), complete]
    front.answers["pods"] = [(200, {"items": [POD]}), (200, {"items": [ended]})]
    front.answers["log"] = [(502, b"")] * 3 + [(200, b"step 1\nstep 2\n")]
    done = finetune("logs", "one", "-f", "--context", "lab")
    assert (done.code, done.out) == (0, "step 1\nstep 2\n")
    assert done.err.splitlines()[:2] == ["--- pod one-1-abc", "waiting: the API server returned 502"]
    assert done.err.count("returned 502") == 1


def test_a_log_that_can_never_be_had_ends_with_the_reason(
    front: Any, finetune: Callable[..., Any], complete: Answer
) -> None:
    ended = POD | {"status": {"containerStatuses": [{"name": "trainer", "state": {"terminated": {"exitCode": 0}}}]}}
    front.answers = {"one": [complete], "pods": [(200, {"items": [ended]})]}
    front.answers["log"] = [(500, {"message": "dial tcp 10.0.0.9:10250: connection refused"})]
    done = finetune("logs", "one", "-f", "--context", "lab")
    assert (done.code, "connection refused" in done.err) == (5, True)
    assert len([path for _, path, _ in front.requests if "/log?" in path]) == RETRIES + 1


@pytest.mark.parametrize("answer", [(404, {"message": "gone", "details": {"name": "one-1-abc"}}), (200, b"")])
def test_a_log_that_is_empty_or_gone_after_a_refusal_is_not_requested_again(
    front: Any, finetune: Callable[..., Any], complete: Answer, answer: Answer
) -> None:
    ended = POD | {"status": {"containerStatuses": [{"name": "trainer", "state": {"terminated": {"exitCode": 0}}}]}}
    front.answers = {"one": [complete], "pods": [(200, {"items": [ended]})]}
    front.answers["log"] = [(502, b""), answer, (200, b"of another pod\n")]
    done = finetune("logs", "one", "-f", "--context", "lab")
    assert (done.code, done.out) == (0, "")


def test_a_pod_that_is_removed_between_the_look_and_its_log_does_not_end_the_following(
    front: Any, finetune: Callable[..., Any], running: Answer, complete: Answer
) -> None:
    second = POD | {"metadata": POD["metadata"] | {"name": "one-2-def", "uid": "u2"}}
    front.answers["one"] = [running, running, complete]
    front.answers["pods"] = [(200, {"items": [pod]}) for pod in (POD, second)] + [(200, {"items": []})]
    gone = {"message": 'pods "one-1-abc" not found', "details": {"name": "one-1-abc"}}
    front.answers["log"] = [(404, gone), (200, b"second run\n")]
    done = finetune("logs", "one", "-f", "--context", "lab")
    assert (done.code, done.out) == (0, "second run\n")


def test_a_job_that_failed_preflight_has_no_trainer_log_and_the_error_names_the_other(
    front: Any, finetune: Callable[..., Any], job: Callable[..., Any]
) -> None:
    refused = [
        COMPLETE[0] | {"status": "False", "reason": "DatasetInvalid"},
        COMPLETE[1] | {"type": "Failed", "reason": "DatasetInvalid"},
    ]
    front.answers["one"] = [(200, job(phase="Failed", conditions=refused).raw)]
    front.answers["pods"] = [(200, {"items": []})]
    done = finetune("logs", "one", "--context", "lab")
    assert (done.code, "preflight did not pass: add --preflight" in done.err) == (3, True)


def pod(status: dict[str, Any], uid: str = "u1", annotations: dict[str, str] | None = None) -> dict[str, Any]:
    given = POD["metadata"]["annotations"] | (annotations or {})
    return {"metadata": POD["metadata"] | {"uid": uid, "annotations": given}, "status": status}


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({}, "Pending"),
        ({"phase": "Unknown"}, "Unknown"),
        ({"conditions": [{"type": "Ready"}, {"message": "0/3 nodes are available"}]}, "0/3 nodes are available"),
        (
            {
                "containerStatuses": [
                    {"name": "trainer", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}
                ]
            },
            "ImagePullBackOff not found",
        ),
        ({"containerStatuses": [{"name": "trainer", "state": {"waiting": {}}}]}, "waiting"),
    ],
)
def test_a_pod_that_has_not_started_is_reported_with_the_reason(
    front: Any, finetune: Callable[..., Any], running: Answer, status: dict[str, Any], reason: str
) -> None:
    front.answers = {"one": [running], "pods": [(200, {"items": [pod(status)]})]}
    done = finetune("logs", "one", "--context", "lab")
    assert (done.code, f"pod one-1-abc has not started: {reason}\n" in done.err) == (3, True)


PROXY = {"name": "istio-proxy", "state": {"running": {}}}
"""A container that a service mesh has added to the pod."""


def test_a_pod_has_not_started_when_only_the_container_of_others_runs(
    front: Any, finetune: Callable[..., Any], running: Answer
) -> None:
    waiting = {"name": "trainer", "state": {"waiting": {"reason": "PodInitializing"}}}
    front.answers = {"one": [running], "pods": [(200, {"items": [pod({"containerStatuses": [PROXY, waiting]})]})]}
    done = finetune("logs", "one", "--context", "lab")
    assert (done.code, "pod one-1-abc has not started: PodInitializing\n" in done.err) == (3, True)


def test_the_log_of_an_ended_trainer_is_not_followed_further_while_the_container_of_others_runs(
    front: Any, finetune: Callable[..., Any], running: Answer, complete: Answer
) -> None:
    ended = {"name": "trainer", "state": {"terminated": {"exitCode": 0}}}
    front.answers = {
        "one": [running, running, complete],
        "pods": [(200, {"items": [pod({"containerStatuses": [*proxy, ended]})]}) for proxy in ([PROXY], [PROXY], [])],
        "log": [(200, b"step 1\n")],
    }
    done = finetune("logs", "one", "-f", "--context", "lab")
    assert (done.code, done.out) == (0, "step 1\n")
    assert len([path for _, path, _ in front.requests if "/log?" in path]) == 1


def test_a_job_without_pods_has_no_log_yet_or_no_more(
    front: Any, finetune: Callable[..., Any], running: Answer, complete: Answer
) -> None:
    front.answers = {"one": [running, complete], "pods": [(200, {"items": []})]}
    done = finetune("logs", "one", "--context", "lab")
    assert (done.code, "one has no log: no trainer pod exists yet" in done.err) == (3, True)
    done = finetune("logs", "one", "--context", "lab")
    assert (done.code, "one has no log: its pods are removed" in done.err) == (3, True)


def test_a_job_that_was_refused_never_had_a_pod(front: Any, finetune: Callable[..., Any], job: Any) -> None:
    refused = [COMPLETE[0] | {"type": "Accepted", "status": "False"}, COMPLETE[1] | {"type": "Failed"}]
    front.answers = {"one": [(200, job(phase="Failed", conditions=refused).raw)], "pods": [(200, {"items": []})]}
    done = finetune("logs", "one", "--context", "lab")
    assert (done.code, "one has no log: it failed before it had a pod" in done.err) == (3, True)


def test_options_reach_the_api_server_and_the_rank_chooses_the_pod(
    front: Any, finetune: Callable[..., Any], running: Answer
) -> None:
    index = "batch.kubernetes.io/job-completion-index"
    first, second = pod(POD["status"], annotations={index: "0"}), pod(POD["status"], "u2", {index: "1"})
    second["metadata"]["name"] = "one-1-second"
    foreign = pod(POD["status"], "u3", {"finetune.dev/job-name": "other", index: "1"})
    front.answers = {
        "one": [running],
        "pods": [(200, {"items": [foreign, second, first]})],
        "log": [(200, b"step 1\n")],
    }
    done = finetune("logs", "one", "--rank", "1", "--tail", "5", "--timestamps", "--context", "lab")
    assert (done.code, done.out) == (0, "step 1\n")
    path, _, query = front.requests[-1][1].partition("?")
    assert path.endswith("/namespaces/team-a/pods/one-1-second/log")
    assert set(query.split("&")) == {"container=trainer", "timestamps=true", "tailLines=5"}
    assert finetune("logs", "one", "--context", "lab").code == 0
    path, _, query = front.requests[-1][1].partition("?")
    assert (path.rpartition("/pods/")[2], query) == ("one-1-abc/log", "container=trainer")


def test_a_followed_log_reports_each_thing_it_waits_for_once(
    front: Any, finetune: Callable[..., Any], running: Answer, complete: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    front.answers = {"one": [running, running, complete], "pods": [(200, {"items": []})]}
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    done = finetune("logs", "one", "-f", "--context", "lab")
    assert done.out == ""
    assert done.err.partition("error: ")[0] == "waiting: Training: 1 of 1 pods are running.\n"
    assert waits == [logs.WAIT_SECONDS] * 2


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([{"type": "Accepted", "status": "False"}, {"type": "Failed"}], "it failed before it had a pod"),
        ([{"type": "Validated", "status": "False"}, {"type": "Failed"}], "preflight did not pass: add --preflight"),
        ([{"type": "Validated"}, {"type": "Failed"}], "its pods are removed"),
        (
            [{"type": "Validated", "reason": "Adopted"}, {"type": "Complete"}],
            "was never trained: its result was already",
        ),
    ],
)
def test_a_followed_job_that_ends_without_a_log_is_an_error_with_the_reason(
    front: Any, finetune: Callable[..., Any], running: Answer, conditions: list[dict[str, str]], expected: str
) -> None:
    ended = make_job(phase="Failed", conditions=[COMPLETE[0] | one for one in conditions])
    front.answers = {"one": [running, (200, ended.raw)], "pods": [(200, {"items": []})]}
    done = finetune("logs", "one", "-f", "--context", "lab")
    assert (done.code, expected in done.err) == (3, True), done.err


@pytest.mark.parametrize("more", [[], ["-f"]])
def test_the_log_of_a_preflight_pod_that_is_removed_is_not_waited_for(
    front: Any, finetune: Callable[..., Any], job: Callable[..., Any], more: list[str]
) -> None:
    front.answers = {"one": [(200, job(conditions=COMPLETE[:1]).raw)], "pods": [(200, {"items": []})]}
    done = finetune("logs", "one", "--preflight", *more, "--context", "lab")
    assert (done.code, "one has no log: its preflight pod is removed" in done.err) == (3, True), done.err


@pytest.mark.parametrize(
    ("options", "nodes", "expected"),
    [
        (["--rank", "3"], 1, "one has no pod of rank 3: its only rank is 0"),
        (["--rank", "2", "-f"], 2, "one has no pod of rank 2: its ranks are 0 to 1"),
        (["--rank", "1", "--preflight"], 2, "one has no preflight pod of rank 1"),
    ],
)
def test_a_rank_that_the_job_never_has_is_refused_at_once(
    front: Any, finetune: Callable[..., Any], options: list[str], nodes: int, expected: str
) -> None:
    found = make_job("one", {"resources": {"numNodes": nodes}})
    front.answers = {"one": [(200, found.raw)], "pods": [(200, {"items": [POD]})]}
    done = finetune("logs", "one", *options, "--context", "lab")
    assert (done.code, expected in done.err) == (2, True), done.err


def test_a_followed_preflight_ends_when_the_job_is_validated(
    front: Any, finetune: Callable[..., Any], running: Answer
) -> None:
    ended = pod({"containerStatuses": [{"name": "trainer", "state": {"terminated": {"exitCode": 0}}}]})
    front.answers = {"one": [running], "pods": [(200, {"items": [ended]})], "log": [(200, b"checked\n")]}
    done = finetune("logs", "one", "-f", "--preflight", "--context", "lab")
    assert (done.code, done.out, done.err) == (0, "checked\n", "--- pod one-1-abc\n")


def test_a_connection_that_ends_while_the_pod_runs_is_opened_again_for_new_lines_only(
    front: Any, finetune: Callable[..., Any], running: Answer, complete: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    ended = pod({"containerStatuses": [{"name": "trainer", "state": {"terminated": {"exitCode": 0}}}]})
    front.answers = {
        "one": [running, running, complete],
        "pods": [(200, {"items": [one]}) for one in (POD, POD, ended)],
    }
    front.answers["log"] = [(200, b"step 1\n"), (200, b"step 2\n")]
    done = finetune("logs", "one", "-f", "--tail", "9", "--context", "lab")
    assert (done.code, done.out) == (0, "step 1\nstep 2\n")
    assert done.err.splitlines() == ["--- pod one-1-abc", "--- pod one-1-abc, again from here"]
    queries = [one[1] for one in front.requests if "/log?" in one[1]]
    assert all("follow=true" in query for query in queries)
    assert ["tailLines=9" in queries[0], "tailLines=0" in queries[1], len(queries)] == [True, True, 2]
    assert waits == [logs.WAIT_SECONDS] * 2


@pytest.mark.parametrize("index", ["first", "1.5", ""])
def test_an_annotation_that_is_no_rank_hides_no_other_pod(index: str) -> None:
    """A user can annotate a pod with anything."""
    odd = POD | {"metadata": POD["metadata"] | {"annotations": {"batch.kubernetes.io/job-completion-index": index}}}
    assert logs.newest([POD, odd], 0) == (POD if index else odd)
