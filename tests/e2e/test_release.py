"""Results are released by pods of the real cluster: to a pointer in storage, held back, replaced and rolled back."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from deployed_chart import Chart
from kubernetes import client
from user import BUCKET, Bench, Job, kubectl, wait_for

pytestmark = [pytest.mark.alone, pytest.mark.nightly]

GROUP, VERSION, PLURAL = "finetune.dev", "v1alpha1", "finetunereleases"
SHORT = {"maxSteps": 4, "perDeviceTrainBatchSize": 4, "gradientAccumulationSteps": 1, "maxLength": 128}
NAME = "bot"


@pytest.fixture(scope="module")
def enabled(bench: Bench, chart: Chart, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    chart.install(tmp_path_factory.mktemp("enabled"), release={"enabled": True})
    yield bench
    kubectl("delete", "finetunerelease", "--all", "-n", bench.namespace, "--wait", "--timeout=60s")


def release(bench: Bench, **spec: Any) -> None:
    target = {"files": {"uri": bench.uri("serving")}}
    body = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "FineTuneRelease",
        "metadata": {"name": NAME, "namespace": bench.namespace},
        "spec": {"target": target, **spec},
    }
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump(body))


def status(bench: Bench) -> dict[str, Any]:
    """The status of the release, once it is of the current spec."""
    api = client.CustomObjectsApi()
    found = api.get_namespaced_custom_object(GROUP, VERSION, bench.namespace, PLURAL, NAME)
    now = dict(found.get("status") or {})
    return now if now.get("observedGeneration") == found["metadata"]["generation"] else {}


def wait_for_reason(bench: Bench, reason: str) -> dict[str, Any]:
    def found() -> dict[str, Any] | None:
        now = status(bench)
        return now if now.get("reason") == reason else None

    return dict(wait_for(f"reason {reason}", found, state=lambda: status(bench)))


def pointer(bench: Bench) -> dict[str, Any]:
    return dict(json.loads(bench.read(bench.uri("serving/release.json"))))


def digest(job: Job) -> str:
    return str(job.status()["artifacts"]["manifestSHA256"])


def test_a_result_is_released_replaced_refused_and_rolled_back(enabled: Bench) -> None:
    first, second = (
        enabled.apply(name, hyperparameters=SHORT | {"learningRate": rate})
        for name, rate in (("first", 1e-3), ("second", 2e-3))
    )
    release(enabled, jobRef={"name": "first"})
    assert wait_for_reason(enabled, "WaitingForJob")["reason"]
    answering = wait_for_reason(enabled, "Released")["answering"]
    assert answering["manifestSHA256"] == digest(first)
    assert digest(first) in json.dumps(pointer(enabled))

    second.wait("Complete")
    release(enabled, jobRef={"name": "second"})
    now = wait_for_reason(enabled, "Released")
    assert [now[one]["manifestSHA256"] for one in ("answering", "previous")] == [digest(second), digest(first)]

    uri = second.status()["artifacts"]["uri"]
    key = next(key for key in enabled.keys(uri) if key.endswith("adapter_model.safetensors"))
    weights = enabled.read(f"{uri}/{key}")
    enabled.s3.put_object(Bucket=BUCKET, Key=enabled.key(f"{uri}/{key}"), Body=weights[:-1] + b"!")

    credentials = enabled.manifest("none")["spec"]["storage"]
    release(enabled, uri=first.status()["artifacts"]["uri"], manifestSHA256=digest(first), storage=credentials)
    now = wait_for_reason(enabled, "Released")
    assert now["answering"]["manifestSHA256"] == digest(first)

    release(enabled, jobRef={"name": "second"})
    refused = wait_for_reason(enabled, "Refused")
    assert refused["answering"]["manifestSHA256"] == digest(first)
    assert "adapter_model.safetensors" in refused["message"]
    assert digest(first) in json.dumps(pointer(enabled))

    kubectl("delete", "finetunerelease", NAME, "-n", enabled.namespace, "--wait", "--timeout=60s")
    selector = "app.kubernetes.io/component=release"
    pods = client.CoreV1Api().list_namespaced_pod
    wait_for("no pod", lambda: not pods(enabled.namespace, label_selector=selector).items)
