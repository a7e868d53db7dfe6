"""Which jobs a local run can build on, and in which order they run."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.handoff import ExitCode, JobConfig, Manifest, Outcome, Report
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Resolved
from finetune_trainer.commands.local_jobs import add_references, parse_finished, sort_jobs
from finetune_trainer.config.resolved_manifest import config_yaml
from finetune_trainer.errors import TrainerError

SPEC: dict[str, Any] = {
    "objective": "Chat",
    "model": {"uri": "s3://bucket/model"},
    "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}},
}


def make_job(name: str, parent: str | None = None, **blocks: Any) -> JobConfig:
    spec = SPEC | {"output": {"uri": f"s3://bucket/{name}"}} | blocks
    if parent:
        spec["lineage"] = {"parentRef": {"name": parent}}
    uid = f"uid-of-{name}"
    return JobConfig(
        namespace="default", name=name, uid=uid, config_sha256="0" * 64, spec=FineTuneJobSpec.model_validate(spec)
    )


def make_policy(name: str, parent: str, judge: str) -> JobConfig:
    return make_job(name, parent, objective="RLHF", rlhf={"rewardModel": {"jobRef": {"name": judge}}})


def order(*jobs: JobConfig, finished: tuple[str, ...] = ()) -> list[str]:
    return [job.name for job in sort_jobs(jobs, finished)]


def refusal(*jobs: JobConfig) -> str:
    with pytest.raises(TrainerError) as caught:
        sort_jobs(jobs, ())
    assert caught.value.code is ExitCode.INVALID_CONFIG
    return caught.value.message


def leave_result(folder: Path, job: JobConfig) -> str:
    """Write what is read of a finished run; return the manifest's digest."""
    report = Report(outcome=Outcome.PUBLISHED, reason="", message="", job_uid=job.uid, config_sha256="0" * 64)
    manifest = Manifest(
        namespace="default", name=job.name, uid=job.uid, config_sha256="0" * 64, files=[], result=report
    )
    text = manifest.model_dump_json(by_alias=True)
    folder.mkdir()
    (folder / "manifest.json").write_text(text)
    (folder / "finetune_config.yaml").write_text(config_yaml(job, Resolved()))
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_job_runs_after_its_parents_in_any_order_of_the_file() -> None:
    policy, judge, sft = make_policy("policy", "sft", "judge"), make_job("judge", "sft"), make_job("sft")
    assert order(policy, judge, sft) == order(sft, judge, policy) == ["sft", "judge", "policy"]


def test_jobs_without_parents_run_in_the_order_of_the_file() -> None:
    assert order(make_job("b"), make_job("a"), make_job("c")) == ["b", "a", "c"]


def test_a_finished_job_need_not_be_run() -> None:
    assert order(make_job("dpo", "sft"), finished=("sft",)) == ["dpo"]


def test_a_missing_parent_is_refused_with_both_ways_to_name_it() -> None:
    told = refusal(make_job("dpo", "sft"))
    assert "dpo: lineage.parentRef names sft" in told
    assert "into the same file" in told
    assert "--job sft=DIR" in told


def test_a_missing_reward_job_is_refused_by_its_field() -> None:
    told = refusal(make_policy("policy", "sft", "judge"), make_job("sft"))
    assert "rlhf.rewardModel.jobRef names judge" in told


def test_jobs_that_wait_for_each_other_are_refused_by_name() -> None:
    told = refusal(make_job("a", "b"), make_job("b", "a"), make_job("c"))
    assert told == "these jobs wait for each other: a, b"


def test_a_finished_result_is_handed_to_its_child_as_the_operator_would(tmp_path: Path) -> None:
    digest = leave_result(tmp_path / "out", make_job("sft"))
    found = parse_finished([f"sft={tmp_path / 'out'}"])
    assert found["sft"].folder == tmp_path / "out"
    child = add_references(make_job("dpo", "sft"), {name: one.job for name, one in found.items()})
    assert json.loads(child.model_dump_json(by_alias=True))["parent"] == {
        "name": "sft",
        "uid": "uid-of-sft",
        "objective": "Chat",
        "outputURI": "s3://bucket/sft",
        "manifestSHA256": digest,
    }


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("sft", "write NAME=DIR"),
        ("=out", "write NAME=DIR"),
        ("sft=nowhere", "nowhere does not contain a finished result"),
        ("other=out", "the result in out belongs to sft"),
    ],
)
def test_a_folder_that_is_not_that_jobs_result_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    leave_result(tmp_path / "out", make_job("sft"))
    with pytest.raises(TrainerError, match=told) as caught:
        parse_finished([option])
    assert caught.value.code is ExitCode.INVALID_CONFIG
