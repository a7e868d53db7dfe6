"""The plugin's process without a cluster, a fake API server, and a job whose status has something in every block."""

import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from finetune_api.status import FineTuneJobStatus
from kubectl_finetune.__main__ import main
from kubectl_finetune.cluster.job import Job

STATUS: dict[str, Any] = {
    "observedGeneration": 1,
    "phase": "Training",
    "reason": "PodsRunning",
    "message": "1 of 1 pods are running.",
    "conditions": [
        {
            "type": kind,
            "status": "True",
            "reason": reason,
            "message": message,
            "lastTransitionTime": f"2026-03-01T12:0{minute}:00Z",
        }
        for minute, (kind, reason, message) in enumerate(
            [
                ("Accepted", "Accepted", "The spec can be run here."),
                ("Validated", "DatasetValid", "90 of 100 rows can be trained on."),
                ("Running", "PodsRunning", "1 of 1 pods are running."),
            ]
        )
    ],
    "startTime": "2026-03-01T12:03:00Z",
    "attempts": 2,
    "runs": 1,
    "preemptions": 1,
    "activeSeconds": 600,
    "history": [
        {
            "run": 1,
            "attempt": 1,
            "podName": "one-1-abc",
            "podUid": "u1",
            "node": "node-a",
            "startTime": "2026-03-01T12:03:00Z",
            "endTime": "2026-03-01T12:13:00Z",
            "result": "Preempted",
            "reason": "Evicted",
            "message": "The node was low on memory.",
            "exitCode": 75,
            "lastStep": 40,
        }
    ],
    "progress": {
        "display": "42%",
        "percent": 42,
        "step": 42,
        "totalSteps": 100,
        "stage": "Training",
        "estimatedRemainingSeconds": 3400,
        "resumedFromStep": 40,
    },
    "metrics": {
        "trainLoss": 1.4231,
        "evalLoss": 1.5,
        "bestEvalLoss": 1.498,
        "bestStep": 40,
        "baselineEvalLoss": 2.0,
        "learningRate": 0.0002,
    },
    "checkpoint": {
        "uri": "s3://b/out/checkpoints/step-000040",
        "step": 40,
        "savedTime": "2026-03-01T12:12:00Z",
        "sha256": "ab" * 32,
    },
    "dataset": {"rows": 100, "accepted": 90, "rejected": 10, "rejectedByCode": {"BAD_JSON": 10}, "trainRows": 81},
    "resolved": {"method": "QLoRA", "methodReason": "Auto is QLoRA", "totalSteps": 100},
    "currentRun": {
        "attempt": 2,
        "podName": "one-2-def",
        "podUid": "u2",
        "node": "node-b",
        "startTime": "2026-03-01T12:20:00Z",
    },
}
SPEC: dict[str, Any] = {
    "objective": "Chat",
    "model": {"uri": "hf://owner/model"},
    "dataset": {"train": {"uri": "s3://b/rows.jsonl"}},
    "output": {"uri": "s3://b/out"},
}


def make_job(name: str = "one", spec: dict[str, Any] | None = None, **status: Any) -> Job:
    """Return a job of team a; each field of its status is one of the API, and None leaves it out."""
    values = {name: value for name, value in (STATUS | status).items() if value is not None}
    assert FineTuneJobStatus.model_validate(values).to_wire() == values
    metadata = {
        "name": name,
        "namespace": "team-a",
        "uid": f"uid-{name}",
        "creationTimestamp": "2026-03-01T12:00:00Z",
        "resourceVersion": "1",
    }
    return Job.from_object({"metadata": metadata, "spec": SPEC | (spec or {}), "status": values})


@pytest.fixture
def job() -> Callable[..., Job]:
    return make_job


@dataclass
class Done:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def finetune(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Callable[..., Done]:
    """Run `kubectl-finetune …` in this process, without a terminal."""

    def call(*arguments: str, stdin: str = "") -> Done:
        monkeypatch.setattr(sys, "argv", ["kubectl-finetune", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return Done(int(ended.value.code or 0), out, err)

    return call


@pytest.fixture
def printed() -> Callable[..., str]:
    """Return what a console of 200 columns prints."""

    def call(part: RenderableType, **options: Any) -> str:
        text = io.StringIO()
        Console(file=text, width=200, highlight=False, **options).print(part, soft_wrap=True)
        return text.getvalue()

    return call


class ApiServer(ThreadingHTTPServer):
    """A fake API server: requests by the last part of their path get their answers in turn; the last one repeats."""

    def __init__(self) -> None:
        self.answers: dict[str, list[tuple[int, Any]]] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self.headers: list[dict[str, str]] = []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: ApiServer

    def answer(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, self.path, json.loads(sent) if sent else None))
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        if self.command != "GET":
            code, body = 200, {}
        else:
            turn = self.server.answers[self.path.partition("?")[0].rpartition("/")[2]]
            code, body = turn.pop(0) if len(turn) > 1 else turn[0]
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

    do_GET = do_PATCH = do_DELETE = answer  # noqa: N815 - names of the standard library

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """A fake API server, which is the context `lab` of the kubeconfig; no context is the current one."""
    server = ApiServer()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    path = tmp_path / "kubeconfig"
    path.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: ''\n"
        "contexts: [{name: lab, context: {cluster: c, user: u, namespace: team-a}}]\n"
        f"clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{server.server_address[1]}'}}}}]\n"
        "users: [{name: u, user: {token: t}}]\n"
    )
    monkeypatch.setenv("KUBECONFIG", str(path))
    yield server
    server.shutdown()
    server.server_close()
