"""Build the Jobs of a FineTuneJob, with what their pods need. Pure: typed input in, the whole object out."""

from dataclasses import dataclass

from pydantic import BaseModel

from finetune_api import handoff, names
from finetune_api.status import FineTuneJobStatus, Lineage
from finetune_operator.kube.child_names import selector_value, slug
from finetune_operator.kube.objects import FineTuneJob, Object
from finetune_operator.manifests.effective_spec import (
    allows_hub,
    build_effective_spec,
    needs_separate_merge,
    queue_name,
)
from finetune_operator.manifests.network import build_network_policy, build_peer_token, build_service
from finetune_operator.manifests.pods import (
    build_pod_annotations,
    build_pod_labels,
    build_pod_spec,
    build_shared_labels,
    digest_of,
)
from finetune_operator.manifests.settings_digest import digest_settings
from finetune_operator.manifests.volumes import mount_peer_token
from finetune_operator.settings import Settings

PREFLIGHT_BACKOFF_LIMIT = 3


@dataclass(frozen=True)
class Child:
    """A Job to create, with what its pods read, find each other by, and are protected by."""

    config_map: Object
    peer_token: Object | None
    """Without its token; like the Service, only for more than one pod."""
    service: Object | None
    network_policy: Object | None
    """Only if the settings ask for one."""
    job: Object

    @property
    def name(self) -> str:
        """Return the name of the Job."""
        return str(self.job["metadata"]["name"])

    @property
    def component(self) -> str:
        """Return what the Job does: preflight, training or merge."""
        return str(self.job["metadata"]["labels"][names.LABEL_COMPONENT])


def build_job_name(job: FineTuneJob, attempt: int) -> str:
    """Return the deterministic name of a Job: `<slug>-preflight`, `<slug>-<attempt>` or `<slug>-<attempt>-merge`."""
    merge = "-merge" if attempt and job.status.trained_weights else ""
    return f"{slug(job.key.name)}-{attempt or 'preflight'}{merge}"


def build_preflight(job: FineTuneJob, settings: Settings, image: str) -> Child:
    """Build the preflight Job: no GPU, the same image, its own backoff limit."""
    return _build_child(job, settings, 0, image, PREFLIGHT_BACKOFF_LIMIT)


def build_attempt(job: FineTuneJob, settings: Settings, image: str, attempt: int) -> Child:
    """Build the Job of an attempt: a trainer, or the merge once the training is stored.

    Failures of earlier attempts reduce its backoff limit. With many pods the first failure ends the Job, because all
    pods can only restart together.
    """
    left = (
        max(0, job.require_spec().backoff_limit - count_failures(job.status)) if count_nodes(job, attempt) == 1 else 0
    )
    return _build_child(job, settings, attempt, image, left)


def count_failures(status: FineTuneJobStatus) -> int:
    """Return the failed runs that count against `backoffLimit` now: those of the training, or those of the merge."""
    earlier = status.internal.failures_before_merge if status.trained_weights and status.internal else None
    return (status.failures or 0) - (earlier or 0)


def count_nodes(job: FineTuneJob, attempt: int) -> int:
    """Return the number of pods of the next Job; preflight and merge have one."""
    return 1 if not attempt or job.status.trained_weights else job.require_spec().resources.num_nodes


def build_config(job: FineTuneJob, settings: Settings, attempt: int) -> handoff.JobConfig:
    """Build the configuration that the pod reads."""
    spec, pinned = job.require_spec(), job.status.lineage or Lineage()
    return handoff.JobConfig(
        namespace=job.key.namespace,
        name=job.key.name,
        uid=job.uid,
        config_sha256=handoff.config_sha256(spec),
        attempt=attempt,
        first_pod=_first_pod(job, attempt) if count_nodes(job, attempt) > 1 else None,
        spec=build_effective_spec(spec, settings),
        parent=pinned.parent,
        reward_job=pinned.reward_job,
        storage_prefixes=settings.storage_prefixes_of(job.key.namespace) or None,
        has_hub=allows_hub(spec, settings),
        simulated_gpus=settings.simulated_gpus,
        separate_merge=attempt > 0 and needs_separate_merge(job),
        resolved=job.status.resolved if attempt else None,
        dataset=job.status.dataset if attempt else None,
        preflight_sha256=pinned.preflight_sha256 if attempt else None,
    )


def _first_pod(job: FineTuneJob, attempt: int) -> str:
    """Return the DNS name of rank 0: `<Job>-<rank>` is the hostname, and the Service is named like the Job."""
    name = build_job_name(job, attempt)
    return f"{name}-0.{name}"


def build_owner_reference(kind: str, name: str, uid: str) -> Object:
    """Build the owner reference: the child is deleted with its owner, whose deletion it never blocks."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def build_labels(job: FineTuneJob, component: names.Component, attempt: int) -> dict[str, str]:
    """Return the labels of a child and of its pods."""
    return {
        names.LABEL_NAME: names.APP_NAME,
        names.LABEL_INSTANCE: selector_value(job.key.name),
        names.LABEL_COMPONENT: component.value,
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_JOB_NAME: selector_value(job.key.name),
        names.LABEL_ATTEMPT: str(attempt),
    }


def build_selector(name: str) -> str:
    """Return the label selector of a job's children and pods."""
    return f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY},{names.LABEL_JOB_NAME}={selector_value(name)}"


