"""What a user gets for bad input: a clear error that names the field, before a GPU is held, and nothing lost."""

from typing import Any

import pytest
import yaml
from rows import colour_rows, jsonl
from user import Bench, Job, kubectl, wait_for


def failed(job: Job, reason: str) -> dict[str, Any]:
    """Wait for the failure, and check that no trainer Job was ever made for it."""
    status = job.wait("Failed")
    assert (status["phase"], status["reason"]) == ("Failed", reason)
    assert job.condition("Stalled")["status"] == "True"
    assert job.condition("Ready")["status"] == "False"
    assert job.jobs("trainer") == []
    return status


def test_a_missing_bucket_is_storage_denied_before_any_gpu(bench: Bench) -> None:
    job = bench.apply(
        "no-bucket", dataset={"train": {"uri": "s3://no-such-bucket-here/train.jsonl"}, "validationSplitPercent": 10}
    )
    assert "no-such-bucket-here" in failed(job, "StorageDenied")["message"]


def test_wrong_keys_are_storage_denied_and_the_secret_is_not_repeated(bench: Bench) -> None:
    storage = bench.manifest("x")["spec"]["storage"] | {"credentialsSecretRef": {"name": "wrong-keys"}}
    job = bench.apply("wrong-keys", storage=storage)
    message = failed(job, "StorageDenied")["message"]
    assert "credential" in message.lower() or "key" in message.lower()
    assert "not-the-secret" not in message + job.logs()


def test_a_missing_model_is_model_unavailable(bench: Bench) -> None:
    job = bench.apply("no-model", model={"uri": bench.uri("models/nothing")})
    assert "models/nothing" in failed(job, "ModelUnavailable")["message"]


def test_pickle_weights_are_refused_unopened(bench: Bench) -> None:
    for key in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        bench.put(f"pickle/{key}", bench.read("s3://finetune-e2e/tiny-model/" + key))
    bench.put("pickle/pytorch_model.bin", b"\x80\x04not opened")
    job = bench.apply("pickle", model={"uri": bench.uri("pickle")})
    assert "pickle" in failed(job, "ModelUnavailable")["message"]


def test_a_missing_dataset_is_dataset_unusable(bench: Bench) -> None:
    job = bench.apply("no-rows", dataset={"train": {"uri": bench.uri("nothing.jsonl")}, "validationSplitPercent": 10})
    assert "nothing.jsonl" in failed(job, "DatasetUnusable")["message"]


def test_garbage_is_dataset_unusable_with_counts_and_first_lines(bench: Bench) -> None:
    uri = bench.put("garbage.jsonl", "\n".join(f"<garbage {number}>" for number in range(50)))
    job = bench.apply("garbage", dataset={"train": {"uri": uri}, "validationSplitPercent": 10})
    status = failed(job, "DatasetUnusable")
    assert "BAD_JSON" in status["message"]
    assert "50" in status["message"]
    assert status["dataset"]["rejectedRowsByCode"] == {"BAD_JSON": 50}
    assert "garbage.jsonl" in job.logs()


def test_a_prefix_of_another_job_is_a_conflict_and_is_not_changed(bench: Bench) -> None:
    owner = bench.put("taken/owner.json", '{"namespace":"other","name":"other","uid":"1","configSHA256":"x"}')
    before = bench.read(owner)
    job = bench.apply("conflict", output={"uri": bench.uri("taken")})
    assert "other/other" in failed(job, "OutputConflict")["message"]
    assert bench.read(owner) == before
    assert bench.keys(bench.uri("taken")) == ["owner.json"]


def test_a_prefix_with_unclaimed_files_is_a_conflict(bench: Bench) -> None:
    bench.put("holiday/photo.jpg", b"mine")
    failed(bench.apply("holiday", output={"uri": bench.uri("holiday")}), "OutputConflict")
    assert bench.keys(bench.uri("holiday")) == ["photo.jpg"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"hyperparameters": {"epochs": 3}}, 'unknown field "spec.hyperparameters.epochs"'),
        ({"objective": "Telepathy"}, "spec.objective"),
        ({"hyperparameters": {"numTrainEpochs": 1, "maxSteps": 1}}, "at most one of numTrainEpochs and maxSteps"),
        ({"tuning": {"method": "Full", "quantization": {}}}, "quantization needs method QLoRA or Auto"),
        ({"model": {"uri": "s3://models/../secrets"}}, "spec.model.uri"),
    ],
)
def test_the_api_server_refuses_a_wrong_spec_with_path_and_fix(bench: Bench, spec: dict[str, Any], words: str) -> None:
    done = kubectl("apply", "-f", "-", stdin=yaml.safe_dump(bench.manifest("wrong", **spec)), check=False)
    assert done.returncode != 0
    assert words in done.stderr


def test_a_fixed_block_cannot_change_and_the_job_continues(bench: Bench) -> None:
    job = bench.apply("fixed")
    changed = bench.manifest("fixed", objective="Instruction")
    done = kubectl("apply", "-f", "-", stdin=yaml.safe_dump(changed), check=False)
    assert "objective is fixed when the job is created" in done.stderr
    job.delete()


def test_a_metadata_address_as_storage_is_forbidden_and_makes_no_job(bench: Bench) -> None:
    job = bench.apply("metadata", storage={"endpoint": "http://169.254.169.254"})
    wait_for("a refusal", lambda: job.condition("Accepted").get("status") == "False", state=job.status)
    assert job.condition("Accepted")["reason"] == "Forbidden"
    assert job.jobs("preflight") == []


def test_a_foreign_image_is_forbidden(bench: Bench) -> None:
    job = bench.apply("foreign", trainer={"image": "example.com/miner:latest"})
    wait_for("a refusal", lambda: job.condition("Accepted").get("reason") == "Forbidden", state=job.status)
    assert job.jobs("preflight") == []


def test_a_missing_secret_is_named_while_the_pod_waits_and_the_job_recovers(bench: Bench) -> None:
    storage = bench.manifest("x")["spec"]["storage"] | {"credentialsSecretRef": {"name": "late"}}
    uri = bench.put("late.jsonl", jsonl(colour_rows(60)))
    job = bench.apply("late-secret", storage=storage, dataset={"train": {"uri": uri}, "validationSplitPercent": 10})
    wait_for("the missing Secret in the message", lambda: "late" in job.status().get("message", ""), state=job.status)
    known = yaml.safe_load(kubectl("get", "secret", "s3", "-n", bench.namespace, "-o", "yaml").stdout)
    known["metadata"] = {"name": "late", "namespace": bench.namespace}
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump(known))
    job.wait("Validated")
    job.delete()
