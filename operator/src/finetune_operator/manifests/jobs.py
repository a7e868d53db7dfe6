"""Builders of everything that the operator creates. Pure: typed input in, the whole object out."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import BaseModel

from finetune_api import handoff, names
from finetune_api.pods.containers import EnvironmentVariable
from finetune_api.pods.scheduling import Scheduling
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus, Lineage
from finetune_operator.kube.child_names import selector_value, slug
from finetune_operator.kube.objects import FineTuneJob, Object
from finetune_operator.manifests.avoidance import place_elsewhere
from finetune_operator.manifests.effective_spec import (
    allows_hub,
    build_effective_spec,
    effective_pull_secrets,
    effective_scheduling,
    hub_tokens,
    needs_separate_merge,
    queue_name,
)
from finetune_operator.manifests.network import build_network_policy, build_peer_token, build_service
from finetune_operator.manifests.pod_resources import build_pod_claims, build_resources
from finetune_operator.manifests.settings_digest import digest_settings
from finetune_operator.manifests.volumes import build_volumes, mount_peer_token
from finetune_operator.settings import Settings

PREFLIGHT_BACKOFF_LIMIT = 3
COMMANDS = {
    names.Component.PREFLIGHT: "preflight",
    names.Component.TRAINER: "train",
    names.Component.MERGE: "finish",
    names.Component.RELEASE: "release",
}
PLACEMENT: dict[names.Component, set[str]] = {
    names.Component.PREFLIGHT: {"node_selector", "scheduler_name"},
    names.Component.TRAINER: {
        *("node_selector", "affinity", "topology_spread_constraints"),
        *("priority_class_name", "runtime_class_name", "scheduler_name"),
    },
    names.Component.MERGE: {"node_selector", "priority_class_name", "scheduler_name"},
    names.Component.RELEASE: {"node_selector", "scheduler_name"},
}
"""The fields of the effective scheduling that each pod gets, in addition to the tolerations."""
CACHES = ("HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR")
PROXIES = ("http_proxy", "https_proxy", "no_proxy")


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
    left = max(0, _spec(job).backoff_limit - count_failures(job.status)) if count_nodes(job, attempt) == 1 else 0
    return _build_child(job, settings, attempt, image, left)


def count_failures(status: FineTuneJobStatus) -> int:
    """Return the failed runs that count against `backoffLimit` now: those of the training, or those of the merge."""
    earlier = status.internal.failures_before_merge if status.trained_weights and status.internal else None
    return (status.failures or 0) - (earlier or 0)


def count_nodes(job: FineTuneJob, attempt: int) -> int:
    """Return the number of pods of the next Job; preflight and merge have one."""
    return 1 if not attempt or job.status.trained_weights else _spec(job).resources.num_nodes


def build_config(job: FineTuneJob, settings: Settings, attempt: int) -> handoff.JobConfig:
    """Build the configuration that the pod reads."""
    spec, pinned = _spec(job), job.status.lineage or Lineage()
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
    name = build_job_name(job, attempt)
    meta: Object = {
        "namespace": job.key.namespace,
        "name": name,
        "labels": build_shared_labels(_spec(job), settings) | build_labels(job, component, attempt),
        "annotations": {names.ANNOTATION_JOB_NAME: job.key.name},
        "ownerReferences": [build_owner_reference(names.KIND, job.key.name, job.uid)],
    }
    config_map = build_config_map(meta, build_config(job, settings, attempt))
    peer_token = build_peer_token(meta) if nodes > 1 else None
    pod = build_pod_spec(job, settings, component, image, config_map, peer_token)
    template = {
        "metadata": {
            "labels": build_pod_labels(_spec(job), settings) | meta["labels"],
            "annotations": build_pod_annotations(_spec(job), settings, component)
            | meta["annotations"]
            | _topology(job, component),
        },
        "spec": pod | ({"subdomain": name} if nodes > 1 else {}),
    }
    queued = _queue_labels(job, component)
    built_from = {names.ANNOTATION_SETTINGS_SHA256: digest_settings(_spec(job)), names.ANNOTATION_IMAGE: image}
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


def digest_of(text: str) -> str:
    """Return the SHA-256 of a configuration, which its pod compares."""
    return hashlib.sha256(text.encode()).hexdigest()


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
    queue, scheduling = queue_name(job, component), _spec(job).scheduling
    if queue is None:
        return {}
    priority = scheduling.workload_priority_class_name if scheduling else None
    return {names.LABEL_QUEUE: queue} | ({names.LABEL_QUEUE_PRIORITY: priority} if priority else {})


def build_pod_labels(spec: FineTuneJobSpec, settings: Settings) -> dict[str, str]:
    """Return the labels of others on the pods of a job: the platform's, then the job's."""
    return (settings.default_pod_labels or {}) | (spec.trainer.pod_labels or {})


def build_shared_labels(spec: FineTuneJobSpec, settings: Settings) -> dict[str, str]:
    """Return those of them for everything else that is created for the pods: all but Kueue's, which queue a Job."""
    labels = build_pod_labels(spec, settings)
    return {name: value for name, value in labels.items() if not name.startswith(f"{names.KUEUE_GROUP}/")}


def build_pod_annotations(spec: FineTuneJobSpec, settings: Settings, component: names.Component) -> dict[str, str]:
    """Return the annotations of others on a pod: the platform's, and on trainers then the job's."""
    own = spec.trainer.pod_annotations if component is names.Component.TRAINER else None
    return (settings.default_pod_annotations or {}) | (own or {})


def _topology(job: FineTuneJob, component: names.Component) -> dict[str, str]:
    """Return Kueue's annotation for pods that should be placed close together."""
    scheduling = _spec(job).scheduling
    wanted = scheduling.topology if scheduling else None
    if wanted is None or component is not names.Component.TRAINER:
        return {}
    return {names.ANNOTATION_TOPOLOGY.format(mode=wanted.mode.lower()): wanted.level or "true"}


