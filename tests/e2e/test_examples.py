"""The manifests of crds/examples, applied as they are but for namespace, hub and size: a tiny model has their names."""

import copy
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_pod import start_hub
from rows import colour_rows, jsonl, judged_rows, preference_rows, prompt_rows, sum_rows, support_csv, text_rows
from tiny_model import make_tiny_model
from user import Bench, Job, kubectl, secret

EXAMPLES = Path(__file__).resolve().parents[2] / "crds" / "examples"
BUCKET = "finetune-examples"
MODELS = ("models/HuggingFaceTB/SmolLM2-135M-Instruct", "models/HuggingFaceTB/SmolLM2-135M")
FILES = (
    "instruction", "chat", "blend", "domain-adaptation", "kto", "sft-then-dpo", "sft-then-evaluate",
    "sft-reward-rlhf", "rlhf-with-answers",
)  # fmt: skip
RATE = 5e-3
"""A tiny random model needs larger steps than a real one."""


@pytest.fixture(scope="module")
def endpoint(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hub's address; the rows that the examples name are in their bucket."""
    model = make_tiny_model(tmp_path_factory.mktemp("hub") / "model")
    with suppress(bench.s3.exceptions.BucketAlreadyOwnedByYou):  # of tests that ran before on this cluster
        bench.s3.create_bucket(Bucket=BUCKET)
    for key, body in {
        "support.csv": support_csv(200),
        "conversations/1.jsonl": jsonl(colour_rows(150)),
        "conversations/2.jsonl": jsonl(colour_rows(300)[150:]),
        "text/fruit.jsonl": jsonl(text_rows(200)),
        "preferred.jsonl": jsonl(preference_rows(500)[300:]),
        "thumbs.jsonl": jsonl(judged_rows(200)),
        "preferences.jsonl": jsonl(preference_rows(200)),
        "prompts.jsonl": jsonl(prompt_rows(100)),
        "sums.jsonl": jsonl(sum_rows(100)),
    }.items():
        bench.s3.put_object(Bucket=BUCKET, Key=f"data/{key}", Body=body.encode())
    for page in bench.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="results/"):
        for item in page.get("Contents", []):
            bench.s3.delete_object(Bucket=BUCKET, Key=item["Key"])
    keys = secret(
        bench.namespace, "s3-credentials", os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    )
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump(keys))
    return start_hub(bench.namespace, dict.fromkeys(MODELS, model))


@pytest.fixture(scope="module")
def jobs(bench: Bench, endpoint: str) -> dict[str, dict[str, Any]]:
    """Every job of every example, all applied at once, by name and with its final status."""
    documents = [
        document for name in FILES for document in yaml.safe_load_all((EXAMPLES / f"{name}.yaml").read_text("utf-8"))
    ]
    adapted = [adapt(document, bench.namespace, endpoint) for document in documents]
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(adapted))
    return {
        document["metadata"]["name"]: Job(bench, document["metadata"]["name"]).wait("Complete", seconds=1500)
        for document in adapted
    }


def adapt(document: dict[str, Any], namespace: str, endpoint: str) -> dict[str, Any]:
    """The same job for the tiny model on this cluster."""
    job = copy.deepcopy(document)
    job["metadata"]["namespace"] = namespace
    spec = job["spec"]
    spec["hub"] = {"endpoint": endpoint}
    spec["hyperparameters"].pop("numTrainEpochs", None)
    spec["hyperparameters"]["maxLength"] = 128
    if spec.get("mode") != "Evaluate":
        spec["hyperparameters"] |= {"learningRate": RATE, "maxSteps": 20}
        if "rlhf" not in spec:  # a policy's batch is made of groups of answers
            spec["hyperparameters"] |= {"perDeviceTrainBatchSize": 4, "gradientAccumulationSteps": 1}
        spec["evaluation"] = spec.get("evaluation", {}) | {"steps": 10}
    spec["resources"] = {"gpusPerNode": 1, "requests": {"cpu": "500m", "memory": "1Gi"}}
    return job


