"""Keys that are mounted as files stay there: all that a good and a refused job write is searched for them."""

import base64
import os
import urllib.parse

import pytest
import yaml
from user import Bench, Job, kubectl, secret, wait_for

KINDS = "finetunejobs,jobs,pods,configmaps,events,services"
METRICS = "/api/v1/namespaces/finetune-system/services/finetune-operator:metrics/proxy/metrics"
CANARY = "canary-Canary-CANARY"
EXPECTED = {
    *("objects", "descriptions", "the operator's log", "preflight's log", "the trainer's log"),
    *("the operator's metrics", "the trainer's metrics", "the trainer's progress"),
    *(
        "manifest.json",
        "lineage.json",
        "finetune_report.md",
        "report.html",
        "finetune_config.yaml",
        "adapter/README.md",
    ),
}


def log_of(bench: Bench, component: str) -> str:
    labels = f"finetune.dev/job-name,app.kubernetes.io/component={component}"
    return kubectl("logs", "-n", bench.namespace, "-l", labels, "--tail=-1").stdout


def answers_of(job: Job) -> dict[str, str] | None:
    """What the running trainer answers, once it does."""
    for pod in job.pods():
        path = f"/api/v1/namespaces/{job.namespace}/pods/{pod.metadata.name}:8080/proxy"
        said = {name: kubectl("get", "--raw", f"{path}/{name}", check=False) for name in ("metrics", "progress")}
        if all(one.returncode == 0 and one.stdout for one in said.values()):
            return {f"the trainer's {name}": one.stdout for name, one in said.items()}
    return None


@pytest.fixture(scope="module")
def written(bench: Bench) -> dict[str, str]:
    """Everything that is left for people to read, by where it is."""
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump(secret(bench.namespace, "canary", f"{CANARY}-id", CANARY)))
    settings = bench.manifest("good")["spec"]["hyperparameters"] | {"maxSteps": 60}
    good = bench.apply("good", hyperparameters=settings)
    storage = good.get()["spec"]["storage"] | {"credentialsSecretRef": {"name": "canary"}}
    refused = bench.apply("refused", storage=storage)
    live = wait_for("answers of the trainer", lambda: answers_of(good), state=good.status)
    refused.wait("Failed")
    prefix = good.wait("Complete")["artifacts"]["uri"].rstrip("/")
    said = {
        "objects": kubectl("get", KINDS, "-n", bench.namespace, "-o", "yaml").stdout,
        "descriptions": kubectl("describe", KINDS, "-n", bench.namespace).stdout,
        "preflight's log": log_of(bench, "preflight"),
        "the trainer's log": log_of(bench, "trainer"),
        **live,
        "the operator's log": kubectl("logs", "-n", "finetune-system", "deployment/finetune-operator").stdout,
        "the operator's metrics": kubectl("get", "--raw", METRICS).stdout,
    }
    return said | {key: bench.read(f"{prefix}/{key}").decode(errors="replace") for key in bench.keys(prefix)}


def spellings(key: str) -> set[str]:
    """The key as it is, in a URL, and in base64."""
    return {key, urllib.parse.quote(key, safe=""), base64.b64encode(key.encode()).decode().rstrip("=")}


def test_no_secret_is_written_anywhere(written: dict[str, str]) -> None:
    assert {name for name, text in written.items() if text} >= EXPECTED
    secrets = spellings(os.environ["AWS_SECRET_ACCESS_KEY"]) | spellings(CANARY) | {f"{CANARY}-id"}
    assert [name for name, text in written.items() if any(one in text for one in secrets)] == []
