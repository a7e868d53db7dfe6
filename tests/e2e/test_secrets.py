"""Keys that are mounted as files stay there: all that a good and a refused job write is searched for them."""

import os

import pytest
import yaml
from user import Bench, kubectl, secret

KINDS = "finetunejobs,jobs,pods,configmaps,events,services"
METRICS = "/api/v1/namespaces/finetune-system/services/finetune-operator:http/proxy/metrics"
CANARY = "canary-Canary-CANARY"


@pytest.fixture(scope="module")
def written(bench: Bench) -> dict[str, str]:
    """Everything that is left for people to read, by where it is."""
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump(secret(bench.namespace, "canary", f"{CANARY}-id", CANARY)))
    good = bench.apply("good")
    storage = good.get()["spec"]["storage"] | {"credentialsSecretRef": {"name": "canary"}}
    refused = bench.apply("refused", storage=storage)
    refused.wait("Failed")
    prefix = good.wait("Complete")["artifacts"]["uri"].rstrip("/")
    said = {
        "objects": kubectl("get", KINDS, "-n", bench.namespace, "-o", "yaml").stdout,
        "logs": kubectl("logs", "-n", bench.namespace, "-l", "finetune.dev/job-name", "--tail=-1").stdout,
        "the operator's log": kubectl("logs", "-n", "finetune-system", "deployment/finetune-operator").stdout,
        "metrics": kubectl("get", "--raw", METRICS).stdout,
    }
    return said | {key: bench.read(f"{prefix}/{key}").decode(errors="replace") for key in bench.keys(prefix)}


def test_no_secret_is_written_anywhere(written: dict[str, str]) -> None:
    assert {"objects", "logs", "metrics", "manifest.json", "finetune_report.md"} <= {
        name for name, text in written.items() if text
    }
    secrets = (os.environ["AWS_SECRET_ACCESS_KEY"], CANARY)
    assert [name for name, text in written.items() if any(one in text for one in secrets)] == []
