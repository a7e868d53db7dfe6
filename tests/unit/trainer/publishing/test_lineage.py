import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.handoff import Outcome, Report
from finetune_api.spec import JobLineage
from finetune_api.status import PublishedJob
from finetune_trainer.publishing.lineage import (
    build_lineage,
    combined_sha256,
    digest_folder,
    library_versions,
    status_lineage,
)


def test_a_folders_digest_depends_on_names_and_contents_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "b").write_text("b")
        (tmp_path / name / "a").write_text("a")
    one, two = digest_folder(tmp_path / "one"), digest_folder(tmp_path / "two")
    assert one == two == {"a": hashlib.sha256(b"a").hexdigest(), "sub/b": hashlib.sha256(b"b").hexdigest()}
    (tmp_path / "two" / "a").rename(tmp_path / "two" / "c")
    assert combined_sha256(one) != combined_sha256(digest_folder(tmp_path / "two"))


def test_the_combined_digest_can_be_repeated_with_sha256sum() -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    assert (
        combined_sha256({"b": digest, "a": digest})
        == hashlib.sha256(f"{digest}  a\n{digest}  b\n".encode()).hexdigest()
    )


def test_versions_are_told_without_importing_the_libraries() -> None:
    import sys

    before = set(sys.modules)
    versions = library_versions()
    assert {"python", "torch", "transformers", "trl", "peft"} <= versions.keys()
    assert not {"torch", "trl"} & (set(sys.modules) - before)


def test_lineage_holds_where_everything_came_from(job_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_TRAINER_IMAGE", "registry/trainer@sha256:1")
    config = job_config()
    report = Report(
        outcome=Outcome.PUBLISHED,
        reason="Published",
        message="",
        job_uid="uid-1",
        config_sha256=config.config_sha256,
        metrics={"eval_loss": 1.5},
        last_step=9,
    )
    content = build_lineage(
        config,
        report,
        model_files={"model.safetensors": "a" * 64},
        template_sha256="b" * 64,
        dataset={"sources": [{"uri": "s3://bucket/rows.jsonl", "sha256": "c" * 64}], "status": {"rows": 3}},
        device="CPU",
        config_file="spec: {}",
    )
    assert json.loads(json.dumps(content)) == content
    assert content["job"]["uid"] == "uid-1"
    assert content["baseModel"]["uri"] == "s3://bucket/model"
    assert content["baseModel"]["sha256"] == combined_sha256({"model.safetensors": "a" * 64})
    assert content["dataset"]["sources"][0]["sha256"] == "c" * 64
    assert content["trainer"]["image"] == "registry/trainer@sha256:1"
    assert (content["metrics"]["evalLoss"], content["lastStep"], content["chosenStep"]) == (1.5, 9, 9)
    assert content["configFile"]["sha256"] == hashlib.sha256(b"spec: {}").hexdigest()
    assert content["modelRegistry"] == {
        "name": "job",
        "uri": "s3://bucket/out/adapter",
        "model_format_name": "peft",
        "model_source_kind": "kubernetes",
        "model_source_class": "finetunejobs.finetune.dev",
        "model_source_group": "team",
        "model_source_name": "job",
        "model_source_id": "uid-1",
    }
    status = status_lineage(config, dataset_sha256="d" * 64, model_files={"model.safetensors": "a" * 64})
    assert status.base_model_sha256 == content["baseModel"]["sha256"]


def test_lineage_names_the_jobs_and_the_adapter_that_a_result_builds_on(job_config: Any) -> None:
    parent = PublishedJob(
        name="sft", uid="uid-0", objective="Chat", output_uri="s3://bucket/sft", manifest_sha256="e" * 64
    )
    config = job_config().model_copy(update={"parent": parent})
    config.spec.lineage = JobLineage(annotations={"ticket": "42"})
    status = status_lineage(config, dataset_sha256="d" * 64, initial_adapter_sha256="f" * 64)
    report = Report(outcome=Outcome.PUBLISHED, reason="", message="", job_uid="u", config_sha256="", lineage=status)
    content = build_lineage(
        config,
        report,
        model_files={},
        template_sha256="",
        dataset={},
        device="CPU",
        initial_adapter_uri="s3://bucket/sft/adapter",
    )
    assert content["parent"] == parent.model_dump(by_alias=True)
    assert content["initialAdapter"] == {"uri": "s3://bucket/sft/adapter", "sha256": "f" * 64}
    assert content["annotations"] == {"ticket": "42"}
    assert "rewardJob" not in content
