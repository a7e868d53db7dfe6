"""The Job of a release, built like a preflight Job. Pure: typed input in, the whole object out."""

from finetune_api import names
from finetune_api.inputs.sources import ModelCache
from finetune_api.release import FineTuneReleaseSpec, ReleaseConfig, ReleasedResult
from finetune_api.spec import FineTuneJobSpec, Output
from finetune_api.status import FineTuneJobStatus
from finetune_operator.kube.child_names import selector_value, slug
from finetune_operator.kube.objects import FineTuneJob, Object
from finetune_operator.manifests.effective_spec import build_effective_spec, queue_name
from finetune_operator.manifests.jobs import build_config_map, build_owner_reference, build_pod_failure_policy
from finetune_operator.manifests.network import build_dns_rule
from finetune_operator.manifests.pods import (
    build_pod_annotations,
    build_pod_labels,
    build_pod_spec,
    build_shared_labels,
)
from finetune_operator.manifests.volumes import mount_server_secrets
from finetune_operator.release.objects import Release
from finetune_operator.settings import Settings

LABEL = names.ANNOTATION_RELEASE_NAME
BACKOFF_LIMIT = 3
OF_A_JOB = ("storage", "trainer", "scheduling", "preflight", "resources")
"""The blocks of a job's spec that the pod of its release takes over."""


def build_name(release: Release) -> str:
    """Return the name of the Job of a generation."""
    return f"{slug(release.key.name)}-r{release.generation}"


def build_selector(name: str) -> str:
    """Return the label selector of a release's Jobs and pods."""
    return f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY},{LABEL}={selector_value(name)}"


def build_carrier(release: Release, spec: FineTuneReleaseSpec, job: FineTuneJob | None) -> FineTuneJob:
    """Return a job with the pod that the release needs, for the checks and builders of jobs.

    The volume of the adapters takes the place of the model cache: the same list allows its claim, and it is mounted at
    the same path.
    """
    of_job = job.spec.output.uri if job and job.spec else "s3://unused/result"
    uri = spec.target.files.uri if spec.target.files else (spec.uri or of_job)
    source = spec.uri or uri
    content = {
        "objective": "Chat",
        "model": {"uri": source},
        "dataset": {"train": {"uri": source}},
        "output": {"uri": uri},
    }
    given = {name: getattr(job.spec, name) for name in OF_A_JOB} if job and job.spec else {"storage": spec.storage}
    vllm = spec.target.vllm
    given |= {"model_cache": ModelCache(claim_name=vllm.volume.claim_name) if vllm else None}
    if job and job.spec and not spec.target.files:
        given |= {"output": Output(uri=job.spec.output.uri)}
    return FineTuneJob(
        key=release.key,
        uid=release.uid,
        generation=release.generation,
        created=None,
        is_deleting=False,
        keeps_children=False,
        resource_version="",
        writers={},
        queue_label=job.queue_label if job else None,
        spec=FineTuneJobSpec.model_validate(content).model_copy(update=given),
        spec_error="",
        status=FineTuneJobStatus(),
        status_error="",
    )


def build_children(
    release: Release, spec: FineTuneReleaseSpec, candidate: ReleasedResult, carrier: FineTuneJob, settings: Settings
) -> list[Object]:
    """Build what the release's pod needs, then the Job."""
    name, job_spec = build_name(release), carrier.require_spec()
    labels = build_shared_labels(job_spec, settings) | {
        names.LABEL_NAME: names.RELEASE_SINGULAR,
        names.LABEL_INSTANCE: selector_value(release.key.name),
        names.LABEL_COMPONENT: names.Component.RELEASE.value,
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        LABEL: selector_value(release.key.name),
        names.LABEL_RELEASE_GENERATION: str(release.generation),
    }
    owner = build_owner_reference(names.RELEASE_KIND, release.key.name, release.uid)
    meta: Object = {"namespace": release.key.namespace, "name": name, "labels": labels, "ownerReferences": [owner]}
    config = ReleaseConfig(
        namespace=release.key.namespace,
        name=release.key.name,
        uid=release.uid,
        generation=release.generation,
        candidate=candidate,
        answering=release.status.answering,
        storage=build_effective_spec(job_spec, settings).storage,
        target=spec.target,
        require=spec.require,
        rollback=spec.rollback,
    )
    config_map = build_config_map(meta, config)
    image = job_spec.trainer.image or settings.preflight_image or settings.trainer_image
    vllm = spec.target.vllm
    secrets = mount_server_secrets(vllm.credentials_secret_ref, vllm.ca_secret_ref) if vllm else []
    pod = build_pod_spec(carrier, settings, names.Component.RELEASE, image, config_map, secrets)
    queue = queue_name(carrier, names.Component.RELEASE)
    job: Object = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": meta | {"labels": labels | ({names.LABEL_QUEUE: queue} if queue else {})},
        "spec": {
            **({"suspend": True} if queue else {}),
            "backoffLimit": BACKOFF_LIMIT,
            "activeDeadlineSeconds": spec.progress_deadline_seconds,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": build_pod_failure_policy(),
            "template": {
                "metadata": {
                    "labels": build_pod_labels(job_spec, settings) | labels,
                    "annotations": build_pod_annotations(job_spec, settings, names.Component.RELEASE),
                },
                "spec": pod,
            },
        },
    }
    egress: Object = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": meta,
        "spec": {
            "podSelector": {"matchLabels": {label: labels[label] for label in (LABEL, names.LABEL_RELEASE_GENERATION)}},
            "policyTypes": ["Egress"],
            "egress": [build_dns_rule(settings), *(settings.pod_egress or [])],
        },
    }
    return [config_map, *([egress] if settings.pod_egress is not None else []), job]


def set_adapter(adapters: tuple[Object, ...], name: str, uri: str | None) -> list[Object]:
    """Return the adapters of a service with another URI under that name; None removes it."""
    others = [one for one in adapters if one.get("name") != name]
    own = next((one for one in adapters if one.get("name") == name), {"name": name})
    return others if uri is None else [*others, own | {"uri": uri}]
