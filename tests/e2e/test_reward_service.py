"""A policy that learns from a server in a pod of its own, as the guide shows it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rows import jsonl
from user import Bench, Job, kubectl, wait_for

pytestmark = pytest.mark.nightly
GUIDE = Path(__file__).parents[2] / "docs" / "objectives.md"
PROMPTS = jsonl({"prompt": f"What is the colour of thing {number}?", "number": number} for number in range(60))
TOKEN = "open-sesame"
RLHF = {"numGenerations": 4, "maxCompletionLength": 8}


def grader(namespace: str) -> list[dict[str, Any]]:
    """A pod with the guide's server, which rewards every `e` to those with its token, its Service, and the token."""
    text = GUIDE.read_text(encoding="utf-8").split("### Rewards of your own", 1)[1]
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found
    code = found[1].replace('float("thank you" in one["answer"].lower())', 'one["answer"].count("e") / 10')
    refusal = f'if self.headers["Authorization"] != "Bearer {TOKEN}": return self.send_error(401)'
    guarded = code.replace("def do_POST(self):\n", f"def do_POST(self):\n        {refusal}\n")
    assert found[1] != code != guarded
    variables = kubectl(
        *("get", "deployment", "finetune-operator", "-n", "finetune-system"),
        *("-o", "jsonpath={.spec.template.spec.containers[0].env}"),
    ).stdout
    image = next(one["value"] for one in json.loads(variables) if one["name"] == "FINETUNE_TRAINER_IMAGE")
    meta = {"name": "grader", "namespace": namespace, "labels": {"app": "grader"}}
    container = {
        "name": "grader",
        "image": image,
        "command": ["python", "-c", guarded],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
    }
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    return [
        {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": pod},
        {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"REWARD_TOKEN": TOKEN}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta,
            "spec": {"selector": {"app": "grader"}, "ports": [{"port": 8000}]},
        },
    ]


@pytest.fixture
def served(bench: Bench) -> Iterator[list[dict[str, Any]]]:
    objects = grader(bench.namespace)
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))
    kubectl("wait", "pod/grader", "-n", bench.namespace, "--for=condition=Ready", "--timeout=120s")
    yield objects
    kubectl("delete", "pod,service,secret", "grader", "-n", bench.namespace, "--ignore-not-found", "--wait=false")


def apply(bench: Bench, name: str, host: str, **more: Any) -> Job:
    """A job of prompts whose answers a server at that host scores."""
    service: dict[str, Any] = {"endpoint": f"http://{host}.{bench.namespace}.svc:8000/score"}
    if host == "grader":
        service["credentialsSecretRef"] = {"name": host}
    return bench.apply(
        name,
        objective="RLHF",
        rlhf=RLHF | {"rewards": [{"type": "Service", "service": service}]},
        dataset={"train": {"uri": bench.put("prompts.jsonl", PROMPTS)}, "validationSplitPercent": 10},
        **more,
    )


def test_a_policy_is_trained_by_a_server_that_goes_away_and_comes_back(
    bench: Bench, served: list[dict[str, Any]]
) -> None:
    job = apply(
        bench, "graded", "grader",
        hyperparameters={
            "learningRate": 1e-2, "maxSteps": 30, "perDeviceTrainBatchSize": 16, "gradientAccumulationSteps": 1,
        },
        evaluation={"steps": 15},
    )  # fmt: skip
    job.running_pod()
    kubectl("delete", "pod/grader", "-n", bench.namespace, "--wait")
    wait_for("a request that is tried again", lambda: "retry in" in job.logs(), state=job.logs)
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump(served[0]))
    status = job.wait("Complete")
    assert (status["attempts"], status.get("failures", 0)) == (1, 0)
    assert 0 <= status["metrics"]["evalReward"] <= 1  # that a policy learns is shown with a model that was taught
    report = bench.read(status["artifacts"]["reportURI"]).decode()
    assert "| 1. Service" in report
    assert TOKEN not in report + job.logs() + json.dumps(job.get())


def test_a_server_that_is_missing_is_named_before_a_gpu_is_held(bench: Bench) -> None:
    job = apply(bench, "ungraded", "nowhere")
    wait_for("a request that is tried again", lambda: "nowhere" in job.logs(), state=job.logs)
    assert "rlhf.rewards[0]" in job.logs()
    assert job.jobs() == []
    job.delete()
