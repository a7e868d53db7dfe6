"""The spec with the operator's defaults: storage, hub and token for the pods to read, placement for their manifests."""

from dataclasses import dataclass
from typing import TypeVar

from finetune_api.blocks import Block, SecretRef
from finetune_api.endpoints import matches_pattern
from finetune_api.handoff import HubRole
from finetune_api.inputs.claims import is_claim_uri, split_claim_uri
from finetune_api.names import Component
from finetune_api.pods.scheduling import Scheduling
from finetune_api.spec import FineTuneJobSpec, Hub, Merge, Method
from finetune_api.spec_sources import list_sources
from finetune_operator.kube.objects import FineTuneJob
from finetune_operator.settings import Settings

HUB_ENDPOINT = "https://huggingface.co"
"""Hub of a job that names none, if the operator has no default hub."""
HUB_SCHEME = "hf://"

B = TypeVar("B", bound=Block)


@dataclass(frozen=True)
class Token:
    """A Secret with a hub's token, for one source of the job, or for its result."""

    role: HubRole
    """What the token is for; also the folder that it is mounted in."""
    secret: str
    is_default: bool
    """Whether the operator's settings name it, not the job; it may then be absent, because most sources are public."""


def build_effective_spec(spec: FineTuneJobSpec, settings: Settings) -> FineTuneJobSpec:
    """Return the spec with the operator's default storage and hub, as the pods read it; tokens are only mounted."""
    filled = {"storage": _fill_defaults(spec.storage, settings.default_storage()), "hub": effective_hub(spec, settings)}
    return spec.model_copy(update=filled)


def effective_hub(spec: FineTuneJobSpec, settings: Settings) -> Hub | None:
    """Return the job's hub; without an endpoint, it is completed from the operator's default, field by field."""
    return _fill_defaults(spec.hub, settings.default_hub())


def effective_scheduling(spec: FineTuneJobSpec, settings: Settings, component: Component) -> Scheduling:
    """Return the job's scheduling for a pod; a field that it does not set has the operator's default, and an empty one
    none. A pod that needs no GPU has the node labels of the operator's setting alone."""
    own = spec.scheduling or Scheduling()
    defaults = {
        "tolerations": settings.default_tolerations,
        "node_selector": settings.default_node_selector,
        "runtime_class_name": settings.default_runtime_class,
    }
    changes = {name: value for name, value in defaults.items() if getattr(own, name) is None}
    if component is not Component.TRAINER:
        changes["node_selector"] = settings.cpu_pod_node_selector
        changes |= {} if settings.cpu_pod_tolerations is None else {"tolerations": settings.cpu_pod_tolerations}
    return own.model_copy(update=changes)


def effective_pull_secrets(spec: FineTuneJobSpec, settings: Settings) -> list[SecretRef]:
    """Return the job's pull secrets, or the operator's default if it sets none."""
    own = spec.trainer.image_pull_secrets
    return [SecretRef(name=name) for name in settings.default_image_pull_secrets] if own is None else own


def hub_endpoint(spec: FineTuneJobSpec, settings: Settings) -> str:
    """Return the URL of the hub that the job's `hf://` URIs refer to."""
    hub = effective_hub(spec, settings)
    return (hub and hub.endpoint) or HUB_ENDPOINT


def allows_hub(spec: FineTuneJobSpec, settings: Settings) -> bool:
    """Return whether the operator's list allows the hub of the job's `hf://` URIs, which the default one always is."""
    hub, allowed = hub_endpoint(spec, settings), settings.allowed_hub_endpoints
    return not allowed or hub == settings.default_hub_endpoint or any(matches_pattern(hub, one) for one in allowed)


def hub_tokens(spec: FineTuneJobSpec, settings: Settings) -> list[Token]:
    """Return the token of each hub source and of the push; the default token is only used for the default hub."""
    default = settings.default_hub_token_secret
    if hub_endpoint(spec, settings).rstrip("/") != (settings.default_hub_endpoint or HUB_ENDPOINT).rstrip("/"):
        default = None
    asked = {one.role: one.secret for one in list_sources(spec) if one.role and one.uri.startswith(HUB_SCHEME)}
    if spec.output.hub:
        asked[HubRole.OUTPUT] = spec.output.hub.credentials_secret_ref
    secrets = ((role, own, own.name if own else default) for role, own in asked.items())
    return [Token(role, secret, is_default=own is None) for role, own, secret in secrets if secret]


def queue_name(job: FineTuneJob, component: Component) -> str | None:
    """Return the LocalQueue of a component's Job: its own, else the trainer's, else that of the job's label."""
    spec = job.spec
    return (
        own_queue(job, component)
        or (spec.scheduling.queue_name if spec and spec.scheduling else None)
        or job.queue_label
        or None
    )


def own_queue(job: FineTuneJob, component: Component) -> str | None:
    """Return the queue that the job names for its preflight or its merge alone."""
    spec = job.spec
    blocks = {Component.PREFLIGHT: spec.preflight, Component.MERGE: spec.resources.merge} if spec else {}
    block = blocks.get(component)
    return block.queue_name if block else None


def needs_separate_merge(job: FineTuneJob) -> bool:
    """Return whether a full model is merged in a Job without GPUs: several GPUs would wait for it, or it is requested.

    With one GPU, the trainer merges by itself unless the job names resources for the merge.
    """
    if job.spec is None:
        return False
    resources, resolved = job.spec.resources, job.status.resolved
    method = (resolved and resolved.method) or job.spec.tuning.method
    has_full_model = method == Method.FULL or job.spec.output.merge is not Merge.NONE
    return has_full_model and (resources.merge is not None or resources.num_nodes * resources.gpus_per_node > 1)


def uses_hub(spec: FineTuneJobSpec) -> bool:
    """Return whether any source of the job is on a hub, or its result goes to one."""
    return spec.output.hub is not None or any(one.uri.startswith(HUB_SCHEME) for one in list_sources(spec))


def find_claims(spec: FineTuneJobSpec) -> list[str]:
    """Return the PersistentVolumeClaims that the job's sources are in, in order."""
    return sorted({split_claim_uri(one.uri)[0] for one in list_sources(spec) if is_claim_uri(one.uri)})


def _fill_defaults(own: B | None, default: B | None) -> B | None:
    """Return `own` completed from `default`, unless `own` names an endpoint.

    The default's credentials and CA belong to the default's endpoint.
    """
    if own is None or default is None:
        return own or default
    given = {name: value for name in type(own).model_fields if (value := getattr(own, name)) is not None}
    return own if "endpoint" in given else default.model_copy(update=given)
