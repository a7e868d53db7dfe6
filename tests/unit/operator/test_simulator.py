"""Any sequence of events around one job: never two trainers, never Complete without a manifest, always an end."""

import asyncio
from datetime import timedelta
from typing import Any

import job_operator
import job_world
import kueue_world
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from finetune_api import names
from finetune_operator.controller.store import KINDS
from finetune_operator.policy.conditions import acknowledge_generation
from finetune_operator.policy.history import clocks

COUNTERS = ("attempts", "runs", "failures", "preemptions", "active_seconds", "gpu_seconds")
CODES = [0, 1, 65, 69, 70, 75, 76, 79, 80, 137, 143]
INTERRUPTIONS = [
    "crash",
    "lost answer",
    "other operator",
    "suspend",
    "resume",
    "control",
    "pod ends",
    "clock",
]
MAX_STEPS = 200
LABELS = [
    {names.LABEL_MANAGED_BY: "Helm"},
    {names.LABEL_JOB_NAME: "another"},
    {names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_JOB_NAME: "one"},
]


class Simulator(RuleBasedStateMachine):
    """Events around a job; each rule is one event, and each reconcile may be interrupted by another."""

    nodes = 1

    @initialize(
        backoff=st.integers(0, 2),
        preemptions=st.sampled_from([None, 0, 1, 20]),
        suspended=st.sampled_from([False, False, True]),
        deadline=st.sampled_from([None, 500]),
        start=st.sampled_from([None, 900]),
        steps=st.integers(0, 8),
        queued=st.booleans(),
        merged=st.booleans(),
        proxied=st.sampled_from([False, False, True]),
    )
    def create(  # noqa: PLR0917
        self,
        backoff: int,
        preemptions: int | None,
        suspended: bool,
        deadline: Any,
        start: Any,
        steps: int,
        queued: bool,
        merged: bool,
        proxied: bool,
    ) -> None:
        spec = {"backoffLimit": backoff, "suspend": suspended, "stallTimeoutSeconds": 60}
        spec |= {} if preemptions is None else {"maxPreemptions": preemptions}
        spec |= {"activeDeadlineSeconds": deadline} if deadline else {}
        spec |= {"startDeadlineSeconds": start} if start else {}
        spec["resources"] = {"numNodes": self.nodes} | ({"merge": {}} if merged else {})
        spec |= {"output": {"uri": "s3://bucket/out", "merge": "BF16"}} if merged else {}
        self.loop = asyncio.new_event_loop()
        self.queued = kueue_world.QueuedWorld(**spec, scheduling={"queueName": "team"}) if queued else None
        self.world = self.queued or job_world.World(**spec)
        self.world.has_proxy = proxied
        self.one, self.other = (
            job_operator.Operator(self.world, self.loop),
            job_operator.Operator(self.world, self.loop),
        )
        self.before = self.world.status()
        self.final: Any = None
        for _ in range(steps):
            self.things_go_on()

    def _interrupt(self, kind: str) -> Any:
        async def happen() -> None:
            if kind == "other operator":
                await self.other.handle()
            elif kind in {"suspend", "resume"}:
                self.world.edit(suspend=kind == "suspend")
            elif kind == "control":
                self.world.control()
            elif kind == "clock":
                self.world.now += timedelta(seconds=45)
            elif kind == "pod ends":
                for pod in self.world.pods_in("Running")[:1]:
                    self.world.end(pod, 75, self.world.report("Preempted"))

        return {"crash": job_operator.crash, "lost answer": job_operator.lose_answer}.get(kind, happen)

    @rule(at=st.integers(1, 12), kind=st.sampled_from(INTERRUPTIONS), behind=st.sets(st.sampled_from(KINDS)))
    def the_operator_looks(self, at: int, kind: str, behind: set[str]) -> None:
        self.one.behind = behind
        self.one.look(at, self._interrupt(kind))

    @rule()
    def things_go_on(self) -> None:
        """The Job controller works, a pod starts, preflight passes, and a reconcile runs without interruption."""
        self.kueue_works(has_room=True)
        self.world.control()
        for pod in self.world.pods_in("Running"):
            if self.world.component(pod) == names.Component.PREFLIGHT:
                self.world.publish(pod)
        for pod in self.world.pods_in("Pending"):
            self.world.start(pod)
        self.one.deliver_events()
        self.one.look()

    @rule()
    def a_deleted_pod_ends(self) -> None:
        for pod in self.world.pods_in("Running"):
            if "deletionTimestamp" in pod["metadata"]:
                self.world.end(pod, 75, self.world.report("Preempted"))
        self.things_go_on()

    @rule()
    def it_goes_on_a_while(self) -> None:
        for _ in range(3):
            self.things_go_on()

    @rule(kinds=st.sets(st.sampled_from(KINDS)), is_other=st.booleans())
    def watches_deliver_nothing_for_a_while(self, kinds: set[str], is_other: bool) -> None:
        (self.other if is_other else self.one).behind = kinds

    @rule()
    def the_operator_restarts(self) -> None:
        self.one.restart()

    @rule(heartbeat=st.integers(1, 2))
    def the_trainer_answers(self, heartbeat: int) -> None:
        self.one.pull(heartbeat)

    @rule(has_room=st.booleans())
    def kueue_works(self, has_room: bool) -> None:
        if self.queued:
            self.queued.queue(has_room=has_room)

    @precondition(lambda self: self.queued and self.queued.admitted())
    @rule(reason=st.sampled_from(["Preempted", "ClusterQueueStopped"]))
    def kueue_takes_the_quota_back(self, reason: str) -> None:
        if self.queued:
            self.queued.evict_workload(self.queued.admitted()[0], reason, "words")

    @rule()
    def the_job_controller_works(self) -> None:
        self.world.control()

    @rule(seconds=st.sampled_from([1, 7, 61, 200]))
    def time_passes(self, seconds: int) -> None:
        self.world.now += timedelta(seconds=seconds)

    @rule(is_webhook_down=st.booleans(), are_workloads_unreadable=st.booleans())
    def webhooks_fail_or_work(self, is_webhook_down: bool, are_workloads_unreadable: bool) -> None:
        self.world.is_webhook_down = is_webhook_down
        self.world.are_workloads_unreadable = are_workloads_unreadable

    @rule(seconds=st.sampled_from([-3600, 0, 3600]))
    def the_clock_of_the_nodes_jumps(self, seconds: int) -> None:
        self.world.node_clock = timedelta(seconds=seconds)

    @rule(is_suspended=st.booleans())
    def the_user_suspends_or_resumes(self, is_suspended: bool) -> None:
        self.world.edit(suspend=is_suspended)

    @rule(again=st.booleans())
    def the_user_suspends_and_thinks_better_of_it(self, again: bool) -> None:
        self.world.edit(suspend=True)
        self.the_operator_looks_twice()
        self.world.control()
        self.world.edit(suspend=False)
        self.the_operator_looks_twice()
        self.world.control()
        if again:
            self.world.edit(suspend=True)

    def the_operator_looks_twice(self) -> None:
        self.one.look()
        self.one.look()

    @rule(limit=st.integers(0, 3))
    def the_user_changes_the_limit(self, limit: int) -> None:
        self.world.edit(backoffLimit=limit)

    @precondition(lambda self: self.world.jobs)
    @rule(data=st.data(), is_suspended=st.booleans())
    def somebody_suspends_a_job(self, data: Any, is_suspended: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.jobs)))
        note = self.world.jobs[name]["metadata"]["annotations"].get(names.ANNOTATION_SUSPENDED_BY)
        if note is None and not self.queued:
            self.world.suspend_job(name, {}, is_suspended=is_suspended)

    @precondition(lambda self: self.world.jobs)
    @rule(data=st.data())
    def somebody_deletes_a_job(self, data: Any) -> None:
        self.world.remove_job(data.draw(st.sampled_from(sorted(self.world.jobs))))

    @precondition(lambda self: self.world.pods)
    @rule(data=st.data(), labels=st.sampled_from(LABELS))
    def another_client_overwrites_the_labels_of_a_pod(self, data: Any, labels: dict[str, str]) -> None:
        self.world.relabel(self.world.pods[data.draw(st.sampled_from(sorted(self.world.pods)))], **labels)

    @rule(is_operator_down=st.booleans())
    def a_ttl_removes_ended_jobs(self, is_operator_down: bool) -> None:
        self.world.control()
        self.world.remove_ended_jobs()
        if is_operator_down:
            self.one.restart()

    @precondition(lambda self: self.world.pods_in("Pending"))
    @rule(which=st.integers(0, 1))
    def a_pod_starts(self, which: int) -> None:
        self.world.start(self._one_of("Pending", which))

    @precondition(lambda self: self.world.pods_in("Running"))
    @rule(which=st.integers(0, 1))
    def a_pod_does_its_work(self, which: int) -> None:
        self.world.publish(self._one_of("Running", which))

    @precondition(lambda self: self.world.pods_in("Running"))
    @rule(which=st.integers(0, 1), code=st.sampled_from(CODES), reported=st.booleans())
    def a_pod_ends(self, which: int, code: int, reported: bool) -> None:
        message = self.world.report("Failed" if code else "Preempted") if reported else "last words"
        self.world.end(self._one_of("Running", which), code, message, "OOMKilled" if code == 137 else "Error")

    @precondition(lambda self: self.world.pods_in("Running") or self.world.pods_in("Pending"))
    @rule(which=st.integers(0, 1))
    def a_pod_is_evicted(self, which: int) -> None:
        self.world.evict(self._one_of("Running" if self.world.pods_in("Running") else "Pending", which))

    def _one_of(self, phase: str, which: int) -> Any:
        found = self.world.pods_in(phase)
        return found[which % len(found)]

    @invariant()
    def there_are_never_two_trainers(self) -> None:
        seats = self.world.live_seats()
        assert len({job for job, _ in seats}) <= 1
        assert len(seats) == len(set(seats))
        assert all(rank < self.nodes for _, rank in seats)
        assert self.one.surprises() == self.other.surprises() == 0

    @invariant()
    def a_round_counts_once(self) -> None:
        """Return the trainers of rank 0, and the Jobs in which none ran when a pod failed."""
        status = self.world.status()
        assert sum((status.failures_by_reason or {}).values()) == (status.failures or 0)
        assert sum((status.preemptions_by_reason or {}).values()) == (status.preemptions or 0)
        assert (status.failures or 0) + (status.preemptions or 0) <= self.world.rounds + (status.attempts or 0)

    @invariant()
    def complete_has_a_manifest(self) -> None:
        status = self.world.status()
        assert self.world.has_manifest or not status.is_true(names.ConditionType.COMPLETE)
        assert not (status.is_true(names.ConditionType.COMPLETE) and status.is_true(names.ConditionType.FAILED))

    @invariant()
    def what_is_published_is_not_trained_again(self) -> None:
        assert not self.world.is_trained_again

    @invariant()
    def a_merge_follows_a_training_and_holds_no_gpu(self) -> None:
        merges = [pod for pod in self.world.pods.values() if self.world.component(pod) == names.Component.MERGE]
        assert self.world.is_stored or not merges
        assert all(self.world.gpus_of(pod) == 0 for pod in merges)
        if self.world.status().trained_weights:
            names_of_trainers = [
                pod["metadata"]["name"]
                for pod in self.world.pods.values()
                if self.world.component(pod) == names.Component.TRAINER and pod["status"]["phase"] not in job_world.OVER
            ]
            assert names_of_trainers == []

    @invariant()
    def what_is_known_only_grows(self) -> None:
        status, before = self.world.status(), self.before
        for name in COUNTERS:
            assert (getattr(status, name) or 0) >= (getattr(before, name) or 0), name
        assert before.start_time is None or status.start_time == before.start_time
        assert (status.runs or 0) <= len(self.world.ended_pods) + self.unseen()
        assert (status.attempts or 0) >= (1 if status.job_ref else 0)
        numbers = [run.run for run in status.history or []]
        assert numbers == sorted(set(numbers))
        uids = [run.pod_uid for run in status.history or []]
        assert len(uids) == len(set(uids))
        self.before = status

    @invariant()
    def no_run_ends_after_now(self) -> None:
        latest = self.world.now + clocks.SLACK
        assert all(run.end_time is None or run.end_time <= latest for run in self.world.status().history or [])

    @invariant()
    def an_ended_job_has_no_run_that_trains_and_the_time_of_all(self) -> None:
        status = self.world.status()
        assert status.current_run is None or not self.world.is_finished
        runs = status.history or []
        if (status.runs or 0) == len(runs):
            lengths = [one.end_time - one.start_time for one in runs if one.start_time and one.end_time]
            assert sum(int(one.total_seconds()) for one in lengths) == (status.active_seconds or 0)

    @invariant()
    def a_suspension_costs_nothing(self) -> None:
        for run in self.world.status().history or []:
            if run.pod_uid in self.world.interrupted_pods and run.reason not in {"NoProgress", "JobDeleted"}:
                assert run.result in {"Suspended", "Succeeded"}, run

    def unseen(self) -> int:
        """Return the pods that disappeared without an observed end."""
        return self.world.made - len(self.world.ended_pods)

    @invariant()
    def an_end_is_the_end(self) -> None:
        """Except for the generation, which the operator acknowledges after an edit of a finished job."""
        said = acknowledge_generation(self.world.status(), 0)
        if self.final is not None:
            assert said == self.final
        elif self.world.is_finished:
            self.final = said

    def teardown(self) -> None:
        """Without further faults the job ends; if it is suspended first, it has no pods."""
        if not hasattr(self, "world"):
            return
        try:
            self.world.is_webhook_down = self.world.are_workloads_unreadable = False
            self.one.behind = set()
            self._settle_suspended()
            self._settle()
        finally:
            self.loop.close()

    def _settle_suspended(self) -> None:
        self.world.edit(suspend=True)
        for _ in range(8):
            self._step(works=False)
        assert self.world.is_finished or self.world.live_trainers() == []

    def _settle(self) -> None:
        self.world.edit(suspend=False)
        for _ in range(MAX_STEPS):
            if self.world.is_finished:
                break
            for name, job in self.world.jobs.items() if not self.queued else ():
                if names.ANNOTATION_SUSPENDED_BY not in job["metadata"]["annotations"]:
                    self.world.suspend_job(name, {}, is_suspended=False)
            self._step(works=True)
        assert self.world.is_finished, self.world.job["status"]
        self.what_is_known_only_grows()
        self.a_round_counts_once()
        self.one.look()
        version = self.world.version
        self.one.look()
        assert self.world.version == version

    def _step(self, *, works: bool) -> None:
        self.kueue_works(has_room=True)
        self.world.control()
        for pod in list(self.world.pods.values()):
            is_running = pod["status"]["phase"] == "Running" and job_world.is_working(pod)
            if "deletionTimestamp" in pod["metadata"] and is_running:
                self.world.end(pod, 75, self.world.report("Preempted"))
            elif works and is_running:
                self.world.publish(pod)
            elif works and pod["status"]["phase"] == "Pending":
                self.world.start(pod)
        self.one.deliver_events()
        self.one.look()
        self.world.now += timedelta(seconds=3)
        self.a_merge_follows_a_training_and_holds_no_gpu()
        for check in (self.there_are_never_two_trainers, self.complete_has_a_manifest, self.what_is_known_only_grows):
            check()


