"""The plugin's process without a cluster, and a job whose status has something in every block."""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from finetune_api.status import FineTuneJobStatus
from kubectl_finetune.__main__ import main
from kubectl_finetune.cluster.job import Job

STATUS: dict[str, Any] = {
    "observedGeneration": 1,
    "phase": "Training",
    "reason": "PodsRunning",
    "message": "1 of 1 pods run.",
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
                ("Running", "PodsRunning", "1 of 1 pods run."),
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
    """A job of team a; every field of its status is one that the API has."""
    told = STATUS | status
    assert FineTuneJobStatus.model_validate(told).to_wire() == told
    metadata = {
        "name": name,
        "namespace": "team-a",
        "uid": f"uid-{name}",
        "creationTimestamp": "2026-03-01T12:00:00Z",
        "resourceVersion": "1",
    }
    return Job.from_object({"metadata": metadata, "spec": SPEC | (spec or {}), "status": told})


@pytest.fixture
def job() -> Callable[..., Job]:
    return make_job


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def finetune(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Callable[..., Done]:
    """`kubectl-finetune …` in this process, with nobody at a terminal."""

    def call(*arguments: str, stdin: str = "") -> Done:
        monkeypatch.setattr(sys, "argv", ["kubectl-finetune", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return Done(int(ended.value.code or 0), out, err)

    return call
