"""The documents that operator and trainer hand each other."""

import json

import pytest
from pydantic import ValidationError

from finetune_api.handoff import TERMINATION_LIMIT_BYTES, ExitCode, Outcome, Report, config_sha256
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Artifacts, DatasetStatus, Lineage, Metrics, Resolved

BASE = {
    "objective": "Chat",
    "model": {"uri": "s3://models/base"},
    "dataset": {"train": {"uri": "s3://data/train.jsonl"}},
    "output": {"uri": "s3://models/out"},
}


def spec(**changes: object) -> FineTuneJobSpec:
    return FineTuneJobSpec.model_validate(BASE | changes)


def test_the_digest_covers_what_is_fixed_at_creation_and_nothing_else() -> None:
    assert config_sha256(spec()) != config_sha256(spec(objective="Instruction"))
    assert config_sha256(spec()) == config_sha256(spec(backoffLimit=9, resources={"gpusPerNode": 0}))


def test_the_digest_is_the_same_whether_a_default_is_written_or_not() -> None:
    assert config_sha256(spec()) == config_sha256(spec(tuning={"method": "Auto"}, hyperparameters={"seed": 42}))


def test_only_an_adapter_on_experts_changes_the_digest_of_a_job_that_never_asked_for_one() -> None:
    def digest(**lora: object) -> str:
        return config_sha256(spec(tuning={"lora": {"rank": 8} | lora}))

    assert digest() == digest(targetExperts=False) == digest(targetExperts=None)
    assert digest() != digest(targetExperts=True)


def test_a_job_that_sets_no_new_field_is_understood_by_an_older_trainer() -> None:
    """A trainer refuses fields of the spec that it does not know, and a job keeps its first image."""
    resources = spec().model_dump(mode="json", by_alias=True, exclude_none=True)["resources"]
    assert resources.keys() == {"numNodes", "gpusPerNode", "gpuResourceName"}
    trainer = spec(trainer={}).model_dump(mode="json", by_alias=True, exclude_none=True)["trainer"]
    assert trainer.keys() == {"imagePullPolicy"}
    tuning = spec(tuning={"lora": {"rank": 8}}).model_dump(mode="json", by_alias=True, exclude_none=True)["tuning"]
    assert tuning["lora"] == {"rank": 8}


def test_exit_codes_read_as_reasons() -> None:
    assert [ExitCode.DATASET_UNUSABLE.reason, ExitCode.GPU_OUT_OF_MEMORY.reason] == [
        "DatasetUnusable",
        "GPUOutOfMemory",
    ]


def test_a_report_with_everything_at_its_longest_still_fits_the_termination_message() -> None:
    report = Report(
        outcome=Outcome.FAILED,
        reason="R" * 64,
        message="é" * 1024,
        job_uid="u" * 36,
        config_sha256="c" * 64,
        dataset=DatasetStatus(rejected_rows_by_code={f"CODE_{'X' * 40}_{n}": 10**9 for n in range(64)}),
        resolved=Resolved(target_modules=[f"module_{'x' * 50}_{n}" for n in range(64)]),
        lineage=Lineage(library_versions={f"package-{n}": "1.2.3" for n in range(32)}),
        metrics=Metrics(eval_loss=1.0),
    )
    text = report.to_termination_message()
    assert len(text.encode()) <= TERMINATION_LIMIT_BYTES
    assert Report.model_validate_json(text).job_uid == "u" * 36


def test_the_number_of_kept_checkpoints_is_part_of_the_digest_and_the_rest_of_the_block_is_not() -> None:
    assert config_sha256(spec(checkpoint={"keep": 2})) != config_sha256(spec())
    assert config_sha256(spec(checkpoint={"keep": 0, "steps": 5})) == config_sha256(spec())


def test_long_patterns_are_left_out_of_a_report_and_the_other_settings_stay() -> None:
    patterns = {f"{n:02}{'x' * 250}": 8 for n in range(32)}
    resolved = Resolved(method="LoRA", lora_rank=16, rank_pattern=patterns, alpha_pattern={"q_proj": 4})
    report = Report(
        outcome=Outcome.VALIDATED, reason="Validated", message="m", job_uid="u", config_sha256="c", resolved=resolved
    )
    text = report.to_termination_message()
    assert len(text.encode()) <= TERMINATION_LIMIT_BYTES
    assert Report.model_validate_json(text).resolved == resolved.model_copy(update={"rank_pattern": None})


def test_with_long_uris_and_many_blocks_the_digests_of_manifest_and_lineage_stay() -> None:
    places = ("uri", "adapterURI", "mergedURI", "configURI", "reportURI", "lineageURI", "manifestURI")
    artifacts = {name: f"s3://bucket/{'x' * 300}/{name}" for name in places}
    report = Report(
        outcome=Outcome.PUBLISHED,
        reason="Published",
        message="m" * 1024,
        job_uid="u" * 36,
        config_sha256="c" * 64,
        lineage=Lineage(library_versions={f"package-{n}": "1.2.3" for n in range(32)}),
        artifacts=artifacts | {"manifestSHA256": "d" * 64, "lineageSHA256": "e" * 64},  # type: ignore[arg-type]
    )
    text = report.to_termination_message()
    assert len(text.encode()) <= TERMINATION_LIMIT_BYTES
    told = Report.model_validate_json(text).artifacts
    assert told
    assert (told.manifest_sha256, told.lineage_sha256) == ("d" * 64, "e" * 64)


