"""The runs in `FineTuneJob.status`: ended pods, the running pod, and their Job."""

from typing import Annotated

from pydantic import ConfigDict, StringConstraints

from finetune_api.blocks import ATOMIC
from finetune_api.scalars import Count, Line, Name, StatusBlock, Time, Word


class Run(StatusBlock):
    """One ended trainer pod."""

    run: Count
    """Number of the run, from 1."""
    attempt: Count
    """Number of the Job that it belonged to, from 1."""
    pod_name: Annotated[str, StringConstraints(max_length=253)]
    """Name of the pod."""
    pod_uid: Word
    """UID of the pod."""
    node_name: Annotated[str, StringConstraints(max_length=253)] | None = None
    """Node that it ran on."""
    start_time: Time | None = None
    """When the container started."""
    end_time: Time | None = None
    """When the container ended."""
    result: Word
    """`Succeeded`, `Failed`, `Preempted` or `Suspended`."""
    reason: Word
    """One-word reason: the exit code's, or the cause of the disruption."""
    message: Line | None = None
    """One line from the trainer or the kubelet."""
    exit_code: Count | None = None
    """Exit code of the container; absent if its end was not observed."""
    last_step: Count | None = None
    """Last optimiser step that it reported."""
    resumed_from_step: Count | None = None
    """Step of the checkpoint that it resumed from; absent if it started at the first step."""


class StoppedRun(StatusBlock):
    """A run that SIGTERM ended, recorded by its trainer; the next run reports it, in case the operator was down."""

    attempt: Count
    """Number of the Job that it belonged to, from 1."""
    pod_name: Name
    """Name of the pod."""
    pod_uid: Annotated[Name, StringConstraints(max_length=64)]
    """UID of the pod."""
    start_time: Time
    """When the trainer started."""
    end_time: Time
    """When it recorded this, with its work saved."""
    last_step: Count | None = None
    """Last optimiser step that it completed."""
    resumed_from_step: Count | None = None
    """Step of the checkpoint that it resumed from; absent if it started at the first step."""


class JobRef(StatusBlock):
    """The current trainer Job."""

    model_config = ConfigDict(json_schema_extra=ATOMIC)

    name: Annotated[str, StringConstraints(max_length=253)]
    """Name of the batch/v1 Job."""
    uid: Word
    """UID of the batch/v1 Job."""


class WorkloadRef(StatusBlock):
    """Kueue's Workload of the current Job."""

    model_config = ConfigDict(json_schema_extra=ATOMIC)

    name: Annotated[str, StringConstraints(max_length=253)]
    """Name of the Workload."""


class CurrentRun(StatusBlock):
    """The running trainer pod, recorded so that the run is counted even if its end is not observed."""

    attempt: Count
    """Number of the Job that it belongs to, from 1."""
    pod_name: Annotated[str, StringConstraints(max_length=253)]
    """Name of the pod."""
    pod_uid: Word
    """UID of the pod."""
    node_name: Annotated[str, StringConstraints(max_length=253)] | None = None
    """Node that it runs on."""
    start_time: Time | None = None
    """When the container started."""
    gpus: Count | None = None
    """GPUs that it holds, in all pods of the attempt; an edit of the spec changes those of the next one."""
    last_moved_time: Time | None = None
    """When it last finished a step, a row or a transfer; `stallTimeoutSeconds` counts from here."""
    stopping_reason: Word | None = None
    """Why it is being stopped: `UserRequested` or `NoProgress`, written before the operator stops it; else why another
    controller suspended its Job: Kueue's reason, such as `Preempted`, or `JobSuspended`."""
    stopping_message: Line | None = None
    """Kueue's message on why it reclaimed the quota."""


class PreflightRuns(StatusBlock):
    """Counts of ended preflight pods, separate from those of trainer pods."""

    preemptions: Count | None = None
    """Preempted or evicted preflight pods; limited like those of trainers."""


class Internal(StatusBlock):
    """Bookkeeping of the operator. Unstable: any version may rename, change or remove its fields."""

    counted_job_failures: Count | None = None
    """Unstable. Failed pods of the current Job that are counted already."""
    failures_before_merge: Count | None = None
    """Unstable. `failures` when the training was complete: the runs of the merge have a `backoffLimit` of their own."""
    heartbeat: Count | None = None
    """Unstable. Heartbeat of the running trainer's last progress report, to compare with that of the next one."""
    pod_missing_since_time: Time | None = None
    """Unstable. When the pod of `currentRun` was first found missing although its end had not been observed."""
    last_preflight_pod_name: Annotated[str, StringConstraints(max_length=253)] | None = None
    """Unstable. Name of the last preflight pod that was counted."""
    last_preflight_pod_time: Time | None = None
    """Unstable. When that pod was created."""
    preempted_at_step: Count | None = None
    """Unstable. Step of the last checkpoint when a run was last preempted."""
    unsaved_preemptions: Count | None = None
    """Unstable. Preempted runs since a checkpoint of a later step was saved; limited if `maxPreemptions` is not set."""
    unread_preflight_runs: Count | None = None
    """Unstable. Completed preflight Jobs in succession that were run again, because no pod showed their report."""
