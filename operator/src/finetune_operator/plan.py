"""The decision: what was observed and the time in, the next status and the next action out. No I/O."""

from dataclasses import dataclass, replace

from finetune_api.handoff import Outcome, Report
from finetune_api.names import Component, ConditionType, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus, JobRef, Lineage
from finetune_operator import accept, evidence, parents, runs, trouble
from finetune_operator.conditions import Conditions
from finetune_operator.errors import Denied, NameTaken, Refused
from finetune_operator.manifests import Child, build_attempt, build_preflight
from finetune_operator.objects import ChildJob, Pod
from finetune_operator.results import merged, show_progress, take_lineage, take_report
from finetune_operator.settings import Settings
from finetune_operator.state import Observed, Target

C, R = ConditionType, Reason
SOON_SECONDS = 2.0
OBSTACLE_SECONDS = 20.0


@dataclass
class Decision:
    """What to do, and what to write when that is done."""

    status: FineTuneJobStatus
    create: Child | None = None
    delete: ChildJob | None = None
    look_at: trouble.Question | None = None
    follow: Target | None = None
    requeue_after: float | None = None

    def again_in(self, seconds: float) -> None:
        """Asks for another look, at the earliest of all times asked for."""
        self.requeue_after = seconds if self.requeue_after is None else min(seconds, self.requeue_after)


@dataclass
class _Draft:
    seen: Observed
    settings: Settings
    spec: FineTuneJobSpec
    conditions: Conditions
    decision: Decision
    is_blocked: bool = False
    """Whether nothing may be created now; what runs goes on and is judged when it ends."""
    is_deaf: bool = False
    """Whether the operator may not read why a pod does not start, which blocks nothing."""

    @property
    def status(self) -> FineTuneJobStatus:
        return self.decision.status


def plan(seen: Observed, settings: Settings) -> Decision:
    """Decides the next step of one FineTuneJob."""
    status = seen.job.status.model_copy(deep=True)
    conditions = Conditions(status, seen.job.generation, seen.now)
    decision = Decision(status)
    if seen.job.is_finished or seen.job.status_error:
        return decision
    spec = seen.job.spec
    conditions.start(early_stopping=spec is not None and spec.early_stopping is not None)
    if spec is None:
        unread = f"this version of the operator cannot read it: {seen.job.spec_error}"
        conditions.set(C.ACCEPTED, "False", R.INVALID_SPEC, unread)
    else:
        draft = _Draft(seen, settings, spec, conditions, decision)
        _accept(draft)
        if not seen.is_blind and (seen.own or not draft.is_blocked):
            _preflight(draft) if not status.is_true(C.VALIDATED) else _training(draft)
    conditions.summarise()
    return decision


def _accept(draft: _Draft) -> None:
    """Accepted or not; a refusal stops what would be created, never what runs."""
    obstacle, conditions = draft.seen.obstacle, draft.conditions
    refused = accept.refusal(draft.seen.job, draft.settings)
    waits = parents.obstacle(draft.seen.job, draft.seen.relatives)
    draft.is_deaf = isinstance(obstacle, Denied) and obstacle.resource == "events"
    draft.is_blocked = bool(refused or waits or (obstacle and not draft.is_deaf))
    if obstacle:
        draft.decision.again_in(OBSTACLE_SECONDS)
    if refused:
        conditions.set(C.ACCEPTED, "False", R.FORBIDDEN, refused)
    elif isinstance(obstacle, NameTaken):
        conditions.set(C.ACCEPTED, "False", R.NAME_CONFLICT, str(obstacle))
    elif isinstance(obstacle, Denied) and not draft.is_deaf:
        conditions.set(C.ACCEPTED, "False", R.API_DENIED, str(obstacle))
    elif waits:
        conditions.set(C.ACCEPTED, "False" if waits.reason is R.INVALID_SPEC else "Unknown", waits.reason, waits.detail)
    else:
        conditions.set(C.ACCEPTED, "True", R.ACCEPTED)
        _pin_parents(draft)
    if isinstance(obstacle, Refused):
        conditions.set(C.RUNNING, "False", R.POD_CREATION_REFUSED, str(obstacle))


def _pin_parents(draft: _Draft) -> None:
    """Written before anything is created from it, so that no crash between the two leaves a job with two parents."""
    if parents.pin(draft.status, draft.seen.job, draft.seen.relatives):
        draft.is_blocked = True
        draft.decision.again_in(0)


