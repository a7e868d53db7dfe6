"""The resources that each of a job's pods requests."""

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal

from finetune_api.blocks import Quantity
from finetune_api.names import Component
from finetune_api.pods.resources import DeviceClaim, PodResources, ResourceList
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.kube.objects import Object
from finetune_operator.settings import Settings

MERGED_WITH = frozenset({"cpu", "memory", "ephemeral-storage"})
"""The trainer's resources that a merge gets by default."""
PREFLIGHT_REQUESTS: dict[str, Quantity] = {"cpu": "250m", "memory": "512Mi"}


def build_resources(spec: FineTuneJobSpec, component: Component, settings: Settings) -> Object:
    """Return requests and limits of a pod; only the trainer has GPUs."""
    if component in {Component.PREFLIGHT, Component.RELEASE}:
        found = _preflight(spec, settings.preflight_memory_limit)
    else:
        found = _trainer(spec, settings) if component is Component.TRAINER else _merge(spec, settings)
    return {kind: values for kind, values in found.items() if values}


def _trainer(spec: FineTuneJobSpec, settings: Settings) -> Object:
    resources = spec.resources
    claims = [{"name": one.name} | ({"request": one.request} if one.request else {}) for one in resources.claims or ()]
    counted = 0 if claims else resources.gpus_per_node
    gpus = {resources.gpu_resource_name: counted} if counted else {}
    processes = max(1, resources.gpus_per_node)
    default = {name: _times(quantity, processes) for name, quantity in settings.default_requests().items()}
    found = _without_gpus(spec, _filled(resources.requests, resources.limits, default))
    return {kind: values | gpus for kind, values in found.items()} | {"claims": claims}


def build_pod_claims(claims: Iterable[DeviceClaim]) -> list[Object]:
    """Return the claims of a pod: a claim of the namespace, or a template of which the pod gets one."""
    return [one.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"request"}) for one in claims]


def _merge(spec: FineTuneJobSpec, settings: Settings) -> Object:
    """Return the job's own, else the trainer's: those on the list, because a merge uses no device."""
    own, default = spec.resources.merge, settings.default_requests()
    if own is not None:
        return _without_gpus(spec, _filled(own.requests, own.limits, default))
    found = _filled(spec.resources.requests, spec.resources.limits, default)
    return {kind: {name: values[name] for name in values if name in MERGED_WITH} for kind, values in found.items()}


def _filled(
    requests: ResourceList | None, limits: ResourceList | None, default: Mapping[str, Quantity]
) -> dict[str, Object]:
    """Return requests and limits; absent requests get the default, which a limit of the job bounds as in Kubernetes."""
    limits = limits or {}
    if requests is None:
        requests = {name: limits.get(name, value) for name, value in default.items()}
    return {"requests": requests, "limits": limits}


def _without_gpus(spec: FineTuneJobSpec, given: dict[str, Object]) -> dict[str, Object]:
    gpu = spec.resources.gpu_resource_name
    return {kind: {name: value for name, value in values.items() if name != gpu} for kind, values in given.items()}


def _preflight(spec: FineTuneJobSpec, memory: Quantity | None) -> dict[str, Object]:
    """Return the job's own, with the operator's memory limit if it has neither a limit nor a request of memory, which
    could be larger. Empty requests leave everything to a LimitRange."""
    given = (spec.preflight and spec.preflight.resources) or PodResources()
    found = _filled(given.requests, given.limits, PREFLIGHT_REQUESTS)
    if memory is None or given.requests == {} or "memory" in {**(given.requests or {}), **(given.limits or {})}:
        return found
    # Without a request, Kubernetes would make the limit one.
    least = {"memory": PREFLIGHT_REQUESTS["memory"]}
    return {"requests": least | found["requests"], "limits": found["limits"] | {"memory": memory}}


def _times(quantity: Quantity, count: int) -> Quantity:
    """Multiply a quantity, in its own unit."""
    number, unit = re.fullmatch(r"([0-9.]+)(.*)", str(quantity)).groups()  # type: ignore[union-attr]
    return f"{Decimal(number) * count}{unit}"
