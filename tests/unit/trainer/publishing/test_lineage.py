import hashlib
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from finetune_api.defaults import Facts, resolve
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


def test_versions_are_read_without_importing_the_libraries() -> None:
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


def build(config: Any, **changes: Any) -> dict[str, Any]:
    report = Report(outcome=Outcome.PUBLISHED, reason="", message="", job_uid="u", config_sha256="")
    given = {"model_files": {}, "template_sha256": "", "dataset": {}, "device": "CPU"}
    outcome = {name: changes.pop(name) for name in ("resolved", "outcome") if name in changes}
    return build_lineage(config, report.model_copy(update=outcome), **(given | changes))  # type: ignore[arg-type]


def test_what_a_run_did_not_measure_is_empty(job_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_TRAINER_IMAGE", "")
    config = job_config()
    config.spec.lineage = JobLineage()
    content = build(config)
    assert (content["resolved"], content["metrics"]) == ({}, {})
    assert (content["trainer"]["image"], content["earlyStopping"], content["lastStep"]) == (None, None, None)
    assert not {"annotations", "initialAdapter", "parent"} & content.keys()


def test_a_run_started_as_long_before_its_end_as_it_took(job_config: Any) -> None:
    content = build(job_config(), seconds=90.0)
    started, completed = (datetime.fromisoformat(content[name]) for name in ("startedTime", "completedTime"))
    assert completed - started == timedelta(seconds=90)
    assert content["completedTime"].endswith("Z")
    assert len(content["completedTime"]) == len("2026-01-01T00:00:00.000Z")
    at_once = build(job_config())
    assert at_once["startedTime"] == at_once["completedTime"]


def test_a_full_model_is_registered_with_its_merged_folder(job_config: Any) -> None:
    spec = job_config({"tuning": {"method": "Full"}}).spec
    resolved = resolve(spec, Facts(parameters=22, train_rows=80, validation_rows=20))
    entry = build(job_config(), resolved=resolved)["modelRegistry"]
    assert (entry["uri"], entry["model_format_name"]) == ("s3://bucket/out/merged", "safetensors")


def test_a_model_that_did_not_meet_its_gate_is_not_registered(job_config: Any) -> None:
    assert "modelRegistry" not in build(job_config(), outcome=Outcome.GATE_NOT_MET)


def test_the_status_names_versions_and_image_only_if_they_are_known(
    job_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_TRAINER_IMAGE", "")
    before = status_lineage(job_config(), dataset_sha256="d" * 64, trained=False)
    assert (before.library_versions, before.base_model_sha256, before.trainer_image) == (None, None, None)
    monkeypatch.setenv("FINETUNE_TRAINER_IMAGE", "registry/trainer")
    after = status_lineage(job_config(), dataset_sha256="d" * 64)
    assert (after.library_versions, after.trainer_image) == (library_versions(), "registry/trainer")


def test_digests_report_the_bytes_that_were_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    counts: list[int] = []
    digest_folder(tmp_path, counts.append)
    assert sum(counts) == 3


def test_lineage_has_uri_digest_and_share_of_each_source(job_config: Any) -> None:
    config = job_config()
    report = Report(
        outcome=Outcome.PUBLISHED, reason="Published", message="", job_uid="u", config_sha256=config.config_sha256
    )
    blend = [{"uri": "s3://bucket/a", "sha256": "a" * 64, "shareOfTrainedTokens": 0.75}]

    def dataset(summary: dict[str, Any]) -> Any:
        return build_lineage(
            config, report, model_files={}, template_sha256="t", dataset=summary, device="cpu"
        )["dataset"]  # fmt: skip

    assert dataset({"blend": blend})["blend"] == blend
    assert "blend" not in dataset({})