def test_every_example_is_tried() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} - {"demo"} == set(FILES)


def test_every_job_of_every_example_completes_and_improves(jobs: dict[str, dict[str, Any]]) -> None:
    for name, status in jobs.items():
        metrics = status["metrics"]
        if "evalLoss" in metrics:
            assert metrics["evalLoss"] < metrics["baselineEvalLoss"], name
        else:
            assert "evalReward" in metrics, name


def test_models_come_from_the_hub_by_commit(jobs: dict[str, dict[str, Any]]) -> None:
    commits = {status["lineage"]["baseModelRevision"] for status in jobs.values()}
    assert all(len(commit) == 40 for commit in commits)


@pytest.mark.parametrize(("child", "parent"), [("assistant-dpo", "assistant-sft"), ("reward", "policy-sft")])
def test_a_child_starts_after_its_parent_and_names_its_manifest(
    jobs: dict[str, dict[str, Any]], child: str, parent: str
) -> None:
    lineage = jobs[child]["lineage"]
    assert lineage["parent"]["name"] == parent
    assert lineage["parent"]["manifestSHA256"] == jobs[parent]["artifacts"]["manifestSHA256"]
    assert jobs[child]["startTime"] >= jobs[parent]["completionTime"]


def test_rlhf_names_both_jobs_that_it_builds_on(jobs: dict[str, dict[str, Any]]) -> None:
    lineage = jobs["policy-rlhf"]["lineage"]
    assert (lineage["parent"]["name"], lineage["rewardJob"]["name"]) == ("policy-sft", "reward")


def test_dpo_after_sft_is_held_to_what_sft_taught(jobs: dict[str, dict[str, Any]]) -> None:
    metrics = jobs["assistant-dpo"]["metrics"]
    assert metrics["baselineEvalLoss"] == pytest.approx(0.693, abs=0.01)
    assert metrics["rewardMargin"] > 0


def test_all_files_of_a_prefix_are_read_and_columns_are_renamed(jobs: dict[str, dict[str, Any]]) -> None:
    assert jobs["chat"]["dataset"]["rows"] == 300
    assert jobs["support-answers"]["dataset"]["acceptedRows"] == 200


def test_a_blend_has_its_proportions_by_trained_tokens(jobs: dict[str, dict[str, Any]]) -> None:
    sources = jobs["blend"]["dataset"]["sources"]
    total = sum(one["trainedTokens"] for one in sources)
    assert [one["trainedTokens"] / total for one in sources] == pytest.approx([0.5, 0.25, 0.25], abs=0.02)
    assert sources[1]["rejectedRowsByCode"] == {"DUPLICATE": 200}


def test_what_tracking_asks_for_is_published_with_the_result(bench: Bench, jobs: dict[str, dict[str, Any]]) -> None:
    prefix = jobs["chat"]["artifacts"]["uri"].removeprefix(f"s3://{BUCKET}/").rstrip("/")
    listed = bench.s3.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/")["Contents"]
    folders = {item["Key"].removeprefix(f"{prefix}/").split("/")[0] for item in listed}
    assert {"tensorboard", "wandb", "openlineage.jsonl"} <= folders


@pytest.mark.parametrize(
    ("name", "ancestors"),
    [("assistant-dpo", ["base", "parent"]), ("policy-rlhf", ["base", "parent", "reward job"])],
)
def test_a_chain_of_jobs_is_verified_back_to_its_base(
    jobs: dict[str, dict[str, Any]], name: str, ancestors: list[str]
) -> None:
    command = [sys.executable, "-m", "finetune_trainer", "verify", "--json", jobs[name]["artifacts"]["uri"]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    chain = json.loads(done.stdout)["chain"]
    assert sorted({link["role"] for link in chain}) == ancestors
    assert len({link["sha256"] for link in chain if link["role"] == "base"}) == 1