def _gang(job: FineTuneJob, nodes: int) -> dict[str, str]:
    """Return the annotations by which other schedulers than Kubernetes' place all pods of a Job or none."""
    scheduling = _spec(job).scheduling
    scheduler = scheduling.scheduler_name if scheduling else None
    if nodes == 1 or scheduler in {None, names.DEFAULT_SCHEDULER}:
        return {}
    return dict.fromkeys(names.ANNOTATIONS_GANG, str(nodes))


def build_pod_spec(  # noqa: PLR0917 - what a pod is made of
    job: FineTuneJob,
    settings: Settings,
    component: names.Component,
    image: str,
    config: Object,
    peer_token: Object | None,
) -> Object:
    """Build the pod of a component; its configuration is mounted from that ConfigMap."""
    spec = _spec(job)
    is_trainer = component is names.Component.TRAINER
    effective, tokens = build_effective_spec(spec, settings), hub_tokens(spec, settings)
    config_name, digest = config["metadata"]["name"], digest_of(config["data"][handoff.CONFIG_FILE])
    is_preflight = component in {names.Component.PREFLIGHT, names.Component.RELEASE}
    limit = settings.preflight_workspace_limit if is_preflight else None
    labels = build_shared_labels(spec, settings)
    mounted = build_volumes(effective, tokens, config_name, labels, is_trainer=not is_preflight, workspace_limit=limit)
    if peer_token:
        mounted.append(mount_peer_token(peer_token["metadata"]["name"]))
    environment = _environment(image, digest, settings, spec.trainer.env or () if is_trainer else ())
    container = _container(spec, component, image, environment, build_resources(spec, component, settings))
    pod: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": spec.checkpoint.grace_period_seconds,
        "securityContext": _pod_security(settings),
        "containers": [container | {"volumeMounts": [one.mount for one in mounted]}],
        "volumes": list({one.name: one.volume for one in mounted}.values()),
    }
    if spec.trainer.service_account_name:
        pod["serviceAccountName"] = spec.trainer.service_account_name
    if secrets := effective_pull_secrets(spec, settings):
        pod["imagePullSecrets"] = [{"name": secret.name} for secret in secrets]
    if is_trainer and spec.resources.claims:
        pod["resourceClaims"] = build_pod_claims(spec.resources.claims)
    placed = pod | _scheduling(effective_scheduling(spec, settings, component), component)
    affinity = place_elsewhere(placed.get("affinity"), job.status, settings) if is_trainer else None
    return placed | ({"affinity": affinity} if affinity else {})


def _scheduling(scheduling: Scheduling, component: names.Component) -> Object:
    """Return the scheduling fields of a pod."""
    given: Object = {}
    if scheduling.tolerations:
        given["tolerations"] = [
            one.model_dump(mode="json", by_alias=True, exclude_none=True) for one in scheduling.tolerations
        ]
    chosen = scheduling.model_dump(mode="json", by_alias=True, exclude_none=True, include=PLACEMENT[component])
    return given | {key: value for key, value in chosen.items() if value}


def _pod_security(settings: Settings) -> Object:
    context: Object = {
        "runAsNonRoot": True,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    user = settings.trainer_run_as_user
    return context if user is None else context | {"runAsUser": user, "runAsGroup": user, "fsGroup": user}


def _container(
    spec: FineTuneJobSpec, component: names.Component, image: str, environment: list[Object], resources: Object
) -> Object:
    return {
        "name": names.TRAINER_CONTAINER,
        "image": image,
        "imagePullPolicy": spec.trainer.image_pull_policy,
        "args": [COMMANDS[component]],
        "workingDir": handoff.WORKSPACE_DIR,
        "env": environment,
        "ports": [{"name": "progress", "containerPort": handoff.PROGRESS_PORT}],
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": handoff.TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _environment(
    image: str, config_sha256: str, settings: Settings, asked: Iterable[EnvironmentVariable]
) -> list[Object]:
    """Return the variables of a pod; those that the job asks for cannot replace the operator's."""
    workspace = handoff.WORKSPACE_DIR
    plain = {one.name: escape_variables(one.value) for one in asked} | {
        "HOME": workspace,
        "TMPDIR": workspace,
        **{name: f"{workspace}/.cache/{name.lower()}" for name in CACHES},
        "PYTHONSAFEPATH": "1",  # the working directory, which holds downloaded files, is not searched for modules
        "AWS_EC2_METADATA_DISABLED": "true",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **_proxies(settings),
        handoff.ENV_IMAGE: escape_variables(image),
        handoff.ENV_CONFIG_SHA256: config_sha256,
    }
    fields = {
        handoff.ENV_POD_UID: "metadata.uid",
        handoff.ENV_POD_NAME: "metadata.name",
        handoff.ENV_POD_IP: "status.podIP",
    }
    return [{"name": name, "value": value} for name, value in plain.items()] + [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()
    ]


def _proxies(settings: Settings) -> dict[str, str]:
    """Return the proxy variables in upper and lower case, because libraries differ; no_proxy only with a proxy."""
    given = {name: value for name in PROXIES if (value := getattr(settings, name))}
    if not given.keys() - {"no_proxy"}:
        return {}
    return {spelled: escape_variables(value) for name, value in given.items() for spelled in (name.upper(), name)}


def escape_variables(text: str) -> str:
    """Escape `$(NAME)`, which the kubelet would replace by a variable."""
    return text.replace("$(", "$$(")


def _spec(job: FineTuneJob) -> FineTuneJobSpec:
    if job.spec is None:
        raise ValueError(f"{job.key} has no readable spec")
    return job.spec
