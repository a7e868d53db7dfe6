"""The resources that each of a job's pods requests."""

from finetune_api.blocks import Quantity
from finetune_api.names import Component
from finetune_api.pods import PodResources
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.kube.objects import Object
from finetune_operator.settings import Settings

MERGED_WITH = frozenset({"cpu", "memory", "ephemeral-storage"})
"""The trainer's resources that a merge gets by default."""
PREFLIGHT_REQUESTS: dict[str, Quantity] = {"cpu": "250m", "memory": "512Mi"}


def build_resources(spec: FineTuneJobSpec, component: Component, settings: Settings) -> Object:
    """Return requests and limits of a pod; only the trainer has GPUs."""
    if component is Component.PREFLIGHT:
        found = _preflight(spec, settings.preflight_memory_limit)
    else:
        found = _trainer(spec) if component is Component.TRAINER else _merge(spec)
    return {kind: values for kind, values in found.items() if values}


def _trainer(spec: FineTuneJobSpec) -> Object:
    resources = spec.resources
    gpus = {resources.gpu_resource_name: resources.gpus_per_node} if resources.gpus_per_node else {}
    return {kind: values | gpus for kind, values in _without_gpus(spec, resources.requests, resources.limits).items()}


def _merge(spec: FineTuneJobSpec) -> Object:
    """Return the job's own, else the trainer's: those on the list, because a merge uses no device."""
    if (own := spec.resources.merge) is not None:
        return _without_gpus(spec, own.requests, own.limits)
    default = _without_gpus(spec, spec.resources.requests, spec.resources.limits)
    return {kind: {name: values[name] for name in values if name in MERGED_WITH} for kind, values in default.items()}


def _without_gpus(
    spec: FineTuneJobSpec, requests: dict[str, Quantity] | None, limits: dict[str, Quantity] | None
) -> dict[str, Object]:
    given, gpu = {"requests": requests or {}, "limits": limits or {}}, spec.resources.gpu_resource_name
    return {kind: {name: value for name, value in values.items() if name != gpu} for kind, values in given.items()}


def _preflight(spec: FineTuneJobSpec, memory: Quantity | None) -> Object:
    """Return the job's own, with the operator's requests if it has none, and with the operator's memory limit if it
    has neither a limit nor a request of memory, which could be larger."""
    given = (spec.preflight and spec.preflight.resources) or PodResources()
    requests, limits = dict(given.requests or {}), dict(given.limits or {})
    if memory is not None and "memory" not in requests | limits:
        limits["memory"] = memory
        # Without a request, Kubernetes would make the limit one.
        requests["memory"] = PREFLIGHT_REQUESTS["memory"]
    if given.requests is None:
        # A default request above the user's own limit would be refused.
        requests = {name: (given.limits or {}).get(name, value) for name, value in PREFLIGHT_REQUESTS.items()}
    return {"requests": requests, "limits": limits}
