"""The volumes of a pod, each with its mount."""

from dataclasses import dataclass, replace

from finetune_api import handoff
from finetune_api.blocks import Quantity, SecretRef
from finetune_api.pods.resources import Workspace
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.kube.objects import Object
from finetune_operator.manifests.effective_spec import Token, find_claims, uses_hub

SECRET_MODE = 0o440
CACHE_VOLUME = "model-cache"


@dataclass(frozen=True)
class Mounted:
    """A volume of the pod and its mount in the trainer container."""

    name: str
    path: str
    source: Object
    read_only: bool = False

    @property
    def volume(self) -> Object:
        """Return the entry of `volumes`."""
        return {"name": self.name, **self.source}

    @property
    def mount(self) -> Object:
        """Return the entry of `volumeMounts`."""
        mount: Object = {"name": self.name, "mountPath": self.path}
        return mount | {"readOnly": True} if self.read_only else mount


def build_volumes(
    spec: FineTuneJobSpec,
    tokens: list[Token],
    config_name: str,
    labels: dict[str, str],
    *,
    is_trainer: bool,
    workspace_limit: Quantity | None,
) -> list[Mounted]:
    """Build every volume of a pod, from a spec that includes the operator's defaults; claims of the pod get labels."""
    config = Mounted("config", handoff.CONFIG_DIR, {"configMap": {"name": config_name}}, read_only=True)
    own = [_shared_memory(spec), *_tracking_secrets(spec)] if is_trainer else []
    return [
        config,
        _workspace(spec, workspace_limit, labels),
        *own,
        *_storage_secrets(spec),
        *_hub_secrets(spec, tokens),
        *_reward_secrets(spec),
        *_registry_secrets(spec),
        *(_chat_template(spec) if not is_trainer or not spec.has_preflight else []),
        *_claims(spec),
        *_cache(spec),
    ]


def mount_peer_token(name: str) -> Mounted:
    """Mount the token with which the pods of an attempt recognise each other."""
    source = {"configMap": {"name": name, "defaultMode": SECRET_MODE}}
    return Mounted("peers", handoff.PEER_TOKEN_DIR, source, read_only=True)


def mount_server_secrets(key: SecretRef | None, authority: SecretRef | None) -> list[Mounted]:
    """Mount the key and the authority of the server of a release."""
    sources = [
        {"secret": {"name": ref.name, "items": [{"key": file, "path": file}]}}
        for ref, file in ((key, handoff.SERVER_KEY_FILE), (authority, handoff.CA_FILE))
        if ref
    ]
    source = {"projected": {"defaultMode": SECRET_MODE, "sources": sources}}
    return [Mounted("server", handoff.SERVER_DIR, source, read_only=True)] if sources else []


def _workspace(spec: FineTuneJobSpec, default: Quantity | None, labels: dict[str, str]) -> Mounted:
    own = spec.resources.workspace or Workspace()
    if own.storage_class_name is not None:
        size = {"requests": {"storage": own.size_limit}}
        claim = {"accessModes": ["ReadWriteOnce"], "storageClassName": own.storage_class_name, "resources": size}
        template: Object = ({"metadata": {"labels": labels}} if labels else {}) | {"spec": claim}
        return Mounted("workspace", handoff.WORKSPACE_DIR, {"ephemeral": {"volumeClaimTemplate": template}})
    limit = default if own.size_limit is None else own.size_limit
    return Mounted("workspace", handoff.WORKSPACE_DIR, {"emptyDir": {"sizeLimit": limit} if limit is not None else {}})


def _shared_memory(spec: FineTuneJobSpec) -> Mounted:
    size = spec.resources.shm_size if spec.resources.shm_size is not None else "1Gi"
    path = "/dev/shm"  # noqa: S108 -- where PyTorch's workers share memory
    return Mounted("shm", path, {"emptyDir": {"medium": "Memory", "sizeLimit": size}})


def _storage_secrets(spec: FineTuneJobSpec) -> list[Mounted]:
    storage, found = spec.storage, []
    if storage and storage.credentials_secret_ref:
        found.append(_secret("credentials", handoff.CREDENTIALS_DIR, storage.credentials_secret_ref))
    if storage and storage.ca_secret_ref:
        found.append(_authority("ca", handoff.CA_DIR, storage.ca_secret_ref))
    return found


def _hub_secrets(spec: FineTuneJobSpec, tokens: list[Token]) -> list[Mounted]:
    found = []
    if tokens:
        source = {"projected": {"defaultMode": SECRET_MODE, "sources": [_projection(token) for token in tokens]}}
        found.append(Mounted("hub-tokens", handoff.HUB_TOKENS_DIR, source, read_only=True))
    if spec.hub and spec.hub.ca_secret_ref and _may_use_hub(spec):
        found.append(_authority("hub-ca", handoff.HUB_CA_DIR, spec.hub.ca_secret_ref))
    return found


