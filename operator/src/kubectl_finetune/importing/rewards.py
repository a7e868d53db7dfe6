"""The settings of GRPO and RLOO, and their rewards."""

from collections.abc import Mapping
from typing import Any

from finetune_api.manifest.yaml_document import FieldPath
from finetune_api.objectives import PolicyLoss, RewardScale
from kubectl_finetune.importing import shared, templates, values
from kubectl_finetune.importing.draft import Draft
from kubectl_finetune.importing.engine import apply_table
from kubectl_finetune.importing.locations import put_model
from kubectl_finetune.importing.rows import Table, each, harmless, is_off, lost, to
from kubectl_finetune.importing.shared import HYPER

SAMPLED = "answers are sampled in the process that trains"
LOSS = "the losses are dapo, grpo and dr_grpo"
ON_POLICY = "each answer is used for one step, by the weights that sampled it"
NO_LIMIT = "without it answers are sampled without a limit; here they end after 512 tokens"
ESTIMATE = "the trainer computes advantages and the loss in its own way: see docs/objectives.md"
THINKS_FIRST = r"(?s)^<think>(?!.*<think>).*?</think>"
SCALES = {one.value: one.value for one in RewardScale} | {"true": "group", "false": "none"}
REWARDS: Mapping[str, dict[str, Any]] = {"think_format_reward": {"type": "Regex", "pattern": THINKS_FIRST}}
"""TRL's own rewards that can be computed here."""


def _sampled_at_once(draft: Draft, path: FieldPath, value: Any) -> None:
    """Name answers that are sampled at once; for several steps, the later ones train on answers of older weights."""
    found = None if is_off(value) else shared.read_value(draft, path, value, values.count)
    if found is None:
        return
    step = draft.at(f"{HYPER}.gradientAccumulationSteps") or 1
    if path[-1] == "generation_batch_size":
        gpus = (draft.at("resources.numNodes") or 1) * (draft.at("resources.gpusPerNode") or 1)
        step *= gpus * (draft.at(f"{HYPER}.perDeviceTrainBatchSize") or 1)
    if found > step:
        draft.lose(path, "each step samples its own answers; here they are of the weights some steps before")
    else:
        draft.lose(path, "each step samples its own answers", changes_training=False)


TABLE: Table = {
    "beta": to("rlhf.beta", values.number),
    "num_generations": to("rlhf.numGenerations", values.whole),
    "max_completion_length": to("rlhf.maxCompletionLength", values.whole),
    "temperature": to("rlhf.temperature", values.number),
    "top_p": lost("answers are sampled from all tokens", unless=(1.0,)),
    **each(lost("answers are sampled from all tokens"), "top_k min_p"),
    "repetition_penalty": lost("answers are sampled without a penalty", unless=(1.0,)),
    "generation_kwargs": lost("answers are sampled with the temperature alone"),
    "chat_template_kwargs": to("model.chatTemplateKwargs", templates.kwargs),
    "num_iterations": lost(
        "each answer is used for one step, so the same rows give fewer steps",
        "raise hyperparameters.numTrainEpochs for as many steps, with new answers",
        unless=(1,),
    ),
    **each(harmless(ON_POLICY), "epsilon* delta importance_sampling_level"),
    "loss_type": to("rlhf.lossType", values.choice({one.value: one.value for one in PolicyLoss}, LOSS)),
    "scale_rewards": to("rlhf.scaleRewards", values.choice(SCALES, ESTIMATE)),
    "multi_objective_aggregation": lost(ESTIMATE, unless=("sum_then_normalize",)),
    "mask_truncated_completions": to("rlhf.maskTruncatedCompletions", values.only_true),
    "sync_ref_model": lost("the reference model is the model before training"),
    "ref_model_*": harmless("it belongs to sync_ref_model"),
    "top_entropy_quantile": lost(ESTIMATE, unless=(1.0,)),
    "generation_batch_size": _sampled_at_once,
    "steps_per_generation": _sampled_at_once,
    "use_vllm": harmless("with vLLM in the trainer's image, rlhf.rollouts.engine VLLM samples the answers"),
    "vllm_*": harmless("it belongs to use_vllm"),
    **each(harmless("the report shows answers before and after"), "log_* num_completions_to_print"),
    "reward_num_workers": harmless(shared.MEMORY),
}
"""Settings that axolotl's block `trl` and TRL's own file share."""
DEFAULTS: Mapping[str, dict[str, Any]] = {
    "GRPO": {"beta": 0.0, "num_generations": 8, "max_completion_length": 512},
    "RLOO": {"beta": 0.05, "num_generations": 2, "max_completion_length": 512},
}
KEYS = ("reward_funcs", "reward_weights", "reward_model_name_or_path")


def put_rlhf(draft: Draft, block: Mapping[str, Any], path: FieldPath, algorithm: str) -> None:
    """Set the block `rlhf`."""
    draft.set("rlhf.algorithm", algorithm, (*path, "num_generations") if path else "num_generations")
    given = {key: value for key, value in block.items() if value is not None}
    settings = {**DEFAULTS[algorithm], **given}
    apply_table(draft, path, {key: value for key, value in settings.items() if key not in KEYS}, TABLE, KEYS)
    put_rewards(draft, given, path)


def put_rewards(draft: Draft, block: Mapping[str, Any], path: FieldPath) -> None:
    """Set the reward model, or the rewards that can be computed; refuse a file without any."""
    functions = values.words(block.get("reward_funcs") or [])
    weights = block.get("reward_weights")
    if block.get("reward_model_name_or_path"):
        put_model(draft, "reward_model_name_or_path", "rlhf.rewardModel.uri")
        if functions:
            draft.lose((*path, "reward_funcs"), "a reward is either a model or computed: the model is used")
        return
    if weights is not None and not _are_weights(weights, len(functions)):
        fix = "list one number for each of reward_funcs"
        draft.lose((*path, "reward_weights"), "each reward has the weight 1", fix)
        weights = None
    rewards = []
    for name, weight in zip(functions, weights or [1] * len(functions), strict=True):
        place = (*path, "reward_funcs")
        if name not in REWARDS:
            draft.lose(place, f"{name} is a Python function, which is not run", "write it as one of rlhf.rewards")
            continue
        rewards.append(REWARDS[name] | ({"weight": weight} if weight != 1 else {}))
    if rewards:
        draft.set("rlhf.rewards", rewards, (*path, "reward_funcs"))
    else:
        fix = "rlhf.rewards lists those that can"
        if not path:  # a file of TRL, which does not name its command
            fix += "; if the file is for DPO or KTO, use --objective"
        draft.refuse((*path, "reward_funcs"), "no reward of the file can be computed", fix)


def _are_weights(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(type(one) in (int, float) for one in value)
