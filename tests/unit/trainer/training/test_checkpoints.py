"""Checkpoints in storage: what is whole is found again, what is torn or of another job is not gone on from."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from finetune_api.handoff import ExitCode, JobConfig, config_sha256
from finetune_api.spec import Checkpoint, FineTuneJobSpec
from finetune_api.status import Resolved
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.errors import Stopped, StorageDenied, StorageUnavailable, TrainerError
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.local import LocalStore
from finetune_trainer.storage.protocol import OnBytes
from finetune_trainer.training.checkpoints import Checkpoints, Schedule, build_schedule
from finetune_trainer.training.stored_checkpoints import find_trained, group_by_step, remove_checkpoints

OUTPUT = "s3://bucket/out"
ROWS = {"dataset/train.jsonl": "a" * 64, "dataset/validation.jsonl": "b" * 64}

INPUTS = {"chat template": "d" * 64, "teacher": "e" * 64}


class Recording(LocalStore):
    """A bucket that records every change in order, and fails on request."""

    def __init__(self, folder: Path) -> None:
        super().__init__({"s3://bucket": folder})
        self.changes: list[tuple[str, str]] = []
        self.fails: Callable[[str, str], None] = lambda verb, uri: None

    def upload(self, path: Path, uri: str, on_bytes: OnBytes | None = None) -> None:
        self._note("put", uri)
        super().upload(path, uri, on_bytes)

    def put(self, uri: str, data: bytes) -> None:
        self._note("put", uri)
        super().put(uri, data)

    def remove(self, uri: str) -> None:
        self._note("remove", uri)
        super().remove(uri)

    def _note(self, verb: str, uri: str) -> None:
        self.fails(verb, uri)
        self.changes.append((verb, uri.removeprefix(f"{OUTPUT}/checkpoints/")))


@dataclass
class Pod:
    """One run of the job; `changes` replaces parts of its spec."""

    folder: Path
    changes: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=lambda: dict(ROWS))
    base_sha256: str = "b" * 64
    inputs: dict[str, str] = field(default_factory=lambda: dict(INPUTS))
    name: str = "job"
    uid: str = "u-1"

    def __post_init__(self) -> None:
        spec = FineTuneJobSpec.model_validate(
            {
                "objective": "Chat",
                "model": {"uri": "s3://bucket/model"},
                "dataset": {"train": {"uri": "s3://bucket/rows"}},
                "output": {"uri": OUTPUT},
            }
            | self.changes
        )
        self.config = JobConfig(
            namespace="team",
            name=self.name,
            uid=self.uid,
            config_sha256=config_sha256(spec),
            spec=spec,
            resolved=Resolved(total_steps=100, eval_steps=10),
        )
        self.stop = StopFlag()
        self.storage = Recording(self.folder)
        self.reporter = Reporter(self.uid, out=io.StringIO())
        run = RunContext(self.config, self.storage, self.folder.parent / "workspace", self.reporter, self.stop)
        self.checkpoints = Checkpoints(run, self.base_sha256, self.rows, self.inputs)

    def save(self, *steps: int) -> "Pod":
        """Save checkpoints of two files."""
        for step in steps:
            self.checkpoints.save(step, lambda folder, step=step: write(folder, step))  # type: ignore[misc]
        return self

    def there(self) -> list[int]:
        """The steps with files in storage."""
        return sorted(group_by_step(self.storage.list(f"{OUTPUT}/checkpoints")))


def write(folder: Path, step: int) -> None:
    (folder / "weights.safetensors").write_bytes(b"weights of %d" % step)
    (folder / "run.json").write_bytes(b"{}")


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    return tmp_path / "bucket"


def file(bucket: Path, step: int, name: str) -> Path:
    return bucket / "out" / "checkpoints" / f"step-{step:06d}" / name


def test_a_checkpoint_is_found_again_with_its_files_and_its_pointer(bucket: Path) -> None:
    saved = Pod(bucket).save(10)
    found = Pod(bucket)
    folder = found.checkpoints.restore()
    assert folder
    assert (folder / "weights.safetensors").read_bytes() == b"weights of 10"
    seen = found.reporter.snapshot()
    assert seen.progress.resumed_from_step == seen.progress.step == 10
    known = saved.reporter.snapshot().checkpoint
    assert known
    assert known.save_seconds is not None
    assert seen.checkpoint == known.model_copy(update={"save_seconds": None})
    assert seen.checkpoint
    assert seen.checkpoint.uri == f"{OUTPUT}/checkpoints/step-000010"
    assert seen.checkpoint.sha256 == found.storage.sha256(f"{seen.checkpoint.uri}/manifest.json")


def test_without_a_checkpoint_the_training_begins_at_the_first_step(bucket: Path) -> None:
    pod = Pod(bucket)
    assert pod.checkpoints.restore() is None
    assert pod.reporter.snapshot().progress.resumed_from_step is None


def test_the_manifest_is_put_last_and_removed_first(bucket: Path) -> None:
    pod = Pod(bucket).save(10, 20, 30)
    changes = [change for change in pod.storage.changes if "step-000010" in change[1]]
    assert [verb for verb, _ in changes] == ["put"] * 3 + ["remove"] * 3
    assert changes[2] == ("put", "step-000010/manifest.json")
    assert changes[3] == ("remove", "step-000010/manifest.json")


@pytest.mark.parametrize(("limit", "kept"), [(1, [40]), (2, [30, 40]), (9, [10, 20, 30, 40])])
def test_the_newest_are_kept(bucket: Path, limit: int, kept: list[int]) -> None:
    assert Pod(bucket, {"checkpoint": {"saveTotalLimit": limit}}).save(10, 20, 30, 40).there() == kept


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a flipped bit": (
        lambda bucket: flip(file(bucket, 20, "weights.safetensors")),
        "weights.safetensors differs from its SHA-256 in the manifest",
    ),
    "a file that is cut": (
        lambda bucket: file(bucket, 20, "weights.safetensors").write_bytes(b"weig"),
        "weights.safetensors is missing or differs in size from its manifest",
    ),
    "a file that is gone": (
        lambda bucket: file(bucket, 20, "run.json").unlink(),
        "run.json is missing or differs in size from its manifest",
    ),
    "no manifest": (
        lambda bucket: file(bucket, 20, "manifest.json").unlink(),
        "it has no manifest, so it was not saved completely",
    ),
    "half a manifest": (
        lambda bucket: file(bucket, 20, "manifest.json").write_text('{"namespace": "te'),
        "its manifest is invalid",
    ),
    "another's manifest": (
        lambda bucket: file(bucket, 20, "manifest.json").write_bytes(file(bucket, 10, "manifest.json").read_bytes()),
        "its manifest is of step 10",
    ),
}


@pytest.mark.parametrize(("damage", "problem"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_broken_checkpoint_is_named_and_removed_and_the_one_before_it_taken(
    bucket: Path, damage: Callable[[Path], Any], problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    Pod(bucket).save(10, 20)
    damage(bucket)
    pod = Pod(bucket)
    folder = pod.checkpoints.restore()
    assert folder
    assert (folder / "weights.safetensors").read_bytes() == b"weights of 10"
    assert pod.there() == [10]
    assert pod.reporter.snapshot().progress.resumed_from_step == 10
    note = pod.reporter.snapshot().progress.note
    assert note == f"skipped broken checkpoints: step-000020: {problem}"
    assert problem in caplog.text
    assert pod.save(20).there() == [10, 20]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """The folder of a second process, of which only `optimizer` goes to storage."""
    (tmp_path / "rank-1" / "optimizer").mkdir(parents=True)
    (tmp_path / "rank-1" / "optimizer" / "shard-2").write_bytes(b"half")
    (tmp_path / "rank-1" / "weights.safetensors").write_bytes(b"all")
    return tmp_path / "rank-1"


def test_the_shards_of_another_process_are_part_of_the_checkpoint(bucket: Path, shards: Path) -> None:
    uploaded = Pod(bucket).checkpoints.upload_shards(10, shards)
    pod = Pod(bucket)
    pod.checkpoints.save(10, lambda folder: write(folder, 10), [uploaded])
    assert pod.storage.changes[-1] == ("put", "step-000010/manifest.json")
    folder = Pod(bucket).checkpoints.restore()
    assert folder
    assert (folder / "optimizer" / "shard-2").read_bytes() == b"half"
    assert (folder / "weights.safetensors").read_bytes() == b"weights of 10"
    flip(file(bucket, 10, "optimizer/shard-2"))
    assert Pod(bucket).checkpoints.restore() is None


def test_shards_whose_manifest_was_not_written_are_no_checkpoint(bucket: Path, shards: Path) -> None:
    """As if all processes were killed between the upload of a shard and the manifest."""
    Pod(bucket).save(10)
    Pod(bucket).checkpoints.upload_shards(20, shards)
    pod = Pod(bucket)
    assert pod.there() == [10, 20]
    folder = pod.checkpoints.restore()
    assert folder
    assert (folder / "weights.safetensors").read_bytes() == b"weights of 10"
    assert pod.there() == [10]


def test_without_the_shards_of_every_process_nothing_is_saved(bucket: Path, shards: Path) -> None:
    other, pod = Pod(bucket), Pod(bucket)

    def fail(verb: str, uri: str) -> None:
        raise StorageUnavailable("no server")

    other.storage.fails = fail
    uploaded = other.checkpoints.upload_shards(10, shards)
    pod.checkpoints.save(10, lambda folder: write(folder, 10), [uploaded])
    assert pod.there() == []
    assert pod.checkpoints.last_step == 0
    assert pod.checkpoints.is_needed(10)


def test_a_process_that_noted_a_saved_step_does_not_save_it_again(bucket: Path) -> None:
    checkpoints = Pod(bucket).checkpoints
    checkpoints.note_saved(10)
    assert not checkpoints.is_needed(10)
    assert checkpoints.is_needed(20)


def test_without_a_complete_checkpoint_the_training_starts_again(bucket: Path) -> None:
    Pod(bucket).save(10, 20)
    for step in (10, 20):
        flip(file(bucket, step, "weights.safetensors"))
    pod = Pod(bucket)
    assert pod.checkpoints.restore() is None
    assert pod.there() == []


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ({"changes": {"hyperparameters": {"seed": 1}}}, "its spec differs (configSHA256 "),
        ({"rows": ROWS | {"dataset/train.jsonl": "c" * 64}}, "its rows differ (dataset/train.jsonl: SHA-256 aaaaaaaa"),
        ({"rows": {"dataset/train.jsonl": "a" * 64}}, "its rows differ (dataset/validation.jsonl: SHA-256 bbbbbbbb"),
        ({"inputs": INPUTS | {"chat template": "f" * 64}}, "its chat template differs (SHA-256 dddddddddddd, not fff"),
        ({"inputs": {"chat template": "d" * 64}}, "its teacher differs (SHA-256 eeeeeeeeeeee, not none)"),
        ({"name": "another"}, "it belongs to the FineTuneJob team/job"),
        ({"changes": {"model": {"uri": "s3://bucket/other"}}}, "its base model is s3://bucket/model"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused_by_what_differs(
    bucket: Path, other: dict[str, Any], problem: str
) -> None:
    Pod(bucket).save(10)
    pod = Pod(bucket, **other)
    with pytest.raises(TrainerError) as caught:
        pod.checkpoints.restore()
    assert caught.value.code is ExitCode.OUTPUT_CONFLICT
    assert problem in caught.value.message
    assert pod.there() == [10]


def test_a_checkpoint_of_an_older_version_that_names_no_inputs_is_resumed_from(bucket: Path) -> None:
    Pod(bucket, inputs={}).save(10)
    assert Pod(bucket).checkpoints.restore()


def test_a_job_created_again_unchanged_resumes(bucket: Path) -> None:
    Pod(bucket).save(10)
    assert Pod(bucket, uid="u-2").checkpoints.restore()


def test_a_run_resumes_with_changed_checkpoint_settings(bucket: Path) -> None:
    Pod(bucket).save(10)
    assert Pod(bucket, {"checkpoint": {"steps": 3, "saveTotalLimit": 5}}).checkpoints.restore()


def test_with_never_nothing_is_gone_on_from_and_nothing_saved(bucket: Path) -> None:
    Pod(bucket).save(10)
    pod = Pod(bucket, {"checkpoint": {"resumePolicy": "Never"}})
    assert pod.checkpoints.restore() is None
    assert not pod.checkpoints.is_due(10)
    assert pod.save(20).there() == [10]


def test_a_step_is_saved_once(bucket: Path) -> None:
    pod = Pod(bucket).save(10)
    before = len(pod.storage.changes)
    assert len(pod.save(10).storage.changes) == before
    again = Pod(bucket)
    again.checkpoints.restore()
    assert again.save(10).storage.changes == []


def fail(verb: str, error: Exception) -> Callable[[str, str], None]:
    def fails(asked: str, uri: str) -> None:
        if asked == verb and uri.endswith("run.json"):
            raise error

    return fails


def test_a_store_that_is_away_costs_a_checkpoint_and_not_the_training(
    bucket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pod = Pod(bucket).save(10)
    pod.storage.fails = fail("put", StorageUnavailable("no answer"))
    pod.save(20)
    assert "cannot save the checkpoint of step 20: no answer" in caplog.text
    assert pod.reporter.snapshot().checkpoint
    assert pod.checkpoints.last_step == 10
    pod.storage.fails = lambda verb, uri: None
    assert pod.save(20).checkpoints.last_step == 20
    assert b"finetune_trainer_checkpoint_failures_total 1.0" in pod.reporter._prometheus.exposition()


def test_an_unavailable_store_after_a_stop_is_reported(bucket: Path) -> None:
    pod = Pod(bucket)
    pod.storage.fails = fail("put", StorageUnavailable("no answer"))
    pod.stop.set()
    with pytest.raises(StorageUnavailable):
        pod.save(10)


def test_a_stop_does_not_break_off_what_it_asks_for(bucket: Path) -> None:
    pod = Pod(bucket)
    pod.stop.set()
    assert pod.save(10).there() == [10]
    assert pod.reporter.snapshot().checkpoint


def test_a_stop_is_seen_while_a_checkpoint_is_downloaded(bucket: Path) -> None:
    Pod(bucket).save(10)
    pod = Pod(bucket)
    pod.stop.set()
    with pytest.raises(Stopped):
        pod.checkpoints.restore()
    assert pod.there() == [10]


def test_keys_that_may_not_remove_anything_leave_checkpoints_behind(bucket: Path) -> None:
    pod = Pod(bucket, {"checkpoint": {"saveTotalLimit": 1}})
    pod.storage.fails = fail("remove", StorageDenied("no"))
    pod.save(10, 20)
    assert pod.there() == [10, 20]
    assert pod.checkpoints.last_step == 20
    remove_checkpoints(pod.config, pod.storage)


def test_a_path_that_leaves_its_folder_is_refused(bucket: Path) -> None:
    Pod(bucket).save(10)
    path = file(bucket, 10, "manifest.json")
    manifest = json.loads(path.read_text())
    manifest["files"][0]["path"] = "../../../owner.json"
    path.write_text(json.dumps(manifest))
    with_sizes = Pod(bucket)
    assert with_sizes.checkpoints.restore() is None


def test_a_store_that_does_not_list_costs_neither_training_nor_result(
    bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = Pod(bucket, {"checkpoint": {"saveTotalLimit": 1}}).save(10)

    def away(uri: str, *_: Any) -> Any:
        if uri.endswith("checkpoints"):
            raise StorageUnavailable("no answer")
        return LocalStore.list(pod.storage, uri)

    monkeypatch.setattr(pod.storage, "list", away)
    pod.save(20)
    assert pod.checkpoints.last_step == 20
    remove_checkpoints(pod.config, pod.storage)


def test_all_are_removed_when_the_result_is_published(bucket: Path) -> None:
    pod = Pod(bucket).save(10, 20)
    pod.storage.put(f"{OUTPUT}/manifest.json", b"{}")
    remove_checkpoints(pod.config, pod.storage)
    assert [entry.key for entry in pod.storage.list(OUTPUT)] == ["manifest.json"]
    assert not (bucket / "out" / "checkpoints").exists()


def test_a_stored_training_that_is_broken_is_not_found_by_the_job_that_is_created_again(
    bucket: Path, tmp_path: Path
) -> None:
    """Its size is right, so only the merge finds the fault; the trainer after it trains, as the message says."""
    trained, pod = tmp_path / "trained", Pod(bucket)
    trained.mkdir()
    write(trained, 100)
    pod.checkpoints.save_trained(100, trained)
    assert find_trained(pod.config, pod.storage)
    (bucket / "out/checkpoints/trained/weights.safetensors").write_bytes(b"weights of 900")
    with pytest.raises(StorageUnavailable, match=r"differs from its SHA-256.*Recreate the job"):
        Pod(bucket).checkpoints.restore_trained()
    assert find_trained(Pod(bucket, uid="u-2").config, pod.storage) is None


@pytest.mark.parametrize(
    ("asked", "settings", "expected"),
    [
        ({"steps": 7}, {"eval_steps": 10, "total_steps": 100}, Schedule(7)),
        ({}, {"eval_steps": 10, "total_steps": 100}, Schedule(10, 1800.0)),
        ({}, {"total_steps": 50}, Schedule(5, 1800.0)),
        ({}, {"total_steps": 3}, Schedule(1, 1800.0)),
    ],
)
def test_checkpoints_are_as_frequent_as_evaluations_unless_the_job_sets_steps(
    asked: dict[str, Any], settings: dict[str, Any], expected: Schedule
) -> None:
    assert build_schedule(Checkpoint.model_validate(asked), Resolved(**settings)) == expected


def test_a_slow_training_is_saved_in_between() -> None:
    assert Schedule(10, 1800.0).is_due(3, 1800.0)
    assert not Schedule(10, 1800.0).is_due(3, 1799.0)
    assert not Schedule(10).is_due(3, 1e9)
    assert Schedule(10).is_due(20, 0.0)
