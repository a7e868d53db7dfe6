"""The conditions of the CRD's CEL rules in Python, by the CEL text."""

import json
import math
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

from finetune_api.blocks import DATA_URI, FILE_URI, MODEL_URI, S3_URI
from finetune_api.defaults import rollouts_share
from finetune_api.endpoints import ENDPOINT
from finetune_api.evaluate_mode import EVALUATE_RULE, find_evaluate_faults
from finetune_api.hyperparameters import (
    FITTING_DECAY,
    HAS_BETAS,
    HAS_DECAY,
    HAS_EPSILON,
    HAS_LOWEST_RATE,
    HAS_WARMUP,
    NOISE_WITHOUT_FLASH,
    NOISE_WITHOUT_PACKING,
    WHOLE_DECAY,
    WITHOUT_BETAS,
    WITHOUT_EPSILON,
)
from finetune_api.inputs.chat_template import ONE_TEMPLATE, RESERVED, UNRESERVED
from finetune_api.inputs.sources import UNIQUE_SOURCES
from finetune_api.objectives import GROUPS_ONLY, HAS_SHARE, HAS_SMOOTHING
from finetune_api.output import COMMIT, IMAGE_REPOSITORY, REPO
from finetune_api.pods.affinity import DOMAINS_OF_DO_NOT_SCHEDULE, HAS_VALUES, HAS_VALUES_OR_INTEGER
from finetune_api.pods.resources import (
    DIVISIBLE,
    GPU_WITH_VENDOR,
    GPUS_BY_COUNT,
    IN_BYTES,
    KNOWN_RESOURCES,
    ONE_SLICE,
    RESOURCE,
    SHM_IN_BYTES,
    WHOLE_DEVICES,
    WITHIN_LIMITS,
    WORKSPACE_IN_BYTES,
)
from finetune_api.pods.scheduling import EXISTS_WITHOUT_VALUE, SECONDS_OF_NO_EXECUTE
from finetune_api.recipes import WITHOUT_DROPOUT
from finetune_api.rewards import HAS_SIMILARITY, JSON_EXTRACT, ONE_JSON_SCHEMA
from finetune_api.scalars import read_quantity
from finetune_api.spec import (
    ALONE_FOR_VLLM,
    BLOCKS,
    EVALUATES,
    FORMAT,
    FORMAT_OF_SOURCES,
    FORMATS,
    HOLDS_WHOLE_GROUPS,
    KEEPS_ADAPTERS,
    LINEAR_FOR_VLLM,
    LONG_ROWS,
    MERGED_FOR_VLLM,
    MERGES,
    OUTSIDE_OF_ROWS,
    PLAIN_HEAD,
    SAVES_CHECKPOINTS,
    SHARES_OUT,
    SHARES_TEACHER,
    SYSTEM_MESSAGE,
    TRAIN_ON,
)
from finetune_api.tuning import (
    BOUNDED,
    BUDGET_IN_BYTES,
    EXPERTS_OF_ONE_RANK,
    EXPERTS_WITHOUT_DORA,
    HALF_RANK,
    HALF_RANKS,
    INPUTS_OF_LAYERS,
    PLAIN_ON_SHARDS,
    PLAIN_START,
    START_OF_A_NEW_ADAPTER,
    START_WITH_LORA,
    UNBOUNDED,
)

Condition = Callable[[Any], bool]


def _matches(pattern: re.Pattern[str]) -> Condition:
    return lambda uri: pattern.fullmatch(uri) is not None


def _belongs_to(block: str, objective: str) -> Condition:
    return lambda spec: getattr(spec, block) is None or spec.objective == objective


def _has_one_of(*fields: str) -> Condition:
    return lambda block: sum(getattr(block, field) is not None for field in fields) == 1


def _lacks_one_of(*fields: str) -> Condition:
    return lambda block: any(getattr(block, field) is None for field in fields)


def _has_exactly_with(field: str, name: str, value: str) -> Condition:
    return lambda block: (getattr(block, name) == value) == (getattr(block, field) is not None)


