"""Following a job through a load balancer that answers with failures of its own, and pods that vanish."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kubectl_finetune.commands import logs, report

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
ARTIFACTS = {"uri": "s3://b/out", "reportUri": "s3://b/out/finetune_report.md", "manifestSha256": "ab" * 32}
POD: dict[str, Any] = {
    "metadata": {
        "name": "one-1-abc",
        "namespace": "team-a",
        "uid": "u1",
        "creationTimestamp": "2026-03-01T12:01:00Z",
        "annotations": {"finetune.dev/job-name": "one"},
    },
    "status": {"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]},
}


class Front(ThreadingHTTPServer):
    """What stands before an API server: each kind of request has its answers in turn, and the last goes on."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Front

    def do_GET(self) -> None:
        last = self.path.partition("?")[0].rpartition("/")[2]
        turn = self.server.answers[last]
        code, body = turn.pop(0) if len(turn) > 1 else turn[0]
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    server = Front()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    path = tmp_path / "kubeconfig"
    path.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: ''\n"
        "contexts: [{name: lab, context: {cluster: c, user: u, namespace: team-a}}]\n"
        f"clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{server.server_address[1]}'}}}}]\n"
        "users: [{name: u, user: {token: t}}]\n"
    )
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.setattr(logs, "WAIT_SECONDS", 0.01)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def running(job: Callable[..., Any]) -> Answer:
    return 200, job().raw


@pytest.fixture
def complete(job: Callable[..., Any]) -> Answer:
    done = job(phase="Succeeded", conditions=COMPLETE).raw
    return 200, done | {"metadata": done["metadata"] | {"resourceVersion": "2"}}


@pytest.mark.parametrize("failure", [(502, b"<html>Bad Gateway</html>"), (429, {"message": "too many requests"})])
def test_progress_outlives_a_gateway_that_fails_and_ends_as_the_job_does(
    front: Front, finetune: Callable[..., Any], running: Answer, complete: Answer, failure: Answer
) -> None:
    front.answers["one"] = [running, failure, failure, complete]
    done = finetune("progress", "one", "--context", "lab", "--interval", "0.1")
    assert (done.code, done.out.count("\n")) == (0, 2)


def test_an_api_server_that_fails_is_told_apart_from_a_job_that_has_failed(
    front: Front, finetune: Callable[..., Any]
) -> None:
    front.answers["one"] = [(503, b"")]
    done = finetune("progress", "one", "--context", "lab")
    assert (done.code, "the API server answers 503" in done.err) == (5, True)


def test_a_log_that_cannot_be_had_at_first_is_asked_for_again_and_nothing_of_it_is_lost(
    front: Front, finetune: Callable[..., Any], running: Answer, complete: Answer
) -> None:
    ended = POD | {"status": {"containerStatuses": [{"state": {"terminated": {"exitCode": 0}}}]}}
    front.answers["one"] = [running, running, (500, b""), complete]
    front.answers["pods"] = [(200, {"items": [POD]}), (200, {"items": [ended]})]
    front.answers["log"] = [(502, b"")] * 3 + [(200, b"step 1\nstep 2\n")]
    done = finetune("logs", "one", "-f", "--context", "lab")
    assert (done.code, done.out) == (0, "step 1\nstep 2\n")
    assert done.err.splitlines()[:2] == ["--- pod one-1-abc", "waiting: the API server answers 502"]
    assert done.err.count("answers 502") == 1


def test_a_log_that_can_never_be_had_ends_with_the_reason(
    front: Front, finetune: Callable[..., Any], complete: Answer
) -> None:
    ended = POD | {"status": {"containerStatuses": [{"state": {"terminated": {"exitCode": 0}}}]}}
    front.answers = {"one": [complete], "pods": [(200, {"items": [ended]})]}
    front.answers["log"] = [(500, {"message": "dial tcp 10.0.0.9:10250: connection refused"})]
    done = finetune("logs", "one", "-f", "--context", "lab")
    assert (done.code, "connection refused" in done.err) == (5, True)


def test_a_pod_that_is_removed_between_the_look_and_its_log_does_not_end_the_following(
    front: Front, finetune: Callable[..., Any], running: Answer, complete: Answer
) -> None:
    second = POD | {"metadata": POD["metadata"] | {"name": "one-2-def", "uid": "u2"}}
    front.answers["one"] = [running, running, complete]
    front.answers["pods"] = [(200, {"items": [pod]}) for pod in (POD, second)] + [(200, {"items": []})]
    gone = {"message": 'pods "one-1-abc" not found', "details": {"name": "one-1-abc"}}
    front.answers["log"] = [(404, gone), (200, b"second run\n")]
    done = finetune("logs", "one", "-f", "--context", "lab")
    assert (done.code, done.out) == (0, "second run\n")


def test_a_job_that_preflight_refused_has_no_log_of_a_trainer_and_says_which_it_has(
    front: Front, finetune: Callable[..., Any], job: Callable[..., Any]
) -> None:
    refused = [
        COMPLETE[0] | {"status": "False", "reason": "DatasetInvalid"},
        COMPLETE[1] | {"type": "Failed", "reason": "DatasetInvalid"},
    ]
    front.answers["one"] = [(200, job(phase="Failed", conditions=refused).raw)]
    front.answers["pods"] = [(200, {"items": []})]
    done = finetune("logs", "one", "--context", "lab")
    assert (done.code, "preflight did not pass: add --preflight" in done.err) == (3, True)


def test_an_unknown_context_is_told_with_those_there_are_where_none_is_current(
    front: Front, finetune: Callable[..., Any]
) -> None:
    done = finetune("list", "--context", "other")
    assert (done.code, "it has lab" in done.err) == (2, True)


def test_a_report_without_a_known_endpoint_names_the_operators_default(
    front: Front, finetune: Callable[..., Any], job: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    front.answers["one"] = [(200, job(phase="Succeeded", conditions=COMPLETE, artifacts=ARTIFACTS).raw)]
    assert report.NO_ENDPOINT in finetune("report", "one", "--context", "lab").out
    assert (
        report.NO_ENDPOINT not in finetune("report", "one", "--context", "lab", "--endpoint", "http://minio:9000").out
    )
    spec = {"storage": {"endpoint": "http://minio:9000"}}
    front.answers["one"] = [(200, job(spec=spec, phase="Succeeded", conditions=COMPLETE, artifacts=ARTIFACTS).raw)]
    assert report.NO_ENDPOINT not in finetune("report", "one", "--context", "lab").out


def test_fetching_without_a_known_endpoint_goes_on_to_aws_and_says_what_may_be_missing(
    front: Front, finetune: Callable[..., Any], job: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    for name, value in (("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_MAX_ATTEMPTS", "1")):
        monkeypatch.setenv(name, value)
    # AWS itself is not asked: its place is taken by a port where nobody listens.
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    front.answers["one"] = [(200, job(phase="Succeeded", conditions=COMPLETE, artifacts=ARTIFACTS).raw)]
    done = finetune("report", "one", "--show", "--context", "lab")
    note, error, fix = done.err.splitlines()
    assert (done.code, note) == (1, f"note: {report.NO_ENDPOINT}")
    assert "cannot be read at AWS" in error
    assert fix.strip().startswith(report.NO_ENDPOINT)