class PairSimulator(Simulator):
    """The same with two pods that train together, of which one may end because of the other."""

    nodes = 2

    @invariant()
    def an_attempt_fails_once(self) -> None:
        """A stalled trainer may end by itself before its Job is removed, and the Job then continues."""
        status = self.world.status()
        stalls = sum(run.reason == "NoProgress" for run in status.history or [])
        assert (status.failures or 0) <= (status.attempts or 0) + stalls

    @precondition(lambda self: self.world.pods_in("Running"))
    @rule(which=st.integers(0, 1), code=st.sampled_from([1, 65, 75, 80, 137]), is_seen=st.booleans())
    def a_pod_ends_and_the_other_follows(self, which: int, code: int, is_seen: bool) -> None:
        self.world.end(self._one_of("Running", which), code, "last words")
        if is_seen:
            self.one.deliver_events()
            self.one.look()
        for pod in self.world.pods_in("Running"):
            self.world.end(pod, 75, self.world.report("Preempted", reason="PeerLost"))

    @precondition(lambda self: self.world.pods_in("Running"))
    @rule(which=st.integers(0, 1))
    def a_pod_is_evicted_and_all_end(self, which: int) -> None:
        self.world.evict(self._one_of("Running", which))
        self.a_deleted_pod_ends()
        for pod in self.world.pods_in("Running"):
            self.world.end(pod, 75, self.world.report("Preempted"))


TestSimulator = Simulator.TestCase
TestPairSimulator = PairSimulator.TestCase
TestSimulator.settings = TestPairSimulator.settings = settings(
    max_examples=settings.default.max_examples // 4,
    stateful_step_count=30,
    suppress_health_check=list(HealthCheck),
)
