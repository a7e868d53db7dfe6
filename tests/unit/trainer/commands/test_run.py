"""`finetune-trainer run` of several jobs: the ones that it does not reach are named."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.handoff import JobConfig, Outcome, Report
from finetune_api.status import Artifacts
from finetune_trainer.commands import run
from finetune_trainer.entrypoints.termination import RunState
from finetune_trainer.sigterm import StopFlag


def make_job(name: str) -> dict[str, Any]:
    spec = {
        "objective": "Chat",
        "model": {"uri": "s3://bucket/model"},
        "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}},
        "output": {"uri": f"s3://bucket/{name}"},
    }
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}, "spec": spec}


def test_the_jobs_after_one_that_does_not_meet_its_gate_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = []

    def end(_state: RunState, config: JobConfig, *_: Any) -> Report:
        reached.append(config.name)
        is_met = config.name == "first"
        outcome = Outcome.PUBLISHED if is_met else Outcome.GATE_NOT_MET
        proof = Artifacts(manifest_sha256="a" * 64)
        return Report(outcome=outcome, reason="", message="", job_uid=config.uid, config_sha256="", artifacts=proof)

    monkeypatch.setattr(run, "_run_one", end)
    manifest = tmp_path / "jobs.yaml"
    manifest.write_text(yaml.safe_dump_all(map(make_job, ("first", "second", "third", "fourth"))))
    done = run.run_jobs(
        RunState(StopFlag()), manifest, tmp_path / "out", run.RunOptions(), workspace=tmp_path / "workspace"
    )
    assert (reached, done.report.outcome) == (["first", "second"], Outcome.GATE_NOT_MET)
    assert done.lines == [
        "third: was not run, because second did not meet its gate",
        "fourth: was not run, because second did not meet its gate",
    ]
