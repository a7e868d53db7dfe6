"""Examples of each shape: rows from a prefix of files, and a job that builds on another."""

from typing import Any

import examples
import pytest
from user import Bench


@pytest.fixture(scope="module")
def jobs(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    endpoint = examples.upload(bench, tmp_path_factory.mktemp("hub") / "model")
    return examples.run(bench, endpoint, examples.THIN_SLICE)


def test_every_example_is_tried() -> None:
    tried = {*examples.THIN_SLICE, *examples.OTHERS}
    assert {path.stem for path in examples.EXAMPLES.glob("*.yaml")} - {"demo"} == tried


def test_every_job_completes_and_improves(jobs: dict[str, dict[str, Any]]) -> None:
    examples.require_improvement(jobs)


def test_models_come_from_the_hub_by_commit(jobs: dict[str, dict[str, Any]]) -> None:
    commits = {status["lineage"]["baseModelRevision"] for status in jobs.values()}
    assert all(len(commit) == 40 for commit in commits)


def test_a_child_starts_after_its_parent_and_names_its_manifest(jobs: dict[str, dict[str, Any]]) -> None:
    lineage = jobs["assistant-dpo"]["lineage"]
    assert lineage["parent"]["name"] == "assistant-sft"
    assert lineage["parent"]["manifestSHA256"] == jobs["assistant-sft"]["artifacts"]["manifestSHA256"]
    assert jobs["assistant-dpo"]["startTime"] >= jobs["assistant-sft"]["completionTime"]


def test_dpo_after_sft_is_held_to_what_sft_taught(jobs: dict[str, dict[str, Any]]) -> None:
    metrics = jobs["assistant-dpo"]["metrics"]
    assert metrics["baselineEvalLoss"] == pytest.approx(0.693, abs=0.01)
    assert metrics["rewardMargin"] > 0


def test_all_files_of_a_prefix_are_read(jobs: dict[str, dict[str, Any]]) -> None:
    assert jobs["chat"]["dataset"]["rows"] == 300


def test_what_tracking_asks_for_is_published_with_the_result(bench: Bench, jobs: dict[str, dict[str, Any]]) -> None:
    prefix = jobs["chat"]["artifacts"]["uri"].removeprefix(f"s3://{examples.BUCKET}/").rstrip("/")
    listed = bench.s3.list_objects_v2(Bucket=examples.BUCKET, Prefix=f"{prefix}/")["Contents"]
    folders = {item["Key"].removeprefix(f"{prefix}/").split("/")[0] for item in listed}
    assert {"tensorboard", "wandb", "openlineage.jsonl"} <= folders


def test_a_chain_of_jobs_is_verified_back_to_its_base(jobs: dict[str, dict[str, Any]]) -> None:
    assert examples.verify(jobs["assistant-dpo"]["artifacts"]["uri"]) == ["base", "parent"]