def _create(draft: _Draft, child: Child) -> None:
    """Creates a Job once nothing of an earlier run or of an earlier job of this name is left."""
    seen = draft.seen
    if draft.is_blocked:
        return
    busy = [*seen.leftovers, *(pod.name for pod in seen.pods if not pod.is_over)]
    busy += [one.name for one in seen.own if one.is_deleting]
    if busy:
        detail = f"waiting until {', '.join(busy[:3])} of an earlier run is gone"
        draft.conditions.set(C.RUNNING, "False", R.BACKING_OFF, detail)
        draft.decision.again_in(SOON_SECONDS)
    else:
        draft.decision.create = child


def _preflight(draft: _Draft) -> None:
    seen, conditions = draft.seen, draft.conditions
    child = next((one for one in seen.own if one.component == Component.PREFLIGHT and not one.is_deleting), None)
    conditions.set(C.VALIDATED, "Unknown", R.PREFLIGHT_RUNNING)
    if child is None:
        image = draft.spec.trainer.image or draft.settings.trainer_image
        _create(draft, build_preflight(seen.job, draft.settings, image))
        return
    pods = seen.pods_of(child.uid)
    passed = next(((pod, report) for pod in pods if (report := _passing_report(draft, pod))), None)
    if passed:
        _preflight_passed(draft, child, *passed)
    elif child.is_over:
        _preflight_failed(draft, child, pods)
    elif (last := _one_preemption_too_many(draft, pods)) and not seen.obstacle:
        draft.decision.delete = child
        conditions.set(C.VALIDATED, "False", R.TOO_MANY_PREEMPTIONS, "preflight was preempted too often")
        _fail(draft, child, R.TOO_MANY_PREEMPTIONS, f"preflight: {last.message}")
    else:
        _watch_start(draft, child, pods)


def _one_preemption_too_many(draft: _Draft, pods: tuple[Pod, ...]) -> evidence.Verdict | None:
    """Of the pods that are listed or remembered: preflight holds no GPU, and its preemptions are not stored."""
    limit = draft.spec.max_preemptions
    verdicts = [evidence.judge(pod, draft.seen.job) for pod in pods if pod.counts_as_run]
    preempted = [one for one in verdicts if one.result == evidence.RESULT_PREEMPTED]
    return preempted[-1] if limit and len(preempted) > limit else None


def _passing_report(draft: _Draft, pod: Pod) -> Report | None:
    report = evidence.read_report(pod, draft.seen.job) if pod.exit_code == 0 else None
    return report if report and report.outcome in {Outcome.VALIDATED, Outcome.ADOPTED} else None


def _preflight_passed(draft: _Draft, child: ChildJob, pod: Pod, report: Report) -> None:
    status, conditions = draft.status, draft.conditions
    if report.outcome is Outcome.ADOPTED and not child.completed:
        return  # the Job's own end, which gives the completion time, follows within a second
    take_report(status, report)
    take_lineage(status, report, draft.spec)
    if report.outcome is Outcome.ADOPTED and not (report.artifacts and report.artifacts.manifest_sha256):
        conditions.set(C.VALIDATED, "False", R.RESULT_MISSING, "the adopted result has no manifest digest")
        _fail(draft, child, R.RESULT_MISSING, "preflight adopted a result but named no manifest digest")
        return
    if report.outcome is Outcome.ADOPTED:
        conditions.set(C.VALIDATED, "True", R.ADOPTED)
        _succeed(draft, child, report, R.ADOPTED)
        return
    status.lineage = merged(status.lineage or Lineage(), Lineage(trainer_image=pod.pinned_image))
    conditions.set(C.VALIDATED, "True", R.DATASET_VALID, runs.dataset_sentence(report.dataset))
    _training(draft)


def _preflight_failed(draft: _Draft, child: ChildJob, pods: tuple[Pod, ...]) -> None:
    verdicts = [evidence.judge(pod, draft.seen.job) for pod in pods if pod.is_over]
    last = next((one for one in reversed(verdicts) if one.is_terminal), verdicts[-1] if verdicts else None)
    if child.completed and not any(pod.exit_code == 0 for pod in pods):
        draft.decision.delete = child  # it passed while nobody looked, and its pod is gone: ask again
        draft.decision.again_in(SOON_SECONDS)
        return
    if child.completed:
        reason, message = R.RESULT_MISSING.value, "preflight ended with 0 but gave no report: is this a trainer image?"
    elif last:
        reason, message = last.reason, last.message
        draft.status.dataset = last.report.dataset if last.report and last.report.dataset else draft.status.dataset
    else:
        reason = evidence.reason_of_failed_job(child) or R.PREFLIGHT_FAILED.value
        message = child.failed_message
    draft.conditions.set(C.VALIDATED, "False", reason, message)
    _fail(draft, child, reason, message)


