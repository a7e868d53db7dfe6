"""PID 1 of a pod whose processes train together with others: it starts them, and ends with the code that tells most.

Of all pods of an attempt only the one where something went wrong ends with its own code. The others end with 75 and
reason PeerLost, so that all are started together again and one failure is counted.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from finetune_api.handoff import ExitCode, JobConfig, Outcome, Report
from finetune_api.names import Reason
from finetune_trainer.distributed.peer_link import Done, FirstPod, Lifeline, Lost, NoOtherPod, OtherPod
from finetune_trainer.distributed.rank_layout import Layout
from finetune_trainer.distributed.rank_processes import KILLED, RankProcesses, most_specific, specificity
from finetune_trainer.entrypoints.pod import read_config, serve, write_down_stop
from finetune_trainer.entrypoints.termination import RunState
from finetune_trainer.errors import TrainerError, one_line
from finetune_trainer.monitoring.reporter import Reporter

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
GATHER_SECONDS = 600.0
"""How long a pod waits for the others to come: they start apart, and pull their images."""
CAUSE_SECONDS = 5.0
"""How long an end that may be the echo of another is held back for that other to be heard of."""
SHORT_PATIENCE = 15.0
STOP_PATIENCE = 300.0
"""After SIGTERM in any pod: the checkpoint is uploaded meanwhile."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How the pod ends."""

    code: int
    report: Report


class Pod:
    """One pod of an attempt, from the start of its processes to its exit code."""

    def __init__(
        self, state: RunState, config: JobConfig, layout: Layout, *, ranks: RankProcesses, lifeline: Lifeline, port: int
    ) -> None:
        self._state, self._config, self._layout = state, config, layout
        self._ranks, self._lifeline, self._port = ranks, lifeline, port
        self._lost: Lost | None = None
        self._is_done = False
        self._is_stopped = False
        self._has_told = False

    def run(self) -> Ending:
        """Gathers, trains and ends; the other pods are told."""
        began = time.monotonic()
        if not self._layout.is_first:
            while not self._lifeline.is_complete():
                self._look()
                self._state.stop.raise_if_set()
                if ending := self._given_up(began):
                    return ending
        self._ranks.start()
        while True:
            self._look()
            if ending := self._given_up(began) or self._ending():
                self._tell(ending)
                return ending

    def must_be_written_down(self, ending: Ending) -> bool:
        """Whether this pod writes for all that a disruption ended the attempt; the failure of a pod is counted by its
        Job."""
        is_failure = self._lost is not None and self._lost.code != ExitCode.PREEMPTED and not self._state.stop.is_set()
        return self._layout.is_first and ending.code == ExitCode.PREEMPTED and not is_failure

    def _look(self) -> None:
        """One turn: what the other pods say, and SIGTERM passed on."""
        time.sleep(LOOK_SECONDS)
        self._hear()
        if self._state.stop.is_set() and not self._is_stopped:
            self._is_stopped = True
            self._ranks.terminate()

    def _hear(self) -> None:
        """What the other pods say; while rank 0 publishes, nobody else is needed, and so nobody is missed."""
        for event in self._lifeline.poll():
            if isinstance(event, Done):
                self._is_done = True
            elif self._lost is None and not self._ranks.has_parted():
                self._lost = event
                if self._layout.is_first:
                    self._lifeline.tell_failed(event.node, event.code)

    def _given_up(self, began: float) -> Ending | None:
        if self._lifeline.is_complete() or self._lost or time.monotonic() - began < GATHER_SECONDS:
            return None
        self._end(SHORT_PATIENCE)
        missing = ", ".join(map(str, self._lifeline.missing()))
        told = f"pod {missing} of {self._layout.nodes} did not come within {GATHER_SECONDS:.0f} seconds"
        return self._peer_lost(f"{told}: see why it does not start")

    def _ending(self) -> Ending | None:
        """How the pod ends, once it is known."""
        codes = self._ranks.codes()
        if codes.get(0) == ExitCode.OK:
            return self._published()
        failed = {rank: code for rank, code in codes.items() if code != ExitCode.OK}
        if self._is_done:
            return self._after_done()
        if self._lost and not any(_is_a_cause(code) for code in failed.values()):
            return self._after(self._lost)
        if failed:
            return self._after_failure(failed)
        if not self._ranks.are_running():
            return self._after_success()
        return None

    def _published(self) -> Ending:
        """Rank 0 has read its manifest back: what the others do now changes nothing."""
        self._lifeline.tell_done()
        self._end(SHORT_PATIENCE)
        return Ending(ExitCode.OK, self._own_report(0) or self._report(Outcome.PUBLISHED, "Published", "published"))

    def _after_done(self) -> Ending:
        """The first pod has published; the proof is in its report alone."""
        self._end(SHORT_PATIENCE)
        return Ending(ExitCode.OK, self._report(Outcome.PUBLISHED, "Published", "pod 0 of this attempt published"))

    def _after_success(self) -> Ending | None:
        """The processes of another pod than the first have ended well: the first has still to publish."""
        if self._is_stopped:
            return self._stopped("stopped by SIGTERM while pod 0 was publishing")
        reporter = self._state.reporter
        if reporter is None:
            reporter = self._state.reporter = Reporter(self._config.uid)
            serve(reporter, self._port)
            reporter.stage("Publishing")
        reporter.beat()
        return None

    def _after_failure(self, failed: dict[int, int]) -> Ending:
        """A process ended: so do all of this pod. What may be the echo of an end elsewhere waits for word of it."""
        patience = STOP_PATIENCE if ExitCode.PREEMPTED in failed.values() else SHORT_PATIENCE
        if not any(_is_a_cause(code) for code in failed.values()) and not self._is_stopped:
            deadline = time.monotonic() + CAUSE_SECONDS
            while time.monotonic() < deadline and not self._lost and not self._is_done:
                self._look()
                if any(_is_a_cause(code) for code in self._ranks.codes().values()):
                    break
        if self._is_done:
            return self._after_done()
        causes = [code for code in self._ranks.codes().values() if _is_a_cause(code)]
        if self._lost and not causes:
            return self._after(self._lost)
        if causes:
            self._tell_failed(most_specific(causes))  # before the others judge its echo
        self._end(patience)
        codes = {rank: code for rank, code in self._ranks.codes().items() if code != ExitCode.OK}
        code = most_specific(codes.values())
        rank = min(rank for rank, its in codes.items() if its == code)
        if code == ExitCode.PREEMPTED and self._layout.nodes > 1 and not self._state.stop.is_set():
            return self._peer_lost("another pod of this attempt was stopped")
        return Ending(code, self._own_report(rank) or self._unreported(rank, code))

    def _after(self, lost: Lost) -> Ending:
        """Another pod ended first. After its SIGTERM all processes stop together, and rank 0 may still upload."""
        was_stopped = self._state.stop.is_set()
        is_orderly = lost.code == ExitCode.PREEMPTED or self._ranks.is_saving()
        self._end(STOP_PATIENCE if is_orderly else SHORT_PATIENCE)
        if was_stopped:
            return self._stopped(f"stopped by SIGTERM; {lost}")
        return self._peer_lost(f"{lost}: all pods start together again from the last checkpoint")

    def _end(self, patience: float) -> None:
        """Ends the processes; the other pods are still told meanwhile that this one is there."""
        self._ranks.end(patience, self._hear)

    def _stopped(self, message: str) -> Ending:
        report = self._first_report()
        if report is None or report.outcome is not Outcome.PREEMPTED:
            report = self._report(Outcome.PREEMPTED, ExitCode.PREEMPTED.reason, message)
        return Ending(ExitCode.PREEMPTED, report)

    def _peer_lost(self, message: str) -> Ending:
        """What this pod's first process told of checkpoint and step stays."""
        known = self._first_report() or self._report(Outcome.PREEMPTED, Reason.PEER_LOST, message)
        report = known.model_copy(
            update={"outcome": Outcome.PREEMPTED, "reason": Reason.PEER_LOST.value, "message": one_line(message)}
        )
        return Ending(ExitCode.PREEMPTED, report)

    def _tell(self, ending: Ending) -> None:
        """Once: who ends because of another has nothing to tell."""
        if ending.code != ExitCode.OK and ending.report.reason != Reason.PEER_LOST:
            self._tell_failed(ending.code)

    def _tell_failed(self, code: int) -> None:
        if not self._has_told:
            self._has_told = True
            self._lifeline.tell_failed(self._layout.node, code)

    def _first_report(self) -> Report | None:
        return self._own_report(self._layout.ranks[0])

    def _own_report(self, rank: int) -> Report | None:
        try:
            return Report.model_validate_json(self._ranks.report(rank))
        except ValidationError:
            return None

    def _unreported(self, rank: int, code: int) -> Report:
        if code == ExitCode.PREEMPTED:
            return self._report(Outcome.PREEMPTED, ExitCode.PREEMPTED.reason, "stopped by SIGTERM before it began")
        told = "was killed: the node's memory may not suffice" if code == KILLED else f"ended with exit code {code}"
        return self._report(Outcome.FAILED, Reason.CONTAINER_ERROR, f"rank {rank} {told}, and left no report")

    def _report(self, outcome: Outcome, reason: str, message: str) -> Report:
        return Report(
            outcome=outcome,
            reason=str(reason),
            message=one_line(message),
            job_uid=self._config.uid,
            config_sha256=self._config.config_sha256,
        )