def test_kept_checkpoints_stay_in_a_report_unless_they_are_too_long_for_it() -> None:
    def told(length: int) -> Artifacts | None:
        kept = [
            {"step": step, "epoch": 1.2345, "evalLoss": 1.2345, "uri": f"s3://bucket/{'x' * length}/step-{step:06d}"}
            for step in range(1000, 1010)
        ]
        artifacts = {"uri": "s3://bucket/out", "manifestSHA256": "d" * 64, "keptCheckpoints": kept}
        report = Report(
            outcome=Outcome.PUBLISHED, reason="Published", message="m" * 1024, job_uid="u" * 36, config_sha256="c" * 64,
            resolved=Resolved(target_modules=[f"module_{'x' * 50}_{n}" for n in range(64)]), artifacts=artifacts,
        )  # fmt: skip
        text = report.to_termination_message()
        assert len(text.encode()) <= TERMINATION_LIMIT_BYTES
        return Report.model_validate_json(text).artifacts

    few, many = told(80), told(900)
    assert few
    assert [one.step for one in few.kept_checkpoints or ()] == list(range(1000, 1010))
    assert many == Artifacts(uri="s3://bucket/out", manifest_sha256="d" * 64)


def test_a_long_report_of_pushes_keeps_that_they_succeeded_or_why_not() -> None:
    host = f"registry.example/{'x' * 230}"
    reference = f"{host}@sha256:{'a' * 64}"
    long = {"uri": "s3://bucket/" + "x" * 900, "manifestURI": "s3://bucket/" + "x" * 1000, "manifestSHA256": "d" * 64}
    pushed = {"repository": host, "tag": "v1", "reference": reference}
    more = {"adapterReference": reference, "ggufReference": reference}
    for oci, kept in ((pushed | more, pushed), (pushed | {"message": "m" * 900}, pushed | {"message": "m" * 200})):
        report = Report(
            outcome=Outcome.PUBLISHED, reason="Published", message="m" * 1024, job_uid="u" * 36, config_sha256="c" * 64,
            artifacts=long | {"oci": oci, "hub": {"repo": "a/b", "message": "h" * 1000}},  # type: ignore[arg-type]
        )  # fmt: skip
        text = report.to_termination_message()
        assert len(text.encode()) <= TERMINATION_LIMIT_BYTES
        found = Report.model_validate_json(text).artifacts
        assert found
        assert found.oci
        assert found.oci.model_dump(by_alias=True, exclude_none=True) == kept


def test_the_counts_by_source_stay_in_a_report_unless_they_are_too_long_for_it() -> None:
    def told(count: int, length: int) -> DatasetStatus | None:
        sources = [
            {"uri": f"s3://bucket/{'x' * length}/{n}", "sha256": "a" * 64, "rows": 10**6, "trainRows": 10**6}
            for n in range(count)
        ]
        report = Report(
            outcome=Outcome.VALIDATED, reason="Validated", message="m", job_uid="u", config_sha256="c",
            dataset=DatasetStatus.model_validate({"trainRows": 5, "sources": sources}), resolved=Resolved(seed=7),
        )  # fmt: skip
        text = report.to_termination_message()
        assert len(text.encode()) <= TERMINATION_LIMIT_BYTES
        found = Report.model_validate_json(text)
        assert found.resolved == Resolved(seed=7)
        return found.dataset

    few, many = told(8, 60), told(16, 900)
    assert few
    assert len(few.sources or ()) == 8
    assert many == DatasetStatus(train_rows=5)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_report_with_a_number_that_is_none_is_refused(number: str) -> None:
    body = json.dumps({"outcome": "Published", "reason": "x", "message": "", "jobUID": "u", "configSHA256": "c"})
    with pytest.raises(ValidationError):
        Report.model_validate_json(body[:-1] + f', "metrics": {{"evalLoss": {number}}}}}')


def test_prompts_are_part_of_the_digest_only_if_a_gate_judges_by_them() -> None:
    def digest(prompt: str, *, gate: object = None) -> str:
        evaluation = {"prompts": [{"prompt": prompt, "expected": "a"}]} | ({"gate": gate} if gate else {})
        return config_sha256(spec(evaluation=evaluation))

    assert digest("a?") == digest("b?") == config_sha256(spec())
    assert digest("a?", gate={"mustMatchExpected": True}) != digest("b?", gate={"mustMatchExpected": True})
    held_out = {"dataset": BASE["dataset"] | {"validationSplitPercent": 10}}  # type: ignore[operator]
    assert config_sha256(spec(**held_out, evaluation={"steps": 5})) != config_sha256(spec(**held_out))


def test_secrets_and_notes_are_not_part_of_the_digest() -> None:
    token = {"credentialsSecretRef": {"name": "token"}}
    source = {"uri": "hf://datasets/acme/rows"}
    plain = {"model": {"uri": "hf://acme/tiny"}, "dataset": {"train": source, "validation": source}}
    corrected = {
        "model": {"uri": "hf://acme/tiny"} | token,
        "dataset": {"train": source | token, "validation": source | token},
        "lineage": {"annotations": {"ticket": "5"}},
    }
    assert config_sha256(spec(**plain)) == config_sha256(spec(**corrected))
    parent = {"parentRef": {"name": "sft"}}
    assert config_sha256(spec(lineage=parent)) == config_sha256(spec(lineage=parent | corrected["lineage"]))
    assert config_sha256(spec(lineage=parent)) != config_sha256(spec())
    assert config_sha256(spec(**plain)) != config_sha256(spec(**plain | {"model": {"uri": "hf://acme/other"}}))
