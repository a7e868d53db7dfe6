"""The manifests of crds/examples, applied as they are but for namespace, hub and size: a tiny model has their names."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from hub_pod import start_hub
from rows import (
    colour_rows,
    jsonl,
    judged_rows,
    preference_rows,
    prompt_rows,
    sum_rows,
    support_csv,
    text_rows,
    ticket_rows,
)
from tiny_model import make_tiny_model
from user import Bench, Job, kubectl, secret

EXAMPLES = Path(__file__).resolve().parents[2] / "crds" / "examples"
BUCKET = "finetune-examples"
MODELS = ("models/HuggingFaceTB/SmolLM2-135M-Instruct", "models/HuggingFaceTB/SmolLM2-135M")
TEACHER = "models/HuggingFaceTB/SmolLM2-360M-Instruct"
THIN_SLICE = ("chat", "sft-then-dpo")
OTHERS = (
    "blend",
    "classification",
    "instruction",
    "domain-adaptation",
    "kto",
    "sft-then-evaluate",
    "sft-reward-rlhf",
    "rlhf-with-answers",
    "distillation",
)
RATE = 5e-3
"""A tiny random model needs larger steps than a real one."""


def upload(bench: Bench, folder: Path) -> str:
    """The hub's address; the rows that the examples name are in their bucket."""
    model = make_tiny_model(folder)
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
        "tickets.jsonl": jsonl(ticket_rows(200)),
    }.items():
        bench.s3.put_object(Bucket=BUCKET, Key=f"data/{key}", Body=body.encode())
    for page in bench.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="results/"):
        for item in page.get("Contents", []):
            bench.s3.delete_object(Bucket=BUCKET, Key=item["Key"])
    keys = secret(
        bench.namespace, "s3-credentials", os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    )
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump(keys))
    teacher = make_tiny_model(folder.with_name("teacher"), seed=8)
    return start_hub(bench.namespace, dict.fromkeys(MODELS, model) | {TEACHER: teacher})


def run(bench: Bench, endpoint: str, files: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Every job of these examples, all applied at once, by name and with its final status."""
    documents = [
        document for name in files for document in yaml.safe_load_all((EXAMPLES / f"{name}.yaml").read_text("utf-8"))
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
    if "answers" in spec.get("evaluation", {}):
        spec["evaluation"]["gate"] = {"minCorrect": 0}  # a tiny random model learns no class in so few steps
    spec["resources"] = {"gpusPerNode": 1, "requests": {"cpu": "500m", "memory": "1Gi"}}
    return job


def require_improvement(jobs: dict[str, dict[str, Any]]) -> None:
    """Every job lowered its loss, or has measured its reward."""
    for name, status in jobs.items():
        metrics = status["metrics"]
        if "evalLoss" in metrics:
            assert metrics["evalLoss"] < metrics["baselineEvalLoss"], name
        else:
            assert "evalReward" in metrics, name


def verify(uri: str) -> list[str]:
    """The roles of all links of the chain that `finetune-trainer verify` verified."""
    command = [sys.executable, "-m", "finetune_trainer", "verify", "--json", uri]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    chain = json.loads(done.stdout)["chain"]
    assert len({link["sha256"] for link in chain if link["role"] == "base"}) == 1
    return sorted({link["role"] for link in chain})