def build_pod_failure_policy() -> Object:
    """Build the exit table for the Job controller; an exit that matches no rule counts against the backoff limit."""

    def on_exit(action: str, codes: list[int]) -> Object:
        requirement = {"containerName": names.TRAINER_CONTAINER, "operator": "In", "values": codes}
        return {"action": action, "onExitCodes": requirement}

    return {
        "rules": [
            # After a GPU's fault the Job ends too: the next attempt's has another node.
            on_exit("FailJob", sorted(map(int, {*handoff.TERMINAL_EXIT_CODES, handoff.ExitCode.GPU_FAULT}))),
            on_exit("Ignore", [int(handoff.ExitCode.PREEMPTED)]),
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        ]
    }


def _build_child(job: FineTuneJob, settings: Settings, attempt: int, image: str, backoff_limit: int) -> Child:
    component, nodes = _component(job, attempt), count_nodes(job, attempt)
    name, spec = build_job_name(job, attempt), job.require_spec()
    meta: Object = {
        "namespace": job.key.namespace,
        "name": name,
        "labels": build_shared_labels(spec, settings) | build_labels(job, component, attempt),
        "annotations": {names.ANNOTATION_JOB_NAME: job.key.name},
        "ownerReferences": [build_owner_reference(names.KIND, job.key.name, job.uid)],
    }
    config_map = build_config_map(meta, build_config(job, settings, attempt))
    peer_token = build_peer_token(meta) if nodes > 1 else None
    more = [mount_peer_token(peer_token["metadata"]["name"])] if peer_token else []
    pod = build_pod_spec(job, settings, component, image, config_map, more)
    template = {
        "metadata": {
            "labels": build_pod_labels(spec, settings) | meta["labels"],
            "annotations": build_pod_annotations(spec, settings, component)
            | meta["annotations"]
            | _topology(job, component),
        },
        "spec": pod | ({"subdomain": name} if nodes > 1 else {}),
    }
    queued = _queue_labels(job, component)
    built_from = {names.ANNOTATION_SETTINGS_SHA256: digest_settings(spec), names.ANNOTATION_IMAGE: image}
    queued_by = {names.ANNOTATION_QUEUED_BY: names.MANAGED_BY} if queued else {}
    annotations = meta["annotations"] | built_from | queued_by | _gang(job, nodes)
    job_meta = meta | {"labels": meta["labels"] | queued, "annotations": annotations}
    return Child(
        config_map=config_map,
        peer_token=peer_token,
        service=build_service(meta) if nodes > 1 else None,
        network_policy=build_network_policy(meta, settings, nodes),
        job=_build_job(job_meta, template, nodes, backoff_limit, suspend=bool(queued)),
    )


def _component(job: FineTuneJob, attempt: int) -> names.Component:
    if attempt == 0:
        return names.Component.PREFLIGHT
    return names.Component.MERGE if job.status.trained_weights else names.Component.TRAINER


def build_config_map(meta: Object, config: BaseModel) -> Object:
    """Build the ConfigMap with the configuration of a pod, named by its digest."""
    text = config.model_dump_json(by_alias=True, exclude_none=True)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": meta | {"name": f"{meta['name']}-{digest_of(text)}"},
        "immutable": True,
        "data": {handoff.CONFIG_FILE: text},
    }


def _build_job(meta: Object, template: Object, nodes: int, backoff_limit: int, *, suspend: bool) -> Object:
    """Build the Job; a queued one is suspended until Kueue admits it, even if Kueue's webhook does not see it."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": meta,
        "spec": {
            **({"suspend": True} if suspend else {}),
            "completionMode": "Indexed",
            "completions": nodes,
            "parallelism": nodes,
            **({"successPolicy": {"rules": [{"succeededIndexes": "0"}]}} if nodes > 1 else {}),
            "backoffLimit": backoff_limit,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": build_pod_failure_policy(),
            "template": template,
        },
    }


def _queue_labels(job: FineTuneJob, component: names.Component) -> dict[str, str]:
    """Return the labels of a Job that Kueue reads."""
    queue, scheduling = queue_name(job, component), job.require_spec().scheduling
    if queue is None:
        return {}
    priority = scheduling.workload_priority_class_name if scheduling else None
    return {names.LABEL_QUEUE: queue} | ({names.LABEL_QUEUE_PRIORITY: priority} if priority else {})


def _topology(job: FineTuneJob, component: names.Component) -> dict[str, str]:
    """Return Kueue's annotation for pods that should be placed close together."""
    scheduling = job.require_spec().scheduling
    wanted = scheduling.topology if scheduling else None
    if wanted is None or component is not names.Component.TRAINER:
        return {}
    return {names.ANNOTATION_TOPOLOGY.format(mode=wanted.mode.lower()): wanted.level or "true"}


def _gang(job: FineTuneJob, nodes: int) -> dict[str, str]:
    """Return the annotations by which other schedulers than Kubernetes' place all pods of a Job or none."""
    scheduling = job.require_spec().scheduling
    scheduler = scheduling.scheduler_name if scheduling else None
    if nodes == 1 or scheduler in {None, names.DEFAULT_SCHEDULER}:
        return {}
    return dict.fromkeys(names.ANNOTATIONS_GANG, str(nodes))