def launch(state: RunState, layout: Layout, *, config_path: Path, port: int, workspace: Path) -> int:
    """Runs this pod's processes to their end, leaves the report and returns the exit code."""
    config = read_config(config_path, state)
    lifeline = _lifeline(config, layout)
    ranks = RankProcesses(layout, workspace, ["--config", str(config_path), "--port", str(port)])
    pod = Pod(state, config, layout, ranks=ranks, lifeline=lifeline, port=port)
    try:
        ending = pod.run()
    finally:
        ranks.end(0.0)
        lifeline.close()
    if pod.must_be_written_down(ending):
        write_down_stop(config, state.stop, ending.report.last_step, ending.report.resumed_from_step)
    state.finish(ending.report)
    return ending.code


def _lifeline(config: JobConfig, layout: Layout) -> Lifeline:
    attempt = f"{config.uid}/{config.attempt}"
    if layout.nodes == 1:
        return NoOtherPod()
    if not layout.is_first:
        return OtherPod(attempt, layout.node, (layout.first_pod, layout.lifeline_port))
    try:
        return FirstPod(attempt, layout.nodes, layout.lifeline_port)
    except OSError as error:
        told = f"port {layout.lifeline_port}, where the other pods connect, cannot be opened: {error.strerror}"
        raise TrainerError(ExitCode.INTERNAL_ERROR, told) from error


def _is_a_cause(code: int) -> bool:
    """Whether a code says by itself why a process ended; a failed collective ends in 70, and a stop may be shared."""
    return specificity(code) <= specificity(KILLED)
