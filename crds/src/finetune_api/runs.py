"""The runs in `FineTuneJob.status`: ended pods, the running pod, and their Job."""

from typing import Annotated

from pydantic import StringConstraints

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

    name: Annotated[str, StringConstraints(max_length=253)]
    """Name of the batch/v1 Job."""
    uid: Word
    """UID of the batch/v1 Job."""
    failures: Count | None = None
    """Failed pods of this Job that are counted in `failures`."""


class WorkloadRef(StatusBlock):
    """Kueue's Workload of the current Job."""

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
    heartbeat: Count | None = None
    """Heartbeat of its last progress report."""
    last_moved_time: Time | None = None
    """When its heartbeat last advanced; `stallTimeoutSeconds` counts from here."""
    stopping: Word | None = None
    """Why it is being stopped: `UserRequested` or `NoProgress`, written before the operator stops it; else why another
    controller suspended its Job: Kueue's reason, such as `Preempted`, or `JobSuspended`."""
    stopping_message: Line | None = None
    """Kueue's message on why it reclaimed the quota."""
    missing_since: Time | None = None
    """When the pod was first found missing although its end had not been observed."""


class PreflightRuns(StatusBlock):
    """Counts of ended preflight pods, separate from those of trainer pods."""

    preemptions: Count | None = None
    """Preempted or evicted preflight pods; limited by `maxPreemptions`."""
    last_pod_name: Annotated[str, StringConstraints(max_length=253)] | None = None
    """Name of the last pod that was counted."""
    last_pod_time: Time | None = None
    """When that pod was created."""