def _has_only_for(field: str, matches: Callable[[str | None], bool]) -> Condition:
    return lambda source: getattr(source, field) is None or matches(source.uri)


def _has_held_out_rows(spec: Any) -> bool:
    return spec.dataset.validation is not None or spec.dataset.validation_split_percent is not None


def _is_hub(uri: str | None) -> bool:
    return uri is not None and uri.startswith("hf://")


def _is_object(uri: str | None) -> bool:
    return uri is not None and re.fullmatch(r"(s3|pvc)://[^*?]*[^*?/]", uri) is not None


def _is_dataset(uri: str | None) -> bool:
    return uri is not None and re.fullmatch("hf://datasets/[^/]+/[^/]+/?", uri) is not None


def _has_values(requirement: Any) -> bool:
    return (requirement.operator in {"In", "NotIn"}) == bool(requirement.values)


def _is_one_integer(values: list[str] | None) -> bool:
    return len(values or ()) == 1 and re.fullmatch("[0-9]{1,18}", (values or [""])[0]) is not None


CONDITIONS: dict[str, Condition] = {
    SYSTEM_MESSAGE: lambda spec: spec.dataset.system_message is None or spec.objective != "DomainAdaptation",
    LONG_ROWS: lambda spec: spec.dataset.long_rows == "Truncate" or spec.objective != "DomainAdaptation",
    TRAIN_ON: lambda spec: spec.dataset.train_on is None or spec.objective in {"Instruction", "Chat"},
    OUTSIDE_OF_ROWS: lambda spec: (
        not any(
            f"{spec.output.uri}/".startswith(f"{source.uri.rstrip('/')}/")
            for source in [*(spec.dataset.train.sources or [spec.dataset.train]), spec.dataset.validation]
            if source is not None and source.uri is not None
        )
    ),
    EVALUATES: lambda spec: spec.evaluation.steps is None or _has_held_out_rows(spec),
    SAVES_CHECKPOINTS: lambda spec: (
        spec.checkpoint.steps is None
        or spec.checkpoint.resume_policy != "Never"
        or (spec.checkpoint.keep > 0 and not _has_held_out_rows(spec))
    ),
    MERGES: lambda spec: (
        spec.resources.merge is None
        or spec.output.merge != "None"
        or spec.tuning.method in {"Full", "Auto"}
        or spec.mode == "Evaluate"
    ),
    KEEPS_ADAPTERS: lambda spec: spec.checkpoint.keep == 0 or spec.tuning.method != "Full",
    ONE_TEMPLATE: _has_one_of("name", "config_map_key_ref"),
    UNRESERVED: lambda model: not any(name in RESERVED for name in model.chat_template_kwargs or ()),
    "!has(self.targetExperts) || !self.targetExperts || !has(self.dropout) || self.dropout == 0.0": lambda lora: (
        not lora.target_experts or not lora.dropout
    ),
    PLAIN_START: lambda lora: not _starts_from_weights(lora) or not (lora.use_dora or lora.target_experts),
    HALF_RANK: lambda lora: not _starts_from_weights(lora) or (lora.rank or 1) <= 128,
    HALF_RANKS: lambda lora: (
        not _starts_from_weights(lora) or max((lora.rank_pattern or {}).values(), default=1) <= 128
    ),
    INPUTS_OF_LAYERS: lambda lora: lora.init_lora_weights != "EVA" or not lora.target_experts,
    BOUNDED["rankPattern"]: lambda lora: _are_bounded(lora.rank_pattern),
    BOUNDED["alphaPattern"]: lambda lora: _are_bounded(lora.alpha_pattern),
    EXPERTS_OF_ONE_RANK: lambda lora: not lora.target_experts or not (lora.rank_pattern or lora.alpha_pattern),
    START_WITH_LORA: lambda tuning: not _starts_from_weights(tuning.lora) or tuning.method == "LoRA",
    START_OF_A_NEW_ADAPTER: lambda tuning: (
        tuning.initial_adapter is None or tuning.lora is None or tuning.lora.init_lora_weights is None
    ),
    EXPERTS_WITHOUT_DORA: lambda lora: not lora.target_experts or not lora.use_dora,
    PLAIN_ON_SHARDS: lambda lora: (
        not lora.shard_base
        or not (
            lora.use_dora
            or lora.target_experts
            or lora.modules_to_save
            or lora.init_lora_weights in {"PiSSA", "OLoRA", "EVA"}
        )
    ),
    SHARES_OUT: lambda spec: not spec.tuning.lora or not spec.tuning.lora.shard_base or spec.resources.ranks > 1,
    SHARES_TEACHER: lambda spec: (
        not spec.distillation or not spec.distillation.shard_teacher or spec.resources.ranks > 1
    ),
    "self.method != 'Full' || !has(self.lora)": lambda tuning: tuning.method != "Full" or tuning.lora is None,
    "self.method in ['QLoRA', 'Auto'] || !has(self.quantization)": lambda tuning: (
        tuning.method in {"QLoRA", "Auto"} or tuning.quantization is None
    ),
    "!(has(self.validation) && has(self.validationSplitPercent))": _lacks_one_of(
        "validation", "validation_split_percent"
    ),
    "!(has(self.numTrainEpochs) && has(self.maxSteps))": _lacks_one_of("num_train_epochs", "max_steps"),
    "!has(self.warmupSteps) || self.warmupSteps < 1.0 || double(int(self.warmupSteps)) == self.warmupSteps": (
        lambda hyper: hyper.warmup_steps is None or hyper.warmup_steps < 1 or hyper.warmup_steps.is_integer()
    ),
    HAS_LOWEST_RATE: lambda hyper: (
        hyper.min_lr_ratio is None or hyper.lr_scheduler_type in {"cosine_with_min_lr", "warmup_stable_decay"}
    ),
    HAS_DECAY: lambda hyper: hyper.decay_steps is None or hyper.lr_scheduler_type == "warmup_stable_decay",
    WHOLE_DECAY: lambda hyper: hyper.decay_steps is None or hyper.decay_steps < 1 or hyper.decay_steps.is_integer(),
    FITTING_DECAY: lambda hyper: (
        hyper.decay_steps is None
        or hyper.warmup_steps is None
        or max(hyper.decay_steps, hyper.warmup_steps) >= 1
        or hyper.warmup_steps + hyper.decay_steps <= 1
    ),
    HAS_WARMUP: lambda hyper: not hyper.warmup_steps or hyper.lr_scheduler_type != "constant",
    HAS_BETAS: lambda hyper: (
        (hyper.adam_beta1 is None and hyper.adam_beta2 is None) or hyper.optim not in WITHOUT_BETAS
    ),
    HAS_EPSILON: lambda hyper: hyper.adam_epsilon is None or hyper.optim not in WITHOUT_EPSILON,
    NOISE_WITHOUT_PACKING: lambda hyper: hyper.neftune_noise_alpha is None or hyper.packing != "Always",
    NOISE_WITHOUT_FLASH: lambda hyper: hyper.neftune_noise_alpha is None or hyper.attention != "FlashAttention",
    "!has(self.hyperparameters.neftuneNoiseAlpha) || self.objective in ['Instruction', 'Chat', 'DomainAdaptation']": (
        lambda spec: (
            spec.hyperparameters.neftune_noise_alpha is None
            or spec.objective in {"Instruction", "Chat", "DomainAdaptation"}
        )
    ),
    "!has(self.earlyStopping) || has(self.dataset.validation) || has(self.dataset.validationSplitPercent)": (
        lambda spec: spec.early_stopping is None or _has_held_out_rows(spec)
    ),
    "has(self.maxEvalLoss) || self.mustImprove || self.mustMatchExpected || has(self.maxForgotten) "
    "|| has(self.minCorrect)": lambda gate: (
        gate.max_eval_loss is not None
        or gate.must_improve
        or gate.must_match_expected
        or gate.max_forgotten is not None
        or gate.min_correct is not None
    ),
    "!has(self.gate) || !has(self.gate.maxForgotten) || has(self.ability)": lambda evaluation: (
        evaluation.gate is None or evaluation.gate.max_forgotten is None or evaluation.ability is not None
    ),
    "!has(self.gate) || !has(self.gate.minCorrect) || has(self.answers)": lambda evaluation: (
        evaluation.gate is None or evaluation.gate.min_correct is None or evaluation.answers is not None
    ),
    "!self.uri.endsWith('/') && !self.uri.matches('[*?]')": lambda ability: (
        not ability.uri.endswith("/") and not re.search("[*?]", ability.uri)
    ),
    "!has(self.evaluation.gate) || (!has(self.evaluation.gate.maxEvalLoss) && "
    "!self.evaluation.gate.mustImprove) || has(self.dataset.validation) || "
    "has(self.dataset.validationSplitPercent)": lambda spec: (
        spec.evaluation.gate is None
        or (spec.evaluation.gate.max_eval_loss is None and not spec.evaluation.gate.must_improve)
        or _has_held_out_rows(spec)
    ),
    "!has(self.evaluation.gate) || !self.evaluation.gate.mustMatchExpected || "
    "(has(self.evaluation.prompts) && self.evaluation.prompts.exists(one, has(one.expected)))": lambda spec: (
        spec.evaluation.gate is None
        or not spec.evaluation.gate.must_match_expected
        or any(one.expected for one in spec.evaluation.prompts or [])
    ),
    "!has(self.evaluation.gate) || self.objective != 'RLHF' || !has(self.evaluation.gate.maxEvalLoss)": lambda spec: (
        spec.evaluation.gate is None or spec.objective != "RLHF" or spec.evaluation.gate.max_eval_loss is None
    ),
    "!has(self.evaluation.gate) || !self.evaluation.gate.mustImprove || self.evaluation.baseline": lambda spec: (
        spec.evaluation.gate is None or not spec.evaluation.gate.must_improve or spec.evaluation.baseline
    ),
    **{
        f"self.matches({json.dumps(pattern.pattern)})": _matches(pattern)
        for pattern in (S3_URI, MODEL_URI, DATA_URI, FILE_URI, ENDPOINT)
    },
    "self.method != 'Full' || !has(self.initialAdapter)": lambda tuning: (
        tuning.method != "Full" or tuning.initial_adapter is None
    ),
    "has(self.uri) != has(self.fromParent)": _has_one_of("uri", "from_parent"),
    "has(self.uri) != has(self.jobRef)": _has_one_of("uri", "job_ref"),
    "has(self.rewardModel) != has(self.rewards)": _has_one_of("reward_model", "rewards"),
    "(self.mode == 'Unconstrained') != has(self.level)": lambda topology: (
        (topology.mode == "Unconstrained") != (topology.level is not None)
    ),
    HAS_SMOOTHING: lambda dpo: dpo.label_smoothing is None or dpo.loss_type in {"robust", "exo_pair"},
    "(self.type == 'Length') == has(self.targetTokens)": _has_exactly_with("target_tokens", "type", "Length"),
    "(self.type == 'Regex') == has(self.pattern)": _has_exactly_with("pattern", "type", "Regex"),
    "(self.type == 'Answer') == has(self.answer)": _has_exactly_with("answer", "type", "Answer"),
    "(self.type == 'Service') == has(self.service)": _has_exactly_with("service", "type", "Service"),
    "(self.extract == 'Pattern') == has(self.pattern)": _has_exactly_with("pattern", "extract", "Pattern"),
    "self.match == 'Numeric' || (!has(self.absoluteTolerance) && !has(self.relativeTolerance))": lambda answer: (
        answer.match == "Numeric" or (answer.absolute_tolerance is None and answer.relative_tolerance is None)
    ),
    "self.match == 'Exact' || !self.ignoreCase": lambda answer: answer.match == "Exact" or not answer.ignore_case,
    HAS_SIMILARITY: _has_exactly_with("similarity", "match", "Similar"),
    "(self.match == 'JsonSchema') == has(self.jsonSchema)": _has_exactly_with("json_schema", "match", "JsonSchema"),
    ONE_JSON_SCHEMA: lambda answer: (
        (answer.json_schema is None) == (answer.match != "JsonSchema" or answer.column is not None)
    ),
    JSON_EXTRACT: lambda answer: answer.match not in {"Json", "JsonSchema"} or answer.extract in {"Whole", "Pattern"},
    "!has(self.revision) || self.uri.startsWith('hf://')": _has_only_for("revision", _is_hub),
    "!has(self.credentialsSecretRef) || self.uri.startsWith('hf://')": _has_only_for("credentials_secret_ref", _is_hub),
    "!has(self.sha256) || (!self.uri.startsWith('hf://') && !self.uri.endsWith('/') && !self.uri.matches('[*?]'))": (
        _has_only_for("sha256", _is_object)
    ),
    f"self.matches('{REPO.pattern}')": _matches(REPO),
    f"self.matches('{IMAGE_REPOSITORY.pattern}')": _matches(IMAGE_REPOSITORY),
    "!has(self.gguf) || self.merge != 'None'": lambda output: output.gguf is None or output.merge != "None",
    f"!self.revision.matches('{COMMIT.pattern}')": lambda hub: COMMIT.fullmatch(hub.revision) is None,
    "has(self.uri) != has(self.sources)": _has_one_of("uri", "sources"),
    "!has(self.revision) || (has(self.uri) && self.uri.startsWith('hf://'))": _has_only_for("revision", _is_hub),
    "!has(self.sha256) || (has(self.uri) && !self.uri.startsWith('hf://') && !self.uri.endsWith('/') && "
    "!self.uri.matches('[*?]'))": _has_only_for("sha256", _is_object),
    "!has(self.credentialsSecretRef) || (has(self.uri) && self.uri.startsWith('hf://')) || "
    "(has(self.sources) && self.sources.exists(one, one.uri.startsWith('hf://')))": lambda train: (
        train.credentials_secret_ref is None or any(_is_hub(uri) for uri in train.uris)
    ),
    UNIQUE_SOURCES: lambda train: (
        len({(one.uri, one.config, one.split) for one in train.sources or ()}) == len(train.sources or ())
    ),
    "!has(self.config) || self.uri.matches('^hf://datasets/[^/]+/[^/]+/?$')": _has_only_for("config", _is_dataset),
    "!has(self.split) || self.uri.matches('^hf://datasets/[^/]+/[^/]+/?$')": _has_only_for("split", _is_dataset),
    "!has(self.config) || (has(self.uri) && self.uri.matches('^hf://datasets/[^/]+/[^/]+/?$'))": _has_only_for(
        "config", _is_dataset
    ),
    "!has(self.split) || (has(self.uri) && self.uri.matches('^hf://datasets/[^/]+/[^/]+/?$'))": _has_only_for(
        "split", _is_dataset
    ),
    "!has(self.sources) || self.sources.all(one, has(one.weight)) || !self.sources.exists(one, has(one.weight))": (
        lambda train: len({one.weight is None for one in train.sources or ()}) <= 1
    ),
    "!has(self.stoppingStrategy) || (has(self.sources) && self.sources.exists(one, has(one.weight)))": lambda train: (
        train.stopping_strategy is None or any(one.weight is not None for one in train.sources or ())
    ),
    "!has(self.maxSamples) || !has(self.train.sources)": lambda dataset: (
        dataset.max_samples is None or dataset.train.sources is None
    ),
    **{
        f"!has(self.{block}) || self.objective == '{objective}'": _belongs_to(block, objective)
        for block, objective in BLOCKS.items()
    },
    "self.objective != 'Distillation' || has(self.distillation)": lambda spec: (
        spec.objective != "Distillation" or spec.distillation is not None
    ),
    PLAIN_HEAD: lambda spec: (
        spec.objective != "Distillation"
        or spec.tuning.lora is None
        or not (
            spec.tuning.lora.modules_to_save
            or any(f".{name}".endswith(".lm_head") for name in spec.tuning.lora.target_modules or ())
        )
    ),
    "self.objective != 'RLHF' || has(self.rlhf)": lambda spec: spec.objective != "RLHF" or spec.rlhf is not None,
    "self.objective != 'RLHF' || !has(self.earlyStopping)": lambda spec: (
        spec.objective != "RLHF" or spec.early_stopping is None
    ),
    "self.objective != 'RewardModel' || self.output.merge == 'None'": lambda spec: (
        spec.objective != "RewardModel" or spec.output.merge == "None"
    ),
    "self.objective != 'RewardModel' || !has(self.tuning.lora) || !has(self.tuning.lora.initLoraWeights) "
    "|| self.tuning.lora.initLoraWeights in ['Default', 'Gaussian', 'EVA']": lambda spec: (
        spec.objective != "RewardModel" or not _starts_from_weights(spec.tuning.lora)
    ),
    "self.objective != 'RewardModel' || !has(self.evaluation.prompts)": lambda spec: (
        spec.objective != "RewardModel" or spec.evaluation.prompts is None
    ),
    "self.objective != 'RewardModel' || !has(self.evaluation.ability)": lambda spec: (
        spec.objective != "RewardModel" or spec.evaluation.ability is None
    ),
    "self.objective in ['Instruction', 'Chat', 'DPO', 'KTO'] || !has(self.evaluation.answers)": lambda spec: (
        spec.objective in {"Instruction", "Chat", "DPO", "KTO"} or spec.evaluation.answers is None
    ),
    "!has(self.evaluation.answers) || has(self.dataset.validation) || has(self.dataset.validationSplitPercent)": (
        lambda spec: spec.evaluation.answers is None or _has_held_out_rows(spec)
    ),
    "!has(self.tuning.lora) || !has(self.tuning.lora.dropout) || self.tuning.lora.dropout == 0.0 || "
    f"!(self.objective in {list(WITHOUT_DROPOUT)})": lambda spec: (
        spec.tuning.lora is None or not spec.tuning.lora.dropout or spec.objective not in WITHOUT_DROPOUT
    ),
    "self.hyperparameters.packing != 'Always' || self.objective in ['Instruction', 'Chat', 'DomainAdaptation']": (
        lambda spec: (
            spec.hyperparameters.packing != "Always" or spec.objective in {"Instruction", "Chat", "DomainAdaptation"}
        )
    ),
    "!has(self.hyperparameters.attention) || self.hyperparameters.attention != 'FlashAttention' || "
    "self.objective in ['Instruction', 'Chat', 'DomainAdaptation']": (
        lambda spec: (
            spec.hyperparameters.attention != "FlashAttention"
            or spec.objective in {"Instruction", "Chat", "DomainAdaptation"}
        )
    ),
    HOLDS_WHOLE_GROUPS: lambda spec: spec.rlhf is None or _holds_whole_groups(spec),
    MERGED_FOR_VLLM: lambda spec: not _uses_vllm(spec) or spec.tuning.method in {"LoRA", "Full"},
    LINEAR_FOR_VLLM: lambda spec: (
        not _uses_vllm(spec)
        or spec.tuning.lora is None
        or not (spec.tuning.lora.modules_to_save or spec.tuning.lora.target_experts)
    ),
    ALONE_FOR_VLLM: lambda spec: not _uses_vllm(spec) or spec.resources.ranks == 1,
    GROUPS_ONLY: lambda rlhf: rlhf.algorithm == "GRPO" or (rlhf.loss_type is None and rlhf.scale_rewards is None),
    HAS_SHARE: lambda rollouts: rollouts.engine == "VLLM" or rollouts.gpu_memory_fraction is None,
    "!has(self.tuning.initialAdapter) || !has(self.tuning.initialAdapter.fromParent) || "
    "(has(self.lineage) && has(self.lineage.parentRef))": lambda spec: (
        spec.tuning.initial_adapter is None
        or spec.tuning.initial_adapter.from_parent is None
        or (spec.lineage is not None and spec.lineage.parent_ref is not None)
    ),
    "self.enabled || (!has(self.queueName) && !has(self.resources))": lambda preflight: (
        preflight.enabled or (preflight.queue_name is None and preflight.resources is None)
    ),
    "!has(self.preflight) || self.preflight.enabled || "
    "(self.resources.numNodes == 1 && self.resources.gpusPerNode <= 1 && !has(self.resources.merge))": lambda spec: (
        spec.has_preflight or (spec.resources.ranks == 1 and spec.resources.merge is None)
    ),
    "self.objective != 'KTO' || !has(self.hyperparameters.perDeviceTrainBatchSize) || "
    "self.hyperparameters.perDeviceTrainBatchSize > 1": lambda spec: (
        spec.objective != "KTO" or spec.hyperparameters.per_device_train_batch_size != 1
    ),
    IN_BYTES: lambda pod: (
        not any(_is_below_a_mebibyte((one or {}).get("memory")) for one in (pod.requests, pod.limits))
    ),
    WITHIN_LIMITS: lambda pod: all(
        _amount((pod.requests or {}).get(name), 0) <= _amount((pod.limits or {}).get(name), math.inf)
        for name in DIVISIBLE
    ),
    KNOWN_RESOURCES: lambda pod: all(
        re.search(RESOURCE, name) for name in [*(pod.requests or ()), *(pod.limits or ())]
    ),
    WHOLE_DEVICES: lambda pod: all(
        quantity == (pod.limits or {}).get(name)
        for name, quantity in (pod.requests or {}).items()
        if name not in DIVISIBLE
    ),
    GPU_WITH_VENDOR: lambda resources: "/" in resources.gpu_resource_name,
    GPUS_BY_COUNT: lambda resources: {"nvidia.com/gpu", resources.gpu_resource_name}.isdisjoint(
        {**(resources.requests or {}), **(resources.limits or {})}
    ),
    ONE_SLICE: lambda resources: "/mig-" not in resources.gpu_resource_name or resources.gpus_per_node <= 1,
    SHM_IN_BYTES: lambda resources: not _is_below_a_mebibyte(resources.shm_size),
    WORKSPACE_IN_BYTES: lambda workspace: not _is_below_a_mebibyte(workspace.size_limit),
    EXISTS_WITHOUT_VALUE: lambda toleration: not toleration.value or toleration.operator != "Exists",
    SECONDS_OF_NO_EXECUTE: lambda toleration: toleration.toleration_seconds is None or toleration.effect == "NoExecute",
    DOMAINS_OF_DO_NOT_SCHEDULE: lambda spread: (
        spread.min_domains is None or spread.when_unsatisfiable == "DoNotSchedule"
    ),
    HAS_VALUES: _has_values,
    HAS_VALUES_OR_INTEGER: lambda requirement: (
        _is_one_integer(requirement.values) if requirement.operator in {"Gt", "Lt"} else _has_values(requirement)
    ),
    BUDGET_IN_BYTES: lambda tuning: not _is_below_a_mebibyte(tuning.vram_budget),
    "has(self.resourceClaimName) != has(self.resourceClaimTemplateName)": _has_one_of(
        "resource_claim_name", "resource_claim_template_name"
    ),
    "!has(self.storageClassName) || has(self.sizeLimit)": lambda workspace: (
        workspace.storage_class_name is None or workspace.size_limit is not None
    ),
    "(self.mode == 'Offline') != has(self.credentialsSecretRef)": lambda wandb: (
        (wandb.mode == "Offline") != (wandb.credentials_secret_ref is not None)
    ),
    "self.mode != 'Offline' || (!has(self.endpoint) && !has(self.caSecretRef))": lambda wandb: (
        wandb.mode != "Offline" or (wandb.endpoint is None and wandb.ca_secret_ref is None)
    ),
    "has(self.jobRef) != has(self.uri)": _has_one_of("job_ref", "uri"),
    "has(self.uri) == has(self.manifestSHA256)": lambda release: (
        (release.uri is None) == (release.manifest_sha256 is None)
    ),
    "!has(self.storage) || has(self.uri)": lambda release: release.storage is None or release.uri is not None,
    "!has(self.require) || !has(self.require.matchedPercent) || has(self.target.vllm)": lambda release: (
        release.require is None or release.require.matched_percent is None or release.target.vllm is not None
    ),
    "!has(self.caSecretRef) || (has(self.url) && self.url.startsWith('https://'))": lambda target: (
        target.ca_secret_ref is None or (target.url or "").startswith("https://")
    ),
    "!has(self.require) || !has(self.require.tokens) || has(self.target.vllm)": lambda release: (
        release.require is None or release.require.tokens is None or release.target.vllm is not None
    ),
    "(has(self.vllm) ? 1 : 0) + (has(self.kserve) ? 1 : 0) + (has(self.files) ? 1 : 0) == 1": _has_one_of(
        "vllm", "kserve", "files"
    ),
    "has(self.url) != has(self.service)": _has_one_of("url", "service"),
    r"!self.matches('(^|/)[.][.]?(/|$)')": lambda uri: not {".", ".."} & set(uri.split("/")),
}


