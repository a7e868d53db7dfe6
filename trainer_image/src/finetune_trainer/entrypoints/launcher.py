"""PID 1 of a pod that trains with several processes: start them, and end with the most specific of their exit codes.

Of all pods of an attempt, only the one with the original failure ends with its own code. The others end with 75 and
reason PeerLost, so that all restart together and one failure is counted.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from finetune_api.handoff import ExitCode, JobConfig, Outcome, Report
from finetune_api.names import Reason
from finetune_api.status import Resolved
from finetune_trainer.distributed.peer_link import Coordinator, Done, Lost, Member, PeerLink, Restart, Smaller
from finetune_trainer.distributed.peer_proof import read_token
from finetune_trainer.distributed.rank_layout import Layout
from finetune_trainer.distributed.rank_processes import KILLED, RankProcesses, most_specific, specificity
from finetune_trainer.entrypoints.pod import read_config, record_interruption, serve
from finetune_trainer.entrypoints.termination import RunState
from finetune_trainer.errors import TrainerError, one_line
from finetune_trainer.models.memory.estimate import micro_batches, share_batch, with_micro_batch
from finetune_trainer.monitoring.reporter import Reporter

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1
GATHER_SECONDS = 600.0
"""How long a pod waits for the others: they are scheduled and pull their images separately."""
CAUSE_SECONDS = 15.0
"""How long a failure that may be an echo waits for the report of its cause: on a loaded node, a process takes more than
5 seconds to end after an error."""
SHORT_DRAIN_SECONDS = 15.0
ABORTED = 134
UNEXPLAINED = frozenset({ExitCode.INTERNAL_ERROR, ABORTED})
"""Codes after which the other processes' stacks are logged, because they may hang: an error, and NCCL's SIGABRT."""
STOP_DRAIN_SECONDS = 300.0
"""After SIGTERM in any pod: the checkpoint is uploaded in this time."""


@dataclass(frozen=True, slots=True)
class Ending:
    """Exit code and report of the pod."""

    code: int
    report: Report


class Pod:
    """One pod of an attempt, from the start of its processes to its exit code."""

    def __init__(
        self, state: RunState, config: JobConfig, layout: Layout, *, ranks: RankProcesses, peers: PeerLink, port: int
    ) -> None:
        self._state, self._config, self._layout = state, config, layout
        self._ranks, self._peers, self._port = ranks, peers, port
        self._lost: Lost | None = None
        self._is_done = False
        self._is_stopped = False
        self._is_failure_sent = False
        self._micro_batch: int | None = None
        """Rows of a micro-batch since a process ran out of GPU memory."""
        self._announced: int | None = None
        """Rows of the micro-batch with which all pods start again, or have started."""
        self._released: int | None = None
        """Rows of the micro-batch for which the first pod has stopped its processes."""

    def run(self) -> Ending:
        """Connect the pods, train, and report the ending to the other pods."""
        began = time.monotonic()
        if not self._layout.is_first:
            while not self._peers.is_complete():
                self._poll()
                self._state.stop.raise_if_set()
                if ending := self._check_gathered(began):
                    return ending
        self._ranks.start()
        while True:
            self._poll()
            if ending := self._check_gathered(began) or self._check_ended():
                if ending.code != ExitCode.OK and ending.report.reason != Reason.PEER_LOST:
                    self._send_failed(ending.code)
                return ending

    def must_record_interruption(self, ending: Ending) -> bool:
        """Return whether this pod records, for all pods, that a disruption ended the attempt.

        A pod's failure is not recorded, because its Job counts it.
        """
        is_failure = self._lost is not None and self._lost.code != ExitCode.PREEMPTED and not self._state.stop.is_set()
        return self._layout.is_first and ending.code == ExitCode.PREEMPTED and not is_failure

    def _poll(self) -> None:
        """Wait, read the other pods' events, and forward SIGTERM."""
        time.sleep(POLL_SECONDS)
        self._poll_peers()
        if self._state.stop.is_set() and not self._is_stopped:
            self._is_stopped = True
            self._ranks.terminate()

    def _poll_peers(self) -> None:
        """Read the other pods' events. While rank 0 publishes, no other pod is needed: losses are ignored."""
        for event in self._peers.poll():
            if isinstance(event, Done):
                self._is_done = True
            elif isinstance(event, Smaller):
                self._announce(event.rows)
            elif isinstance(event, Restart):
                self._announced = self._released = event.rows
            elif self._lost is None and not self._ranks.has_left_group():
                self._lost = event
                if self._layout.is_first:
                    self._peers.send_failed(event.node, event.code)

    def _announce(self, rows: int) -> None:
        """Let all pods start again with this micro-batch, unless it is known or a smaller one is."""
        if (self._announced is None or rows < self._announced) and not self._ranks.has_left_group():
            self._announced = rows
            self._peers.send_smaller(rows)

    def _check_gathered(self, began: float) -> Ending | None:
        """Return the ending if a pod did not connect in time."""
        if self._peers.is_complete() or self._lost or time.monotonic() - began < GATHER_SECONDS:
            return None
        self._stop_ranks(SHORT_DRAIN_SECONDS)
        missing = ", ".join(map(str, self._peers.missing()))
        problem = f"pod {missing} of {self._layout.nodes} did not connect within {GATHER_SECONDS:.0f} seconds"
        return self._end_as_peer_lost(f"{problem}: check why it does not start")

    def _check_ended(self) -> Ending | None:
        """Return the ending once it is known."""
        codes = self._ranks.codes()
        if codes.get(0) == ExitCode.OK:
            return self._end_as_publisher()
        failed = {rank: code for rank, code in codes.items() if code != ExitCode.OK}
        if self._is_done:
            return self._end_after_done()
        if self._lost and not any(_is_cause(code) for code in failed.values()):
            return self._end_after_loss(self._lost)
        if failed or self._is_restart_due():
            return self._end_after_failure(failed)
        if not self._ranks.are_running():
            return self._wait_for_publisher()
        return None

    def _end_as_publisher(self) -> Ending:
        """End after rank 0 has verified its manifest: the other processes can no longer change the result."""
        self._peers.send_done()
        self._stop_ranks(SHORT_DRAIN_SECONDS)
        return Ending(ExitCode.OK, self._read_report(0) or self._report(Outcome.PUBLISHED, "Published", "published"))

    def _end_after_done(self) -> Ending:
        """End with 0 after the first pod has published; only its report holds the proof."""
        self._stop_ranks(SHORT_DRAIN_SECONDS)
        return Ending(ExitCode.OK, self._report(Outcome.PUBLISHED, "Published", "pod 0 of this attempt published"))

    def _wait_for_publisher(self) -> Ending | None:
        """Report progress after all processes of this pod succeeded, while the first pod publishes."""
        if self._is_stopped:
            return self._end_as_stopped("stopped by SIGTERM while pod 0 was publishing")
        reporter = self._state.reporter
        if reporter is None:
            reporter = self._state.reporter = Reporter(self._config.uid)
            serve(reporter, self._port)
            reporter.set_stage("Publishing")
        reporter.beat()
        return None

    def _end_after_failure(self, failed: dict[int, int]) -> Ending | None:
        """End after a process of this pod failed. If that may be an echo, wait for its cause in any pod.

        Return None if the processes were started again, because one of any pod ran out of GPU memory.
        """
        if any(code in UNEXPLAINED for code in failed.values()):
            self._ranks.dump_stacks()  # before the others end by themselves
        drain_timeout = STOP_DRAIN_SECONDS if ExitCode.PREEMPTED in failed.values() else SHORT_DRAIN_SECONDS
        if not any(map(_is_cause, failed.values())) and not self._is_stopped:
            self._wait_for_cause()
        if self._is_done:
            return self._end_after_done()
        causes = self._find_causes()
        if causes and most_specific(causes) == ExitCode.GPU_OUT_OF_MEMORY and (smaller := self._find_smaller_batch()):
            self._announce(smaller)
            causes = []
        if self._is_restart_due() and not causes:
            return self._restart()
        if self._lost and not causes:
            return self._end_after_loss(self._lost)
        if causes:
            self._send_failed(most_specific(causes))  # before the other pods judge its echo
        self._stop_ranks(drain_timeout)
        return self._end_by_codes()

    def _wait_for_cause(self) -> None:
        """Wait until a process of any pod has a cause of its own, or the time for it is over."""
        deadline = time.monotonic() + CAUSE_SECONDS
        while time.monotonic() < deadline and not (self._lost or self._is_done or self._is_restart_due()):
            self._poll()
            if self._find_causes():
                return

    def _find_causes(self) -> list[int]:
        return [code for code in self._ranks.codes().values() if _is_cause(code)]

    def _end_by_codes(self) -> Ending:
        """End with the exit code that names the cause best, and the report of the first process that has it."""
        codes = {rank: code for rank, code in self._ranks.codes().items() if code != ExitCode.OK}
        code = most_specific(codes.values())
        rank = self._ranks.first_to_report(rank for rank, its in codes.items() if its == code)
        if code == ExitCode.PREEMPTED and self._layout.nodes > 1 and not self._state.stop.is_set():
            return self._end_as_peer_lost("another pod of this attempt was stopped")
        report, first = self._read_report(rank) or self._report_missing(rank, code), self._read_first_report()
        if first and report.checkpoint is None:  # only rank 0 knows it
            report = report.model_copy(update={"checkpoint": first.checkpoint})
        return Ending(code, report)

    def _find_smaller_batch(self) -> int | None:
        """Return the rows of the next smaller micro-batch of the same effective batch; None if there is none.

        The processes may have enlarged that of the configuration to what was free on the GPUs: their reports have it.
        """
        settings = share_batch(self._config.resolved or Resolved(), self._layout.size)
        full = next(rank for rank, code in self._ranks.codes().items() if code == ExitCode.GPU_OUT_OF_MEMORY)
        report = self._read_report(full)
        used = report.resolved.per_device_train_batch_size if report and report.resolved else None
        if rows := used or self._micro_batch:
            settings = with_micro_batch(settings, rows)
        sizes = [one.per_device_train_batch_size for one in micro_batches(settings)]
        return next(iter(sizes[1:]), None)

    def _is_restart_due(self) -> bool:
        return self._announced != self._micro_batch and self._lost is None

    def _restart(self) -> Ending | None:
        """Start all processes again, because the one without memory cannot reach the others, which wait for it.

        The other pods wait until the first one has ended rank 0, to which their processes would connect. Return the
        ending if SIGTERM arrived or a pod was lost in the meantime.
        """
        logger.warning(
            "out of GPU memory: all %d processes start again with %s rows per batch", self._layout.size, self._announced
        )
        self._stop_ranks(SHORT_DRAIN_SECONDS)
        is_released = self._layout.is_first
        while not (is_released or self._lost or self._state.stop.is_set()):
            self._poll()
            is_released = self._released == self._announced
        if self._state.stop.is_set():
            return self._end_as_stopped("stopped by SIGTERM after a process ran out of GPU memory")
        if self._lost:
            return self._end_after_loss(self._lost)
        self._micro_batch = self._announced
        if self._layout.is_first and self._micro_batch:
            self._peers.send_restart(self._micro_batch)
        self._ranks.start(self._micro_batch)
        return None

    def _end_after_loss(self, lost: Lost) -> Ending:
        """End after another pod did. After its SIGTERM all processes stop together, and rank 0 may still upload."""
        was_stopped = self._state.stop.is_set()
        is_orderly = lost.code == ExitCode.PREEMPTED or self._ranks.is_saving()
        if lost.code in UNEXPLAINED:
            self._ranks.dump_stacks()
        self._stop_ranks(STOP_DRAIN_SECONDS if is_orderly else SHORT_DRAIN_SECONDS)
        if was_stopped:
            return self._end_as_stopped(f"stopped by SIGTERM; {lost}")
        return self._end_as_peer_lost(f"{lost}: all pods restart together from the last checkpoint")

    def _stop_ranks(self, drain_timeout: float) -> None:
        """Stop the processes; keep the connections to the other pods alive in the meantime."""
        self._ranks.stop(drain_timeout, self._poll_peers)

    def _end_as_stopped(self, message: str) -> Ending:
        report = self._read_first_report()
        if report is None or report.outcome is not Outcome.PREEMPTED:
            report = self._report(Outcome.PREEMPTED, ExitCode.PREEMPTED.reason, message)
        return Ending(ExitCode.PREEMPTED, report)

    def _end_as_peer_lost(self, message: str) -> Ending:
        """Keep checkpoint and step from the report of this pod's first process."""
        known = self._read_first_report() or self._report(Outcome.PREEMPTED, Reason.PEER_LOST, message)
        report = known.model_copy(
            update={"outcome": Outcome.PREEMPTED, "reason": Reason.PEER_LOST.value, "message": one_line(message)}
        )
        return Ending(ExitCode.PREEMPTED, report)

    def _send_failed(self, code: int) -> None:
        if not self._is_failure_sent:
            self._is_failure_sent = True
            self._peers.send_failed(self._layout.node, code)

    def _read_first_report(self) -> Report | None:
        return self._read_report(self._layout.ranks[0])

    def _read_report(self, rank: int) -> Report | None:
        try:
            return Report.model_validate_json(self._ranks.report(rank))
        except ValidationError:
            return None

    def _report_missing(self, rank: int, code: int) -> Report:
        if code == ExitCode.PREEMPTED:
            return self._report(Outcome.PREEMPTED, ExitCode.PREEMPTED.reason, "stopped by SIGTERM during start-up")
        how = "was killed: the node's memory may be too small" if code == KILLED else f"ended with exit code {code}"
        if code == ABORTED:
            how = "was aborted, as NCCL does after resources.collectiveTimeoutSeconds (see the stacks in the logs),"
        return self._report(Outcome.FAILED, Reason.CONTAINER_ERROR, f"rank {rank} {how} without writing a report")

    def _report(self, outcome: Outcome, reason: str, message: str) -> Report:
        return Report(
            outcome=outcome,
            reason=str(reason),
            message=one_line(message),
            job_uid=self._config.uid,
            config_sha256=self._config.config_sha256,
        )


