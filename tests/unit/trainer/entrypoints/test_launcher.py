"""The ending of a pod, from the exit codes of its processes and the events of other pods; nothing is started."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from finetune_api.handoff import ENV_POD_IP, ExitCode, JobConfig, Outcome, Report
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import CheckpointStatus, Resolved
from finetune_trainer.distributed.peer_link import Done, Event, Lost, PeerLink, Restart, Smaller
from finetune_trainer.distributed.rank_layout import LEFT_GROUP, Layout, build_layout
from finetune_trainer.distributed.rank_processes import RankProcesses
from finetune_trainer.entrypoints import launcher
from finetune_trainer.entrypoints.launcher import Ending, Pod
from finetune_trainer.entrypoints.termination import RunState
from finetune_trainer.errors import TrainerError
from finetune_trainer.sigterm import StopFlag


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(launcher, "CAUSE_SECONDS", 0.2)


def make_config(nodes: int = 2, gpus: int = 2, **resources: dict[str, str | int]) -> JobConfig:
    spec = FineTuneJobSpec.model_validate(
        {
            "objective": "Chat",
            "model": {"uri": "s3://bucket/model"},
            "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}},
            "output": {"uri": "s3://bucket/out"},
            "resources": {"numNodes": nodes, "gpusPerNode": gpus} | resources,
        }
    )
    return JobConfig(
        namespace="team", name="job", uid="uid-1", config_sha256="c" * 64, spec=spec, first_pod="x-1-0.x-1", attempt=1
    )


class Ranks(RankProcesses):
    """Processes that end with these codes; a process without a code keeps running."""

    def __init__(self, layout: Layout, root: Path, codes: dict[int, int], reports: dict[int, Report]) -> None:
        super().__init__(layout, root, [])
        self._ends, self._reports = codes, reports
        self.has_started = self.has_ended = False

    def start(self, micro_batch: int | None = None) -> None:
        self.has_started = True

    def report(self, rank: int) -> str:
        found = self._reports.get(rank)
        return found.model_dump_json(by_alias=True) if found else ""

    def codes(self) -> dict[int, int]:
        return dict(self._ends) if self.has_started else {}

    def are_running(self) -> bool:
        return self.has_started and not self.has_ended and len(self._ends) < len(self._layout.ranks)

    def terminate(self) -> None:
        """These processes ignore it."""

    def stop(self, drain_timeout: float, on_poll: Callable[[], object] = lambda: None) -> None:
        self.has_ended = True


@dataclass
class Others(PeerLink):
    """The other pods, which report one event at a time."""

    events: list[Event] = field(default_factory=list)
    is_here: bool = True
    sent: list[object] = field(default_factory=list)

    def poll(self) -> list[Event]:
        return [self.events.pop(0)] if self.events else []

    def missing(self) -> list[int]:
        return [] if self.is_here else [1]

    def send_failed(self, node: int, code: int | None) -> None:
        self.sent.append((node, code))

    def send_done(self) -> None:
        self.sent.append("done")

    def send_smaller(self, rows: int) -> None:
        self.sent.append(f"smaller {rows}")

    def send_restart(self, rows: int) -> None:
        self.sent.append(f"restart {rows}")


def make_report(outcome: Outcome, reason: str) -> Report:
    return Report(outcome=outcome, reason=reason, message="m", job_uid="uid-1", config_sha256="c" * 64, last_step=7)


BATCH_OF_EIGHT = Resolved(per_device_train_batch_size=4, gradient_accumulation_steps=1, global_batch_size=8)
PUBLISHED = make_report(Outcome.PUBLISHED, "Published")
PREEMPTED = make_report(Outcome.PREEMPTED, "Preempted")


def ended(
    root: Path,
    codes: dict[int, int],
    others: Others,
    *,
    node: int = 0,
    reports: dict[int, Report] | None = None,
    is_stopped: bool = False,
) -> Ending:
    layout = Layout(2, 2, node, "x-1-0.x-1")
    stop = StopFlag()
    if is_stopped:
        stop.set()
    ranks = Ranks(layout, root, codes, reports or {})
    return Pod(RunState(stop), make_config(), layout, ranks=ranks, peers=others, port=0).run()


def test_the_pod_ends_when_rank_0_has_published(tmp_path: Path) -> None:
    others = Others()
    ending = ended(tmp_path, {0: 0, 1: 70}, others, reports={0: PUBLISHED})
    assert ending == Ending(0, PUBLISHED)
    assert others.sent == ["done"]


def test_a_pod_that_ends_while_rank_0_publishes_is_ignored(tmp_path: Path) -> None:
    others = Others([Lost(1, ExitCode.PREEMPTED), Lost(1)])

    class Publishing(Ranks):
        def codes(self) -> dict[int, int]:
            return super().codes() if not others.events else {}

    layout = Layout(2, 2, 0, "x-1-0.x-1")
    ranks = Publishing(layout, tmp_path, {0: 0}, {0: PUBLISHED})
    (ranks.folder(0)).mkdir()
    (ranks.folder(0) / LEFT_GROUP).touch()
    ending = Pod(RunState(StopFlag()), make_config(), layout, ranks=ranks, peers=others, port=0).run()
    assert ending == Ending(0, PUBLISHED)
    assert others.sent == ["done"]


def test_another_pod_waits_for_the_first_to_publish(tmp_path: Path) -> None:
    ending = ended(tmp_path, {2: 0, 3: 0}, Others([Done()]), node=1)
    assert (ending.code, ending.report.outcome, ending.report.artifacts) == (0, Outcome.PUBLISHED, None)


def test_the_pod_ends_with_the_most_specific_code_and_reports_it_to_the_others(tmp_path: Path) -> None:
    diverged = make_report(Outcome.FAILED, "Diverged")
    others = Others()
    ending = ended(tmp_path, {2: 70, 3: ExitCode.DIVERGED}, others, node=1, reports={3: diverged})
    assert ending == Ending(ExitCode.DIVERGED, diverged)
    assert others.sent == [(1, ExitCode.DIVERGED)]


def test_of_processes_with_the_same_code_the_first_to_report_has_the_cause_and_rank_0_the_checkpoint(
    tmp_path: Path,
) -> None:
    stored = CheckpointStatus(uri="s3://b/c", step=7, saved_time=datetime.now(UTC), sha256="d" * 64)
    echo = make_report(Outcome.FAILED, "InternalError").model_copy(update={"checkpoint": stored})
    cause = make_report(Outcome.FAILED, "InternalError").model_copy(update={"message": "the cause"})
    for rank, seconds in ((0, 20), (1, 10)):
        folder = tmp_path / f"rank-{rank}"
        folder.mkdir()
        (folder / "report.json").write_text("{}")
        os.utime(folder / "report.json", (seconds, seconds))
    ending = ended(tmp_path, {0: 70, 1: 70}, Others(), reports={0: echo, 1: cause})
    assert ending == Ending(70, cause.model_copy(update={"checkpoint": stored}))


def test_a_failed_collective_is_the_echo_of_a_lost_pod(tmp_path: Path) -> None:
    others = Others([Lost(1, 137)])
    ending = ended(tmp_path, {0: 70, 1: 70}, others, reports={0: make_report(Outcome.FAILED, "InternalError")})
    assert (ending.code, ending.report.outcome, ending.report.reason) == (75, Outcome.PREEMPTED, "PeerLost")
    assert "pod 1 of this attempt ended with exit code 137" in ending.report.message
    assert ending.report.last_step == 7
    assert others.sent == [(1, 137)]


def test_a_failure_without_a_report_from_another_pod_is_the_pods_own(tmp_path: Path) -> None:
    failed = make_report(Outcome.FAILED, "InternalError")
    others = Others()
    assert ended(tmp_path, {0: 70}, others, reports={0: failed}) == Ending(70, failed)
    assert others.sent == [(0, 70)]


def test_a_cause_in_this_pod_comes_before_the_loss_of_another(tmp_path: Path) -> None:
    ending = ended(tmp_path, {0: 75, 1: 137}, Others([Lost(1)]))
    assert (ending.code, ending.report.reason) == (137, "ContainerError")


def test_a_stop_before_a_process_could_report_is_a_stop(tmp_path: Path) -> None:
    ending = ended(tmp_path, {0: 75, 1: 75}, Others(), is_stopped=True)
    assert (ending.code, ending.report.outcome, ending.report.reason) == (75, Outcome.PREEMPTED, "Preempted")


def test_only_the_pod_that_got_sigterm_reports_a_stop_of_its_own(tmp_path: Path) -> None:
    asked = ended(tmp_path, {0: 75, 1: 75}, Others([Lost(1, 75)]), reports={0: PREEMPTED}, is_stopped=True)
    assert asked == Ending(75, PREEMPTED)
    followed = ended(tmp_path, {0: 75, 1: 75}, Others([Lost(1, 75)]), reports={0: PREEMPTED})
    assert (followed.code, followed.report.reason, followed.report.last_step) == (75, "PeerLost", 7)


def test_a_pod_without_the_others_ends_and_names_the_missing_pod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "GATHER_SECONDS", 0.0)
    for node in (0, 1):
        ending = ended(tmp_path, {}, Others(is_here=False), node=node)
        assert (ending.code, ending.report.reason) == (75, "PeerLost")
        assert "pod 1 of 2 did not connect within 0 seconds" in ending.report.message


@pytest.mark.parametrize(
    ("node", "event", "is_stopped", "is_written"),
    [
        (0, Lost(1, ExitCode.PREEMPTED), False, True),
        (0, Lost(1, ExitCode.PREEMPTED), True, True),
        (0, Lost(1, ExitCode.GPU_OUT_OF_MEMORY), False, False),
        (0, Lost(1), False, False),
        (0, Lost(1), True, True),
        (1, Lost(0, ExitCode.PREEMPTED), False, False),
    ],
)
def test_the_first_pod_records_an_interruption_of_any_pod(
    tmp_path: Path, node: int, event: Lost, is_stopped: bool, is_written: bool
) -> None:
    layout = Layout(2, 2, node, "x-1-0.x-1")
    stop = StopFlag()
    if is_stopped:
        stop.set()
    ranks = Ranks(layout, tmp_path, {}, {})
    pod = Pod(RunState(stop), make_config(), layout, ranks=ranks, peers=Others([event]), port=0)
    assert pod.must_record_interruption(pod.run()) is is_written


class Exhausted(Ranks):
    """Processes that end with these codes at each start; records the micro-batch of each."""

    def __init__(self, layout: Layout, root: Path, ends: list[dict[int, int]]) -> None:
        super().__init__(layout, root, {}, dict.fromkeys(layout.ranks, PUBLISHED))
        self._all = ends
        self.micro_batches: list[int | None] = []

    def start(self, micro_batch: int | None = None) -> None:
        self.micro_batches.append(micro_batch)
        self._ends = self._all.pop(0)
        self.has_started, self.has_ended = True, False


@pytest.mark.parametrize(
    ("ends", "micro_batches", "code"),
    [
        ([{1: 79}, {0: 0, 1: 0}], [None, 2], 0),
        ([{0: 70, 1: 79}, {0: 79, 1: 70}, {0: 0}], [None, 2, 1], 0),
        ([{1: 79}, {1: 79}, {0: 79}], [None, 2, 1], 79),
        ([{0: 79, 1: ExitCode.DIVERGED}], [None], ExitCode.DIVERGED),
    ],
)
def test_processes_start_again_with_half_the_micro_batch_until_it_is_one_row(
    tmp_path: Path, ends: list[dict[int, int]], micro_batches: list[int | None], code: int
) -> None:
    layout = Layout(1, 2)
    config = make_config(nodes=1).model_copy(update={"resolved": BATCH_OF_EIGHT})
    ranks = Exhausted(layout, tmp_path, ends)
    ending = Pod(RunState(StopFlag()), config, layout, ranks=ranks, peers=PeerLink(), port=0).run()
    assert (ending.code, ranks.micro_batches) == (code, micro_batches)


class Grown(Exhausted):
    """Processes that have enlarged the micro-batch to the memory that is free, as their reports have it."""

    def report(self, rank: int) -> str:
        rows = self.micro_batches[-1] or 8
        resolved = Resolved(per_device_train_batch_size=rows, gradient_accumulation_steps=8 // rows)
        return make_report(Outcome.FAILED, "GPUOutOfMemory").model_copy(update={"resolved": resolved}).model_dump_json()


def test_a_micro_batch_that_filled_the_gpus_is_halved_and_not_the_default_of_one_row(tmp_path: Path) -> None:
    """With packing the default is one sequence, which has no half: the job would fail for good."""
    default = Resolved(per_device_train_batch_size=1, gradient_accumulation_steps=8, global_batch_size=16)
    config = make_config(nodes=1).model_copy(update={"resolved": default})
    ranks = Grown(Layout(1, 2), tmp_path, [{1: 79}, {0: 79}, {0: 0}])
    ending = Pod(RunState(StopFlag()), config, Layout(1, 2), ranks=ranks, peers=PeerLink(), port=0).run()
    assert (ending.code, ranks.micro_batches) == (0, [None, 4, 2])


BATCH_OF_SIXTEEN = BATCH_OF_EIGHT.model_copy(update={"global_batch_size": 16})
OUT = ExitCode.GPU_OUT_OF_MEMORY


@pytest.mark.parametrize(
    ("node", "ends", "events", "micro_batches", "sent"),
    [
        (0, [{0: OUT}, {0: 0}], [], [None, 2], ["smaller 2", "restart 2", "done"]),
        (0, [{}, {0: 0}], [Smaller(2), Smaller(2)], [None, 2], ["smaller 2", "restart 2", "done"]),
        (
            0,
            [{0: 70}, {0: OUT}, {0: 0}],
            [Smaller(2)],
            [None, 2, 1],
            ["smaller 2", "restart 2", "smaller 1", "restart 1", "done"],
        ),
        (1, [{3: OUT}, {2: 0, 3: 0}], [Smaller(2), Restart(2), Done()], [None, 2], ["smaller 2"]),
        (1, [{2: 70}, {2: 0, 3: 0}], [Smaller(2), Restart(2), Done()], [None, 2], ["smaller 2"]),
    ],
)
def test_all_pods_start_again_after_the_first_has_stopped_rank_0(
    tmp_path: Path,
    node: int,
    *,
    ends: list[dict[int, int]],
    events: list[Event],
    micro_batches: list[int],
    sent: list[str],
) -> None:
    layout, others = Layout(2, 2, node, "x-1-0.x-1"), Others(events)
    ranks = Exhausted(layout, tmp_path, ends)
    config = make_config().model_copy(update={"resolved": BATCH_OF_SIXTEEN})
    ending = Pod(RunState(StopFlag()), config, layout, ranks=ranks, peers=others, port=0).run()
    assert (ending.code, ranks.micro_batches, others.sent) == (0, micro_batches, sent)


def test_a_pod_that_is_lost_before_all_start_again_ends_the_attempt(tmp_path: Path) -> None:
    layout, others = Layout(2, 2, 1, "x-1-0.x-1"), Others([Smaller(2), Lost(0)])
    ranks = Exhausted(layout, tmp_path, [{2: 70}])
    config = make_config().model_copy(update={"resolved": BATCH_OF_SIXTEEN})
    ending = Pod(RunState(StopFlag()), config, layout, ranks=ranks, peers=others, port=0).run()
    assert (ending.code, ending.report.reason) == (75, "PeerLost")


def test_after_sigterm_no_process_starts_again(tmp_path: Path) -> None:
    layout, stop = Layout(1, 2), StopFlag()
    stop.set()
    config = make_config(nodes=1).model_copy(update={"resolved": BATCH_OF_EIGHT})
    ranks = Exhausted(layout, tmp_path, [{0: 75, 1: 79}])
    assert Pod(RunState(stop), config, layout, ranks=ranks, peers=PeerLink(), port=0).run().code == 75
    assert ranks.micro_batches == [None]


def environments(layout: Layout) -> Sequence[tuple[str, str, str]]:
    found = [layout.environment(local, {}) for local in range(layout.per_node)]
    return [(one["RANK"], one["LOCAL_RANK"], one["WORLD_SIZE"]) for one in found]


def test_each_process_gets_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    monkeypatch.setenv(ENV_POD_IP, "192.0.2.7")
    layout = build_layout(make_config())
    assert environments(layout) == [("2", "0", "4"), ("3", "1", "4")]
    assert layout.environment(0, {})["MASTER_ADDR"] == "x-1-0.x-1"
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    assert build_layout(make_config()).environment(0, {})["MASTER_ADDR"] == "192.0.2.7"
    alone = build_layout(make_config(nodes=1))
    assert environments(alone) == [("0", "0", "2"), ("1", "1", "2")]
    assert alone.environment(0, {})["MASTER_ADDR"] == "127.0.0.1"
    assert build_layout(make_config(nodes=1, gpus=0)).size == 1


@pytest.mark.parametrize(
    ("gpus", "resources", "threads"),
    [
        (0, {}, "64"),
        (2, {}, "32"),
        (1, {"requests": {"cpu": "16"}}, "16"),
        (2, {"requests": {"cpu": 16, "memory": "64Gi"}}, "8"),
        (1, {"requests": {"cpu": "500m"}}, "1"),
        (1, {"requests": {"cpu": "2"}, "limits": {"cpu": "7500m"}}, "7"),
        (8, {"limits": {"cpu": "4"}}, "1"),
        (1, {"limits": {"cpu": "128"}}, "64"),
        (1, {"limits": {"memory": "64Gi"}}, "64"),
    ],
)
def test_processes_share_the_cores_that_the_pod_may_use(
    monkeypatch: pytest.MonkeyPatch, gpus: int, resources: dict[str, dict[str, str | int]], threads: str
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(64))
    layout = build_layout(make_config(1, gpus, **resources))
    assert layout.environment(0, {})["OMP_NUM_THREADS"] == threads
    assert layout.environment(0, {"OMP_NUM_THREADS": "3"})["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("index", ["2", "-1", "one"])
def test_a_pod_without_a_valid_index_is_refused(monkeypatch: pytest.MonkeyPatch, index: str) -> None:
    monkeypatch.setenv("JOB_COMPLETION_INDEX", index)
    monkeypatch.setenv(ENV_POD_IP, "192.0.2.7")
    with pytest.raises(TrainerError, match="has no valid rank") as caught:
        build_layout(make_config())
    assert caught.value.code is ExitCode.INVALID_CONFIG


def test_a_pod_of_several_without_its_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV_POD_IP, raising=False)
    with pytest.raises(TrainerError, match=f"{ENV_POD_IP} is ''") as caught:
        build_layout(make_config())
    assert caught.value.code is ExitCode.INVALID_CONFIG


def test_gloo_and_nccl_stay_on_the_interface_of_the_pod_unless_the_job_names_another() -> None:
    found = Layout(per_node=2).environment(0, {"GLOO_SOCKET_IFNAME": "eth1"})
    assert (found["NCCL_SOCKET_IFNAME"], found["GLOO_SOCKET_IFNAME"]) == ("=lo", "eth1")
    assert Layout(per_node=2).environment(0, {})["GLOO_SOCKET_IFNAME"] == "lo"
