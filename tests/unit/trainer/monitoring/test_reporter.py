import io
import json
import re
import threading
import urllib.error
import urllib.request

import pytest

from finetune_api.handoff import ProgressReport
from finetune_api.status import CheckpointStatus, Resolved
from finetune_trainer.errors import Stopped
from finetune_trainer.monitoring import reporter as progress
from finetune_trainer.monitoring.reporter import Reporter, work_beat
from finetune_trainer.sigterm import StopFlag


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def reporter(out: io.StringIO) -> Reporter:
    return Reporter("uid-1", out=out)


def get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return bytes(answer.read())


def test_progress_is_served_as_the_contract_has_it(reporter: Reporter) -> None:
    port = reporter.serve(0)
    reporter.set_stage("Training")
    reporter.update(
        progress={"step": 42, "total_steps": 100, "epoch": 1.26},
        metrics={"train_loss": 1.4234567},
        early_stopping={"patience": 3},
        resolved=Resolved(method="QLoRA"),
    )
    report = ProgressReport.model_validate_json(get(port, "/progress"))
    assert (report.job_uid, report.progress.display, report.progress.percent) == ("uid-1", "42%", 42)
    assert report.progress.stage == "Training"
    assert report.metrics.train_loss == 1.4235
    assert report.early_stopping is not None
    assert report.early_stopping.patience == 3
    assert report.resolved is not None
    assert report.progress.last_updated_time is not None


def test_values_stay_until_they_are_replaced(reporter: Reporter) -> None:
    reporter.update(metrics={"train_loss": 2.0, "baseline_eval_loss": 3.0})
    reporter.update(metrics={"train_loss": 1.0})
    metrics = reporter.snapshot().metrics
    assert (metrics.train_loss, metrics.baseline_eval_loss) == (1.0, 3.0)


def test_a_loss_that_is_not_finite_is_kept_from_the_status_and_shown_to_prometheus(reporter: Reporter) -> None:
    port = reporter.serve(0)
    reporter.update(metrics={"train_loss": 2.0})
    reporter.update(metrics={"train_loss": float("nan"), "grad_norm": float("inf")})
    assert reporter.snapshot().metrics.train_loss == 2.0
    assert b"NaN" not in get(port, "/progress")
    exposed = get(port, "/metrics").decode()
    assert "finetune_trainer_train_loss NaN" in exposed
    assert "finetune_trainer_gradient_norm +Inf" in exposed


def test_metrics_have_the_names_that_dashboards_use(reporter: Reporter) -> None:
    port = reporter.serve(0)
    reporter.update(progress={"step": 1, "total_steps": 9}, metrics={"eval_loss": 1.5, "learning_rate": 1e-4})
    reporter.update(progress={"step": 3})
    reporter.count_tokens(500)
    reporter.beat(1000)
    lines = get(port, "/metrics").decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    assert float(values["finetune_trainer_eval_loss"]) == 1.5
    assert float(values["finetune_trainer_learning_rate"]) == 1e-4
    assert float(values["finetune_trainer_step"]) == 3
    assert float(values["finetune_trainer_tokens_total"]) == 500
    assert float(values["finetune_trainer_transferred_bytes_total"]) == 1000
    assert float(values["finetune_trainer_step_seconds_count"]) == 2
    assert float(values["process_resident_memory_bytes"]) > 0
    assert "finetune_trainer_train_loss" not in values


def test_health_is_answered_and_other_paths_are_not_found(reporter: Reporter) -> None:
    port = reporter.serve(0)
    assert get(port, "/healthz") == b"ok\n"
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(port, "/etc/passwd")
    assert caught.value.code == 404
    caught.value.close()


def test_every_sign_of_progress_moves_the_heartbeat_also_from_many_threads(reporter: Reporter) -> None:
    def work() -> None:
        for step in range(200):
            reporter.beat(1)
            reporter.update(progress={"step": step, "total_steps": 200})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reporter.snapshot().heartbeat == 4 * 200 * 2


