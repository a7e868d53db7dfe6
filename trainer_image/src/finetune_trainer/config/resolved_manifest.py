"""`finetune_config.yaml`: the job with resolved defaults, as a manifest to apply or run again."""

from collections.abc import Sequence
from typing import Any, TypeVar

from finetune_api import names
from finetune_api.handoff import JobConfig
from finetune_api.hyperparameters import Hyperparameters
from finetune_api.inputs.sources import DataFiles, Dataset
from finetune_api.manifest.yaml_document import write_document
from finetune_api.objectives import Dpo, Kto, Objective, PolicyLoss, RewardScale
from finetune_api.spec import FineTuneJobSpec, Lora, Method, Mode, Quantization
from finetune_api.status import Resolved
from finetune_trainer.storage.hub.uris import Repo, is_hub_uri, parse_hub_uri

HYPERPARAMETERS = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim",
    "decay_steps", "min_lr_ratio", "neftune_noise_alpha", "adam_beta1", "adam_beta2", "adam_epsilon",
    "per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "precision", "gradient_checkpointing",
    "seed",
)  # fmt: skip
F = TypeVar("F", bound=DataFiles)
LORA = {
    "rank": "lora_rank",
    "alpha": "lora_alpha",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "dropout": "lora_dropout",
    "target_modules": "target_modules",
    "use_rslora": "use_rslora",
    "target_experts": "target_experts",
    "exclude_modules": "exclude_modules",
    "modules_to_save": "modules_to_save",
    "use_dora": "use_dora",
    "init_lora_weights": "init_lora_weights",
    "lora_plus_lr_ratio": "lora_plus_lr_ratio",
    "shard_base": "shard_base",
}
HEADER = """\
# The settings of this training, with every default resolved.
# To repeat it under another name: change metadata.name and output.uri.
"""


def config_yaml(config: JobConfig, resolved: Resolved, read: Sequence[str] = ()) -> str:
    """Return the manifest as YAML; `read` has the URIs of all rows, training first, those of a hub pinned."""
    spec = config.spec.model_copy(
        update={
            "tuning": config.spec.tuning.model_copy(update=_tuning(config, resolved)),
            "hyperparameters": _hyperparameters(config, resolved),
            "evaluation": config.spec.evaluation.model_copy(update=_given({"steps": resolved.eval_steps})),
            "dataset": config.spec.dataset.model_copy(update=_sources(config.spec.dataset, read)),
            **_objective(config.spec, resolved),
        }
    )
    manifest = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": config.name, "namespace": config.namespace},
        "spec": spec.model_dump(mode="json", by_alias=True, exclude_none=True, warnings="error"),
    }
    return HEADER + write_document(manifest)


def _objective(spec: FineTuneJobSpec, resolved: Resolved) -> dict[str, Any]:
    """Return the block of the objective, which holds its defaults; RLHF and Distillation always have one."""
    match spec.objective:
        case Objective.DPO:
            return {"dpo": spec.dpo or Dpo()}
        case Objective.KTO:
            return {"kto": spec.kto or Kto()}
        case Objective.RLHF if spec.rlhf and resolved.loss_type and resolved.scale_rewards:
            loss, scale = PolicyLoss(resolved.loss_type), RewardScale(resolved.scale_rewards)
            return {"rlhf": spec.rlhf.model_copy(update={"loss_type": loss, "scale_rewards": scale})}
        case _:
            return {}


def _hyperparameters(config: JobConfig, resolved: Resolved) -> Hyperparameters:
    """Return the settings in use, with the words of `resolved` as values of their types."""
    values = {name: getattr(resolved, name) for name in HYPERPARAMETERS}
    values["precision"] = resolved.precision or "Auto"
    if not config.spec.hyperparameters.max_steps:
        values["num_train_epochs"] = resolved.num_train_epochs
    return Hyperparameters.model_validate(config.spec.hyperparameters.model_dump() | _given(values))


def _tuning(config: JobConfig, resolved: Resolved) -> dict[str, Any]:
    tuning = config.spec.tuning
    method = Method(resolved.method or tuning.method)
    if resolved.lora_rank is None or config.spec.mode is Mode.EVALUATE:  # the adapter has its own settings
        return {"method": method}
    changes: dict[str, Any] = {
        "method": method,
        "lora": Lora(**_given({name: getattr(resolved, source) for name, source in LORA.items()})),
    }
    if resolved.double_quant is not None:
        changes["quantization"] = Quantization(double_quant=resolved.double_quant)
    return changes


def _sources(dataset: Dataset, read: Sequence[str]) -> dict[str, Any]:
    train = dataset.train
    changes: dict[str, Any] = {
        "train": train.model_copy(update={"sources": [_at_commit(one, _unambiguous(read)) for one in train.sources]})
        if train.sources
        else _at_commit(train, read)
    }
    if dataset.validation:
        changes["validation"] = _at_commit(dataset.validation, read[::-1])
    return changes


def _unambiguous(read: Sequence[str]) -> list[str]:
    """Return the URIs of repositories that were read at one commit alone: of others it is not known which was whose."""
    commits: dict[Repo, set[str | None]] = {}
    hub = [(uri, parse_hub_uri(uri)) for uri in read if is_hub_uri(uri)]
    for _, one in hub:
        commits.setdefault(one.repo, set()).add(one.commit)
    return [uri for uri, one in hub if len(commits[one.repo]) == 1]


def _at_commit(source: F, read: Sequence[str]) -> F:
    """Pin a hub source to its commit, so that a later change of the branch has no effect."""
    if not is_hub_uri(source.uri):
        return source
    repo = parse_hub_uri(source.uri).repo
    found = (parse_hub_uri(uri) for uri in read if is_hub_uri(uri))
    commit = next((one.commit for one in found if one.repo == repo), None)
    return source.model_copy(update={"revision": commit}) if commit else source


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