def launch(state: RunState, layout: Layout, *, config_path: Path, port: int, workspace: Path, peer_token: Path) -> int:
    """Run this pod's processes to their end, write the report and return the exit code."""
    config = read_config(config_path, state)
    peers = _open_peer_link(config, layout, peer_token)
    ranks = RankProcesses(layout, workspace, ["--config", str(config_path), "--port", str(port)])
    pod = Pod(state, config, layout, ranks=ranks, peers=peers, port=port)
    try:
        ending = pod.run()
    finally:
        ranks.stop(0.0)
        peers.close()
    if pod.must_record_interruption(ending):
        steps = ending.report.last_step, ending.report.resumed_from_step
        record_interruption(config, state.stop, *steps, was_measuring=ranks.is_measuring())
    state.finish(ending.report)
    return ending.code


def _open_peer_link(config: JobConfig, layout: Layout, peer_token: Path) -> PeerLink:
    attempt = f"{config.uid}/{config.attempt}"
    if layout.nodes == 1:
        return PeerLink()
    token = read_token(peer_token)
    if not layout.is_first:
        return Member(attempt, layout.node, (layout.first_pod, layout.peer_link_port), token)
    try:
        return Coordinator(attempt, layout.nodes, (layout.address, layout.peer_link_port), token)
    except OSError as error:
        problem = f"cannot open port {layout.peer_link_port} for the other pods: {error.strerror}"
        raise TrainerError(ExitCode.INTERNAL_ERROR, problem) from error


def _is_cause(code: int) -> bool:
    """Return whether the code itself explains the end; a failed collective ends in 70, and stops can be shared."""
    return specificity(code) <= specificity(KILLED)