def _reward_secrets(spec: FineTuneJobSpec) -> list[Mounted]:
    """Mount token and authority of the servers that score answers, in a folder for each of the rewards."""
    sources: list[Object] = []
    for at, reward in enumerate(spec.rewards):
        credentials = reward.service.credentials_secret_ref if reward.service else None
        authority = reward.service.ca_secret_ref if reward.service else None
        for ref, key in ((credentials, handoff.REWARD_TOKEN_FILE), (authority, handoff.CA_FILE)):
            if ref:
                sources.append({"secret": {"name": ref.name, "items": [{"key": key, "path": f"{at}/{key}"}]}})
    source = {"projected": {"defaultMode": SECRET_MODE, "sources": sources}}
    return [Mounted("rewards", handoff.REWARDS_DIR, source, read_only=True)] if sources else []


def _registry_secrets(spec: FineTuneJobSpec) -> list[Mounted]:
    registry, found = spec.output.oci, []
    if registry and registry.credentials_secret_ref:
        plain = _secret("registry", handoff.REGISTRY_DIR, registry.credentials_secret_ref)
        found.append(_single_key(plain, handoff.REGISTRY_KEY_FILE))
    if registry and registry.ca_secret_ref:
        found.append(_authority("registry-ca", handoff.REGISTRY_CA_DIR, registry.ca_secret_ref))
    return found


def _tracking_secrets(spec: FineTuneJobSpec) -> list[Mounted]:
    """Mount trackers' Secrets as optional, because a tracker must never keep a job from running."""
    mlflow = spec.tracking.mlflow if spec.tracking else None
    wandb = spec.tracking.wandb if spec.tracking else None
    found = []
    if mlflow and mlflow.credentials_secret_ref:
        found.append(_secret("mlflow", handoff.MLFLOW_DIR, mlflow.credentials_secret_ref))
    if mlflow and mlflow.ca_secret_ref:
        found.append(_authority("mlflow-ca", handoff.MLFLOW_CA_DIR, mlflow.ca_secret_ref))
    if wandb and wandb.credentials_secret_ref:
        found.append(_secret("wandb", handoff.WANDB_DIR, wandb.credentials_secret_ref))
    if wandb and wandb.ca_secret_ref:
        found.append(_authority("wandb-ca", handoff.WANDB_CA_DIR, wandb.ca_secret_ref))
    return [replace(one, source={"secret": one.source["secret"] | {"optional": True}}) for one in found]


def _may_use_hub(spec: FineTuneJobSpec) -> bool:
    """Return whether the job may use a hub: a reward model may be an adapter whose files name a base on a hub."""
    return uses_hub(spec) or (spec.rlhf is not None and spec.rlhf.reward_model is not None)


def _projection(token: Token) -> Object:
    """Project a token; a missing Secret that the job names blocks the pod, visibly, a missing default one does not."""
    items = [{"key": handoff.HUB_TOKEN_FILE, "path": f"{token.role}/{handoff.HUB_TOKEN_FILE}"}]
    secret: Object = {"name": token.secret, "items": items}
    return {"secret": secret | {"optional": True} if token.is_default else secret}


def _chat_template(spec: FineTuneJobSpec) -> list[Mounted]:
    """Mount the key of the ConfigMap for the pod that checks the job; a missing one blocks the pod, visibly."""
    chosen = spec.model.chat_template
    ref = chosen.config_map_key_ref if chosen else None
    if ref is None:
        return []
    items = [{"key": ref.key, "path": handoff.CHAT_TEMPLATE_FILE}]
    source = {"configMap": {"name": ref.name, "items": items}}
    return [Mounted("chat-template", handoff.CHAT_TEMPLATE_DIR, source, read_only=True)]


def _claims(spec: FineTuneJobSpec) -> list[Mounted]:
    """Mount the claims of `pvc://` URIs; a volume that is the model cache too is mounted a second time."""
    cache = spec.model_cache.claim_name if spec.model_cache else None
    return [
        Mounted(
            CACHE_VOLUME if claim == cache else f"claim-{number}",
            f"{handoff.CLAIMS_DIR}/{claim}",
            {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}},
            read_only=True,
        )
        for number, claim in enumerate(find_claims(spec))
    ]


def _cache(spec: FineTuneJobSpec) -> list[Mounted]:
    if spec.model_cache is None:
        return []
    claim = {"persistentVolumeClaim": {"claimName": spec.model_cache.claim_name}}
    return [Mounted(CACHE_VOLUME, handoff.MODEL_CACHE_DIR, claim)]


def _secret(name: str, path: str, ref: SecretRef) -> Mounted:
    return Mounted(name, path, {"secret": {"secretName": ref.name, "defaultMode": SECRET_MODE}}, read_only=True)


def _authority(name: str, path: str, ref: SecretRef) -> Mounted:
    return _single_key(_secret(name, path, ref), handoff.CA_FILE)


def _single_key(mounted: Mounted, key: str) -> Mounted:
    return replace(mounted, source={"secret": mounted.source["secret"] | {"items": [{"key": key, "path": key}]}})