def _training(draft: _Draft) -> None:
    seen, status = draft.seen, draft.status
    attempts = [one for one in seen.own if one.component == Component.TRAINER and one.attempt]
    current = max(attempts, key=lambda one: one.attempt, default=None)
    if current and current.attempt > (status.attempts or 0):
        status.attempts = current.attempt
        status.job_ref = JobRef(name=current.name, uid=current.uid)
    before = (status.runs, status.failures, status.preemptions)
    runs.fold(status, seen, attempts)
    is_counted = before != (status.runs, status.failures, status.preemptions)
    is_open = status.job_ref is not None
    if is_open and not (current and current.uid == status.job_ref.uid):  # type: ignore[union-attr]
        _attempt_deleted(draft)
    elif current and is_open and not current.is_over:
        _attempt_open(draft, current, is_counted=is_counted)
    elif current and is_open:
        _attempt_ended(draft, current)
    elif (status.failures or 0) > draft.spec.backoff_limit:
        draft.conditions.fail(R.BACKOFF_LIMIT_EXCEEDED, runs.last_sentence(status))
        status.completion_time = seen.now
    elif is_counted:
        draft.decision.again_in(0)
    else:
        _next_attempt(draft)


def _too_many_preemptions(draft: _Draft) -> bool:
    limit = draft.spec.max_preemptions
    return bool(limit) and (draft.status.preemptions or 0) > limit


def _end_preempted(draft: _Draft) -> None:
    detail = runs.last_sentence(draft.status, evidence.RESULT_PREEMPTED)
    draft.conditions.fail(R.TOO_MANY_PREEMPTIONS, detail)
    draft.status.completion_time = draft.seen.now


def _attempt_open(draft: _Draft, current: ChildJob, *, is_counted: bool) -> None:
    """Watched, or removed after too many preemptions; these are written first, so that a lost write changes nothing."""
    if _too_many_preemptions(draft) and not is_counted and not draft.seen.obstacle:
        draft.decision.delete = current
        _end_preempted(draft)
        return
    _watch_attempt(draft, current)
    if _too_many_preemptions(draft) and is_counted:
        draft.decision.again_in(0)


def _attempt_deleted(draft: _Draft) -> None:
    """Somebody removed the Job before it succeeded: a failure, and a new attempt once its pods are gone."""
    seen, status = draft.seen, draft.status
    uid = status.job_ref.uid if status.job_ref else ""
    alive = [pod.name for pod in seen.pods_of(uid) if not pod.is_over]
    detail = "the trainer Job was deleted"
    if alive:
        draft.conditions.set(C.RUNNING, "False", R.BACKING_OFF, f"{detail}; waiting until {alive[0]} is gone")
        draft.decision.again_in(SOON_SECONDS)
    elif _too_many_preemptions(draft):
        _end_preempted(draft)  # the operator removed it, and did not come to write so
    else:
        _close_attempt(draft, R.JOB_DELETED, detail, add_failure=True)


def _attempt_ended(draft: _Draft, current: ChildJob) -> None:
    seen, status = draft.seen, draft.status
    verdicts = [evidence.judge(pod, seen.job) for pod in seen.pods_of(current.uid) if pod.is_over]
    success = next((one.report for one in verdicts if one.result == evidence.RESULT_SUCCEEDED), None)
    if current.completed and success:
        take_report(status, success)
        take_lineage(status, success, draft.spec)
        _succeed(draft, current, success, R.SUCCEEDED)
        return
    if current.completed:
        is_counted = any(one.attempt == current.attempt and one.reason == R.RESULT_MISSING for one in runs.of(status))
        detail = "the trainer Job completed without a reported result"
        _close_attempt(draft, R.RESULT_MISSING, detail, add_failure=not is_counted)
        return
    terminal = next((one for one in verdicts if one.is_terminal), None)
    if terminal and terminal.report:
        take_report(status, terminal.report)
    if terminal:
        _fail(draft, current, terminal.reason, terminal.message)
    elif current.failed_reason == "BackoffLimitExceeded":
        _fail(draft, current, R.BACKOFF_LIMIT_EXCEEDED, runs.last_sentence(status))
    else:
        reason = evidence.reason_of_failed_job(current) or current.failed_reason or R.CONTAINER_ERROR
        _fail(draft, current, reason, current.failed_message)


