"""The pod of each component: its container, environment, security and placement, and the labels that others ask for."""

import hashlib
from collections.abc import Iterable, Sequence

from finetune_api import handoff, names
from finetune_api.pods.containers import EnvironmentVariable
from finetune_api.pods.scheduling import Scheduling
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.kube.objects import FineTuneJob, Object
from finetune_operator.manifests.avoidance import place_elsewhere
from finetune_operator.manifests.effective_spec import (
    build_effective_spec,
    effective_pull_secrets,
    effective_scheduling,
    hub_tokens,
)
from finetune_operator.manifests.pod_resources import build_pod_claims, build_resources
from finetune_operator.manifests.volumes import Mounted, build_volumes
from finetune_operator.settings import Settings

COMMANDS = {
    names.Component.PREFLIGHT: "preflight",
    names.Component.TRAINER: "train",
    names.Component.MERGE: "finish",
    names.Component.RELEASE: "release",
}
PLACEMENT = frozenset({"node_selector", "priority_class_name", "scheduler_name"})
"""The fields of the effective scheduling that every pod gets, in addition to the tolerations."""
OF_TRAINERS = frozenset({"affinity", "topology_spread_constraints", "runtime_class_name"})
"""Those that only a trainer gets."""
CACHES = ("HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR")
PROXIES = ("http_proxy", "https_proxy", "no_proxy")


def build_pod_spec(  # noqa: PLR0917 - what a pod is made of
    job: FineTuneJob,
    settings: Settings,
    component: names.Component,
    image: str,
    config: Object,
    more: Sequence[Mounted] = (),
) -> Object:
    """Build the pod of a component; its configuration is mounted from that ConfigMap, next to `more`."""
    spec = job.require_spec()
    is_trainer = component is names.Component.TRAINER
    effective, tokens = build_effective_spec(spec, settings), hub_tokens(spec, settings)
    config_name, digest = config["metadata"]["name"], digest_of(config["data"][handoff.CONFIG_FILE])
    is_preflight = component in {names.Component.PREFLIGHT, names.Component.RELEASE}
    limit = settings.preflight_workspace_limit if is_preflight else None
    labels = build_shared_labels(spec, settings)
    mounted = [
        *build_volumes(effective, tokens, config_name, labels, is_trainer=not is_preflight, workspace_limit=limit),
        *more,
    ]
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
    wanted = {*PLACEMENT, *(OF_TRAINERS if component is names.Component.TRAINER else ())}
    if scheduling.tolerations:
        given["tolerations"] = [
            one.model_dump(mode="json", by_alias=True, exclude_none=True) for one in scheduling.tolerations
        ]
    chosen = scheduling.model_dump(mode="json", by_alias=True, exclude_none=True, include=wanted)
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


def digest_of(text: str) -> str:
    """Return the SHA-256 of a configuration, which its pod compares."""
    return hashlib.sha256(text.encode()).hexdigest()


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
