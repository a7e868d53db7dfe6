import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_api.handoff import TERMINATION_LIMIT_BYTES, ExitCode, Outcome, Report
from finetune_api.output import HubPush, RegistryPush
from finetune_api.status import Artifacts, DatasetStatus, Lineage, Metrics
from finetune_api.text.printable import printable
from finetune_trainer.entrypoints.termination import RunState, termination_message
from finetune_trainer.errors import KeysRefused, Stopped, StorageUnavailable, TrainerError, WorkspaceFull, one_line
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.sigterm import StopFlag

TEXT = st.text(st.characters(blacklist_categories=["Cs"]))
URI = st.text(st.characters(blacklist_categories=["Cs"]), max_size=1100).map(printable).map(lambda text: text[:1100])
REPORTS = st.builds(
    Report,
    outcome=st.sampled_from(Outcome),
    reason=st.just("DatasetUnusable"),
    message=TEXT.map(lambda text: one_line(text * 50)),
    job_uid=st.uuids().map(str),
    config_sha256=st.just("a" * 64),
    metrics=st.none() | st.builds(Metrics, train_loss=st.floats(0, 10)),
    dataset=st.none()
    | st.builds(
        DatasetStatus,
        rows=st.integers(0, 10**9),
        rejected_rows_by_code=st.dictionaries(
            st.text("ABC_", min_size=1, max_size=64), st.integers(0, 10**9), max_size=60
        ),
    ),
    lineage=st.none() | st.builds(Lineage, base_model_uri=URI, trainer_image=st.text(max_size=1000)),
    artifacts=st.none()
    | st.builds(
        Artifacts, uri=URI, adapter_uri=URI, merged_uri=URI, manifest_uri=URI, manifest_sha256=st.just("b" * 64)
    ),
)


@settings(max_examples=200, suppress_health_check=list(HealthCheck), deadline=None)
@given(report=REPORTS)
def test_a_termination_message_is_always_small_and_always_a_report(report: Report) -> None:
    message = termination_message(report)
    assert len(message.encode()) <= TERMINATION_LIMIT_BYTES
    read = Report.model_validate_json(message)
    assert (read.job_uid, read.config_sha256, read.outcome) == (report.job_uid, report.config_sha256, report.outcome)
    if report.artifacts:
        assert read.artifacts is not None
        assert read.artifacts.manifest_sha256 == report.artifacts.manifest_sha256


def test_the_longest_uris_still_leave_the_proof_of_success() -> None:
    uri = "s3://bucket/" + "ä" * 1000
    push = HubPush(repo="team/bot", commit="c" * 40, url="https://hub/" + "x" * 900)
    image = RegistryPush(repository="r.example/bot", tag="v1", reference=f"r.example/bot@sha256:{'a' * 64}")
    report = Report(
        outcome=Outcome.PUBLISHED,
        reason="Published",
        message="done",
        job_uid="u",
        config_sha256="c",
        artifacts=Artifacts(uri=uri, adapter_uri=uri, manifest_uri=uri, manifest_sha256="d" * 64, hub=push, oci=image),
    )
    assert json.loads(termination_message(report))["artifacts"] == {
        "manifestSHA256": "d" * 64,
        "hub": push.model_dump(exclude_none=True),
        "oci": image.model_dump(exclude_none=True),
    }


def test_a_long_message_keeps_cause_and_fix() -> None:
    message = one_line("the cause\n" + "x" * 5000 + "\nthe fix", limit=100)
    assert len(message) <= 100
    assert message.startswith("the cause")
    assert message.endswith("the fix")


@pytest.fixture
def state(tmp_path: Path, job_config: Any) -> RunState:
    log = tmp_path / "termination-log"
    log.touch()
    return RunState(StopFlag(), config=job_config(), termination_log=log)


def written(state: RunState) -> Report:
    assert state.termination_log is not None
    return Report.model_validate_json(state.termination_log.read_text())


def test_a_failure_echoes_the_job_and_what_was_seen_of_the_run(state: RunState) -> None:
    import io

    state.reporter = Reporter("uid-1", out=io.StringIO())
    state.reporter.update(progress={"step": 7, "total_steps": 9}, metrics={"train_loss": 2.5})
    code = state.fail(TrainerError(ExitCode.DIVERGED, "the loss is not finite: lower learningRate"))
    report = written(state)
    assert code == 76
    assert (report.outcome, report.reason, report.last_step) == (Outcome.FAILED, "Diverged", 7)
    assert report.metrics is not None
    assert report.metrics.train_loss == 2.5
    assert state.config is not None
    assert (report.job_uid, report.config_sha256) == ("uid-1", state.config.config_sha256)


def test_a_stop_is_reported_as_preempted(state: RunState) -> None:
    assert state.fail(Stopped()) == 75
    assert written(state).outcome is Outcome.PREEMPTED


def test_storage_that_vanishes_after_sigterm_is_the_same_stop(state: RunState) -> None:
    state.stop.set()
    assert state.fail(StorageUnavailable("gone")) == 75


def test_keys_that_are_refused_during_sigterm_are_judged_by_the_next_run(state: RunState) -> None:
    """They may be about to be replaced; a failure would be permanent."""
    assert state.fail(KeysRefused("the access key is unknown")) == 77
    state.stop.set()
    assert state.fail(KeysRefused("the access key is unknown")) == 75


def test_storage_that_vanishes_without_sigterm_is_a_failure(state: RunState) -> None:
    assert state.fail(StorageUnavailable("gone")) == 69


def test_without_a_termination_log_nothing_is_written(state: RunState, tmp_path: Path) -> None:
    state.termination_log = tmp_path / "absent"
    state.fail(Stopped())
    assert not state.termination_log.exists()


def test_a_full_workspace_is_reported_under_its_own_reason(tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    state = RunState(StopFlag(), termination_log=log)
    code = state.fail(WorkspaceFull(OSError(28, "No space left on device", "/workspace/checkpoint/optimizer.pt")))
    report = Report.model_validate_json(log.read_text())
    assert (code, report.reason) == (ExitCode.INTERNAL_ERROR, "WorkspaceFull")
    assert "/workspace/checkpoint/optimizer.pt" in report.message