def _close_attempt(draft: _Draft, reason: Reason, detail: str, *, add_failure: bool) -> None:
    """Ends an attempt that is not the last word: counted and written first, replaced in the next look."""
    status = draft.status
    if add_failure:
        status.failures = (status.failures or 0) + 1
    status.job_ref = None
    if status.failures and status.failures > draft.spec.backoff_limit:
        draft.conditions.fail(R.BACKOFF_LIMIT_EXCEEDED, f"{reason}: {detail}")
        status.completion_time = draft.seen.now
        return
    draft.conditions.set(C.RUNNING, "False", R.BACKING_OFF, f"{reason}: {detail}")
    draft.decision.again_in(0)


def _next_attempt(draft: _Draft) -> None:
    number = (draft.status.attempts or 0) + 1
    if number == 1 and not draft.is_blocked:
        draft.conditions.set(C.RUNNING, "False", R.PODS_STARTING)
    job = draft.seen.job
    with_draft = replace(job, status=draft.status)
    _create(draft, build_attempt(with_draft, draft.settings, _image(draft), number))


def _image(draft: _Draft) -> str:
    """The image of the first run, unless the user has named another one since."""
    pinned = draft.status.lineage.trainer_image if draft.status.lineage else None
    asked = draft.spec.trainer.image
    first = next((one.image for one in draft.seen.own if one.component == Component.PREFLIGHT), None)
    if pinned and (asked is None or asked == first):
        return pinned
    return asked or draft.settings.trainer_image


def _watch_attempt(draft: _Draft, current: ChildJob) -> None:
    seen, status = draft.seen, draft.status
    pods = seen.pods_of(current.uid)
    pod = next((one for one in reversed(pods) if one.is_running), None)
    if pod is None:
        _watch_start(draft, current, pods)
        return
    status.start_time = status.start_time or pod.started
    if pod.ip:
        draft.decision.follow = Target(seen.job.uid, pod.uid, pod.name, pod.ip)
    reading = seen.reading if seen.reading and seen.reading.pod_uid == pod.uid else None
    if reading and reading.unreachable_since and trouble.is_unreachable(reading, seen.now):
        draft.conditions.set(C.RUNNING, "True", R.UNREACHABLE, reading.problem)
    else:
        draft.conditions.set(C.RUNNING, "True", R.PODS_RUNNING)
    if reading and reading.report:
        show_progress(status, reading.report, reading.at)


def _watch_start(draft: _Draft, child: ChildJob, pods: tuple[Pod, ...]) -> None:
    """Why there is no running pod; also said of preflight, whose pod meets the same troubles first."""
    if any(pod.is_running for pod in pods):
        draft.conditions.set(C.RUNNING, "False", R.NOT_STARTED)
        return
    found = trouble.diagnose(child, pods, draft.seen.warnings, draft.seen.now)
    draft.decision.look_at = found.question
    if found.check_after is not None:
        draft.decision.again_in(found.check_after)
    last = runs.last_sentence(draft.status)
    if runs.has_succeeded(draft.status, child):
        draft.conditions.set(C.RUNNING, "False", R.FINISHED)
    elif draft.is_deaf and found.question:
        draft.conditions.set(C.RUNNING, "False", R.API_DENIED, str(draft.seen.obstacle))
    elif found.reason is R.PODS_STARTING and child.component == Component.PREFLIGHT:
        draft.conditions.set(C.RUNNING, "False", R.NOT_STARTED)
    elif found.reason is R.PODS_STARTING and not [pod for pod in pods if not pod.is_over] and last:
        draft.conditions.set(C.RUNNING, "False", R.BACKING_OFF, last)
    else:
        draft.conditions.set(C.RUNNING, "False", found.reason, found.detail)


def _succeed(draft: _Draft, child: ChildJob, report: Report, reason: Reason) -> None:
    status = draft.status
    if status.early_stopping and status.early_stopping.stopped:
        draft.conditions.set(C.EARLY_STOPPED, "True", R.PATIENCE_EXHAUSTED)
    uri = (report.artifacts and report.artifacts.uri) or draft.spec.output.uri
    draft.conditions.succeed(reason, uri)
    status.completion_time = child.completed


def _fail(draft: _Draft, child: ChildJob, reason: str, message: str) -> None:
    draft.conditions.fail(reason, message)
    draft.status.completion_time = child.failed or child.completed or draft.seen.now