def _find_format_faults(spec: Any) -> Iterator[tuple[str, str]]:
    formats = FORMATS[spec.objective]
    if spec.dataset.format not in formats:
        yield ".dataset.format", _accepted(spec.objective, "dataset.format to")


def _find_format_faults_of_sources(spec: Any) -> Iterator[tuple[str, str]]:
    formats = FORMATS[spec.objective]
    if any(one.format is not None and one.format not in formats for one in spec.dataset.train.sources or ()):
        yield ".dataset.train.sources", _accepted(spec.objective, "format of each source to")


def _accepted(objective: str, place: str) -> str:
    accepted = ", ".join(FORMATS[objective])
    return f"objective {objective} cannot use rows of this format: set {place} one of {accepted}"


COMBINED: dict[str, Callable[[Any], Iterator[tuple[str, str]]]] = {
    EVALUATE_RULE["rule"]: find_evaluate_faults,
    FORMAT: _find_format_faults,
    FORMAT_OF_SOURCES: _find_format_faults_of_sources,
}
"""By the CEL text of a rule whose message is an expression: path and message of each fault."""


def _is_below_a_mebibyte(quantity: Any) -> bool:
    return _amount(quantity, math.inf) < 2**20


def _amount(quantity: Any, otherwise: float) -> Decimal | float:
    """Return the number of a quantity, or the other one if there is none; its format is not checked here."""
    try:
        return otherwise if quantity is None else read_quantity(quantity)
    except ValueError:
        return otherwise


def _starts_from_weights(lora: Any) -> bool:
    return lora is not None and lora.init_lora_weights in {"PiSSA", "OLoRA"}


def _are_bounded(patterns: dict[str, int] | None) -> bool:
    return not any(re.search(UNBOUNDED, pattern) for pattern in patterns or ())


def _holds_whole_groups(spec: Any) -> bool:
    batch, accumulation = (
        spec.hyperparameters.per_device_train_batch_size,
        spec.hyperparameters.gradient_accumulation_steps,
    )
    if batch is None or accumulation is None:
        return True
    return bool(batch * accumulation * spec.resources.ranks % spec.rlhf.num_generations == 0)


def _uses_vllm(spec: Any) -> bool:
    return rollouts_share(spec.rlhf) is not None