def test_no_time_is_left_once_early_stopping_has_ended_the_training(
    reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps that are not taken are no work, while the result is merged and published."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    reporter.update(progress={"stage": "Training", "step": 0, "total_steps": 1000})
    for step in (1, 2, 3):
        now[0] += 60
        reporter.update(progress={"step": step})
    assert reporter.snapshot().progress.estimated_remaining_seconds == 997 * 60
    reporter.update(early_stopping={"stopped": True, "stopped_at_step": 3, "best_step": 1, "patience": 2})
    assert reporter.snapshot().progress.estimated_remaining_seconds == 0
    reporter.set_stage("Publishing")
    found = reporter.snapshot().progress
    assert (found.estimated_remaining_seconds, found.percent, found.total_steps) == (0, 0, 1000)


def test_a_misspelt_field_is_an_error(reporter: Reporter) -> None:
    with pytest.raises(KeyError, match="trainLoss"):
        reporter.update(metrics={"trainLoss": 1.0})


def test_the_last_percent_is_only_shown_when_done(reporter: Reporter) -> None:
    reporter.update(progress={"step": 999, "total_steps": 1000})
    assert reporter.snapshot().progress.percent == 99
    reporter.update(progress={"step": 1000})
    assert reporter.snapshot().progress.display == "100%"


def test_before_the_first_step_the_stage_is_what_people_see(reporter: Reporter) -> None:
    reporter.set_stage("Loading")
    assert reporter.snapshot().progress.display == "Loading"


def test_before_the_first_step_people_see_how_much_of_a_stage_is_done(reporter: Reporter) -> None:
    reporter.set_stage("Reference")
    reporter.set_share(3, 8)
    assert (reporter.snapshot().progress.display, reporter.snapshot().heartbeat) == ("Reference 37%", 2)
    reporter.set_stage("Baseline")
    assert reporter.snapshot().progress.display == "Baseline"
    reporter.update(progress={"step": 1, "total_steps": 4})
    reporter.set_share(1, 2)
    assert reporter.snapshot().progress.display == "25%"


def test_one_line_of_the_log_is_printed_per_stage_and_per_metrics(reporter: Reporter, out: io.StringIO) -> None:
    reporter.set_stage("Training")
    for step in range(50):
        reporter.update(progress={"step": step, "total_steps": 50, "epoch": step / 50})
    reporter.update(metrics={"train_loss": 1.5})
    lines = out.getvalue().splitlines()
    assert [re.sub("^[0-9TZ:-]{20}| left=[0-9:]+", "", line) for line in lines] == [
        " INFO Training",
        " INFO Training 98% step=49/50 epoch=0.98 trainLoss=1.5",
    ]


def test_a_line_has_the_figures_that_are_new_and_the_time_left(reporter: Reporter, out: io.StringIO) -> None:
    reporter.update(progress={"stage": "Training", "step": 1, "total_steps": 2}, metrics={"eval_loss": 2.5})
    reporter.update(progress={"step": 2}, metrics={"eval_loss": 2.5, "train_loss": 1.25})
    assert out.getvalue().splitlines()[-1].endswith("Z INFO Training 100% step=2/2 trainLoss=1.25")


def test_a_note_cannot_forge_a_line_or_a_figure(reporter: Reporter, out: io.StringIO) -> None:
    reporter.set_note('odd\n2026-01-01T00:00:00Z INFO "Done"\x1b[2J\u202e')
    reporter.set_stage("Training")
    (line,) = out.getvalue().splitlines()
    assert line.endswith(f" note={json.dumps(reporter.snapshot().progress.note)}")
    assert not re.search("[\x00-\x1f\u202e]", line)


def test_a_long_time_without_metrics_still_prints(
    reporter: Reporter, out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter.set_stage("Training")
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    reporter.update(progress={"step": 1, "total_steps": 50})
    assert len(out.getvalue().splitlines()) == 2


def test_a_transfer_ends_once_a_stop_is_requested(reporter: Reporter) -> None:
    stop = StopFlag()
    on_bytes = work_beat(reporter, stop)
    on_bytes(10)
    stop.set()
    with pytest.raises(Stopped):
        on_bytes(10)
    assert reporter.snapshot().heartbeat == 1


def test_saved_checkpoints_are_timed_and_one_that_was_only_found_is_not(reporter: Reporter) -> None:
    port = reporter.serve(0)
    saved = {"uri": "s3://bucket/out/checkpoints/step-000010", "step": 10, "saved_time": "2026-01-02T00:00:00Z"}
    found = CheckpointStatus.model_validate(saved | {"sha256": "ab" * 32})
    reporter.set_checkpoint(found)
    reporter.set_checkpoint(found.model_copy(update={"save_seconds": 1.5}))
    reporter.count_checkpoint_failure()
    exposed = get(port, "/metrics").decode()
    assert "finetune_trainer_checkpoint_seconds_count 1.0" in exposed
    assert "finetune_trainer_checkpoint_seconds_sum 1.5" in exposed
    assert "finetune_trainer_checkpoint_failures_total 1.0" in exposed
