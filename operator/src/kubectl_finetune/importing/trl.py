"""TRL: `trl sft --config FILE`, and the same for dpo, kto, reward, grpo, rloo and distillation."""

from collections.abc import Mapping
from typing import Any

from finetune_api.manifest.yaml_document import FieldPath
from finetune_api.objectives import SAMPLED, Objective
from finetune_client.errors import WrongUse
from kubectl_finetune.importing import preferences, rewards, shared, templates, trackers, values
from kubectl_finetune.importing.draft import Draft
from kubectl_finetune.importing.engine import apply_table, find_row
from kubectl_finetune.importing.held_out import put_validation
from kubectl_finetune.importing.locations import (
    WHOLE_DATASET,
    RowSource,
    listed_entries,
    listed_source,
    put_model,
    put_result,
    put_shares,
    put_train,
    row_source,
)
from kubectl_finetune.importing.rows import Format, Table, derived, each, harmless, is_off, lost, refused, to
from kubectl_finetune.importing.sharding import KEYS, put_shards, put_trainer_shards
from kubectl_finetune.importing.shared import HYPER, LORA

SIGNS_OF_COMMANDS: Mapping[str, frozenset[str]] = {
    "distillation": frozenset({"teacher_model_name_or_path", "teacher_model_revision"}),
    "kto": frozenset({"desirable_weight", "undesirable_weight"}),
    "rloo": frozenset({"rloo_k", "reward_clip_range", "normalize_advantages"}),
    "grpo": frozenset({"num_generations", "reward_funcs", "reward_model_name_or_path"}),
    "reward": frozenset({"center_rewards_coefficient"}),
    "dpo": frozenset({"loss_weights", "f_divergence_type", "label_smoothing"}),
    "sft": frozenset(
        {"packing", "completion_only_loss", "assistant_only_loss", "dataset_text_field", "packing_strategy"}
    ),
}
"""Keys that only one command of TRL has, because the file does not name its command; those of grpo are of rloo, too."""
ENTRY = ("path", "name", "data_files", "split", "fraction")
MIXTURE: Table = {
    "data_dir": lost("every folder of the dataset is read", "name its files in the URI"),
    "columns": lost("every column is read", "set dataset.format if preflight takes the rows for another one"),
}
"""Keys of an entry of `datasets`."""
LOSSES_OF_SFT = ("nll", "chunked_nll", "dft")
SHARED_SIGNS = ("beta", "loss_type", "precompute_ref_log_probs", "precompute_ref_batch_size", "disable_dropout",
                "sync_ref_model", "max_prompt_length", "max_completion_length")  # fmt: skip
"""Keys that several commands of TRL have, in one of its versions, and that of supervised tuning has not."""
COMMANDS = {
    "sft": Objective.CHAT,
    "dpo": Objective.DPO,
    "kto": Objective.KTO,
    "reward": Objective.REWARD_MODEL,
    "grpo": Objective.RLHF,
    "rloo": Objective.RLHF,
    "distillation": Objective.DISTILLATION,
}
RATES = dict.fromkeys(shared.SUPERVISED, 2e-5) | {Objective.REWARD_MODEL.value: 1e-4}
"""Default learning rates; of all others 1e-6."""
PREFERENCES = (Objective.DPO.value, Objective.KTO.value)
ADAPTER = "lora_r lora_alpha lora_dropout lora_target_modules use_bnb_nested_quant"
ONLY_FOR: Mapping[str, tuple[str, ...]] = {
    "beta": (*PREFERENCES, Objective.RLHF.value, Objective.DISTILLATION.value),
    "desirable_weight": (Objective.KTO.value,),
    "undesirable_weight": (Objective.KTO.value,),
    "completion_only_loss": shared.SUPERVISED[:2],
    "assistant_only_loss": shared.SUPERVISED[:2],
    "dataset_text_field": (Objective.DOMAIN_ADAPTATION.value,),
}
"""Keys that some objectives use, and which."""
OF_SAMPLING = "it belongs to GRPO and RLOO"
_ANY = "the loss of every token, questions too, is what TRL trains without assistant_only_loss on rows with messages"


DISTILLATION: Table = {
    "beta": to("distillation.beta", values.number),
    "max_completion_length": to("distillation.maxCompletionLength", values.whole),
    "temperature": to("distillation.temperature", values.number),
    "teacher_model_revision": to("distillation.teacher.revision", values.text),
    "teacher_model_init_kwargs": lost("the teacher is loaded in the number format of the computation"),
    "max_tool_calling_iterations": lost("no tool is called while answers are sampled"),
    "cache_implementation": harmless(shared.MEMORY),
    **{
        key: rewards.TABLE[key]
        for key in (
            "top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs", "chat_template_kwargs", "log_*",
            "num_completions_to_print",
        )
    },
    **each(harmless(rewards.SAMPLED), "use_vllm vllm_*"),
}  # fmt: skip
"""Settings of TRL's command `distillation`, whose defaults are those of the fields."""


def _command(draft: Draft) -> tuple[str, str]:
    """Return the command, and the key that shows it; both are empty if none does."""
    for name, signs in SIGNS_OF_COMMANDS.items():
        if given := [key for key in sorted(signs) if draft.is_given(key)]:
            return name, given[0]
    return ("sft", "loss_type") if draft.get("loss_type") in LOSSES_OF_SFT else ("", "")


def _objective(draft: Draft) -> None:
    command, sign = _command(draft)
    if not command and not draft.options.objective and draft.is_given(*SHARED_SIGNS):
        raise WrongUse(
            f"{draft.file.name}: its keys do not show which command of TRL it is for",
            "add --objective DPO, KTO, RLHF, Distillation, RewardModel or Chat",
        )
    if not command and not draft.options.objective:
        reason = "no key shows the command of TRL: that of supervised tuning is assumed"
        draft.lose("objective", reason, "use --objective DPO, KTO, RewardModel, RLHF or Distillation for another")
    found = COMMANDS[command or "sft"]
    if found is Objective.CHAT and draft.is_given("dataset_text_field") and not _trains_answers(draft):
        found = Objective.DOMAIN_ADAPTATION
        if draft.get("dataset_text_field") == "text" and not draft.options.objective:
            reason = "it is TRL's default, which TRL ignores for rows with messages or prompts: texts are assumed"
            draft.lose("dataset_text_field", reason, "use --objective Chat for such rows")
    shared.put_objective(draft, found.value, sign or "objective")


def _settings(draft: Draft) -> None:
    objective = str(draft.at("objective"))
    if objective == Objective.DPO.value:
        shared.carry(draft, "beta", "dpo.beta", values.number)
        draft.done |= {"loss_type", "loss_weights", "label_smoothing"}
        preferences.put_losses(draft, "loss_type", "loss_weights")
        preferences.put_smoothing(draft, "label_smoothing")
    elif objective == Objective.KTO.value:
        shared.carry(draft, "beta", "kto.beta", values.number)
        shared.carry(draft, "desirable_weight", "kto.desirableWeight", values.number)
        shared.carry(draft, "undesirable_weight", "kto.undesirableWeight", values.number)
    elif objective == Objective.RLHF.value:
        _limit_of_samples(draft, "rlhf")
        algorithm = "RLOO" if _command(draft)[0] == "rloo" else "GRPO"
        block = {
            key: one for key, one in draft.file.values.items() if key in rewards.KEYS or find_row(key, rewards.TABLE)
        }
        draft.done |= set(block)
        rewards.put_rlhf(draft, block, (), algorithm)
    elif objective == Objective.DISTILLATION.value:
        _limit_of_samples(draft, "distillation")
        put_model(draft, "teacher_model_name_or_path", "distillation.teacher.uri")
        block = {key: one for key, one in draft.file.values.items() if find_row(key, DISTILLATION)}
        draft.done |= {*block, "teacher_model_name_or_path"}
        apply_table(draft, (), {key: one for key, one in block.items() if one is not None}, DISTILLATION)
    elif objective in shared.SUPERVISED[:2]:
        _trained_tokens(draft)
    unused = (key for key in ONLY_FOR if objective not in ONLY_FOR[key])
    shared.name_unused(draft, " ".join(unused), f"objective {objective} does not use it")


def _limit_of_samples(draft: Draft, block: str) -> None:
    if draft.is_null("max_completion_length"):
        reason = "null samples answers without a limit; here they end after 512 tokens"
        draft.lose("max_completion_length", reason, f"set {block}.maxCompletionLength")


def _trains_answers(draft: Draft) -> bool:
    return any(draft.get(key) is True for key in ("assistant_only_loss", "completion_only_loss"))


def _trained_tokens(draft: Draft) -> None:
    if draft.get("completion_only_loss") is False:
        draft.set("dataset.trainOn", "Everything", "completion_only_loss")
    elif not draft.get("assistant_only_loss") and not draft.get("completion_only_loss"):
        fix = "nothing to do for rows with prompt and completion; else set dataset.trainOn Everything for the same loss"
        draft.lose("assistant_only_loss", f"only answers are trained; {_ANY}", fix)


def _defaults_of_command(draft: Draft) -> None:
    objective = draft.at("objective")
    if not draft.is_given("learning_rate"):
        draft.set(f"{HYPER}.learningRate", RATES.get(objective, 1e-6), "learning_rate")
    for key in ("max_length", "max_seq_length"):
        shared.carry(draft, key, f"{HYPER}.maxLength", values.whole)
    if objective in SAMPLED or draft.is_given("max_length", "max_seq_length"):
        return
    if draft.is_null("max_length"):
        reason = "rows are truncated to the default of hyperparameters.maxLength, and null truncates none"
        draft.lose("max_length", reason, "set hyperparameters.maxLength to the longest row")
    else:
        draft.set(f"{HYPER}.maxLength", 1024, "max_length")


def _method(draft: Draft) -> None:
    if not shared.read(draft, "use_peft", values.flag, False):
        draft.set("tuning.method", "Full", "use_peft")
        shared.name_unused(draft, ADAPTER, "no adapter is trained without use_peft")
        if draft.get("load_in_4bit") or draft.get("load_in_8bit"):
            draft.refuse("use_peft", "a quantised base cannot be trained in full", "set use_peft: true")
        return
    is_small = shared.read(draft, "load_in_4bit", values.flag, False)
    draft.set("tuning.method", "QLoRA" if is_small else "LoRA", "load_in_4bit" if is_small else "use_peft")
    if is_small and not shared.read(draft, "use_bnb_nested_quant", values.flag, False):
        draft.set("tuning.quantization.doubleQuant", False, "use_bnb_nested_quant")
    if not is_small:
        shared.name_unused(draft, "use_bnb_nested_quant", "it belongs to load_in_4bit")
    if draft.get("load_in_8bit") and not is_small:
        draft.lose(
            "load_in_8bit",
            "the base is in 16 bits, which needs more memory",
            "set tuning.method QLoRA, as load_in_4bit does",
        )
    for key, name in (("lora_r", "rank"), ("lora_alpha", "alpha")):
        shared.carry(draft, key, f"{LORA}.{name}", values.whole)
    by_default = draft.at("objective") in {*PREFERENCES, Objective.REWARD_MODEL.value}
    shared.put_dropout(draft, is_switched_off=shared.read(draft, "disable_dropout", values.flag, by_default))
    if draft.is_given("lora_target_modules"):
        shared.carry(draft, "lora_target_modules", f"{LORA}.targetModules", values.modules)
    else:
        reason = "without it PEFT chooses modules by the architecture; here every linear layer gets an adapter"
        draft.lose("lora_target_modules", reason, "set tuning.lora.targetModules")


def _disable_dropout(draft: Draft, path: FieldPath, value: Any) -> None:
    """Name dropout that the trainer does not have, where lora_dropout is neither carried nor named."""
    if draft.at("objective") not in {Objective.REWARD_MODEL.value, *SAMPLED}:
        lost("preferences are trained without dropout", unless=(True,))(draft, path, value)


def _rows(draft: Draft) -> None:
    put_train(draft, _sources(draft))
    _held_out(draft)
    column = draft.get("dataset_text_field")
    if draft.at("objective") == Objective.DOMAIN_ADAPTATION.value and column not in (None, "text"):
        draft.set("dataset.columns", {"text": str(column)}, "dataset_text_field")


def _held_out(draft: Draft) -> None:
    """Set the held-out rows: a share of a mixture, or the split of a dataset on the hub if it is evaluated."""
    is_mixture, key = bool(draft.get("datasets")), "dataset_test_split"
    train, evaluates = draft.at("dataset.train"), not is_off(draft.get("eval_strategy"))
    if draft.options.validation:
        put_validation(draft, [])
        if is_mixture:
            shared.put_share(draft, "test_split_size")
    elif is_mixture and draft.is_given("test_split_size"):
        shared.put_share(draft, "test_split_size")
    elif evaluates and WHOLE_DATASET.fullmatch(str(train.get("uri"))):
        split = str(draft.get(key) or "test")
        place = key if draft.is_given(key) else "eval_strategy"
        put_validation(draft, [row_source(draft, place, train["uri"], split=split, config=train.get("config", ""))])
        key = ""  # it is used
    elif evaluates:
        draft.lose("eval_strategy", "the held-out rows are not in the file", "use --validation", changes_training=False)
    if is_mixture:
        keys = f"dataset_name dataset_config dataset_train_split {key}"
        shared.name_unused(draft, keys, "the rows are those of datasets")
    else:
        shared.name_unused(draft, "test_split_size", "it belongs to datasets")
        if not evaluates and key:
            shared.name_unused(draft, key, "nothing is evaluated without eval_strategy")


def _sources(draft: Draft) -> list[RowSource]:
    if draft.get("datasets"):
        entries = listed_entries(draft, "datasets")
        sources = [_of_mixture(draft, path, entry) for path, entry in entries]
        shares = [entry.get("fraction") for _, entry in entries]
        if len(sources) > 1 and any(one is not None for one in shares):
            put_shares(draft, "datasets", sources, shares)
        return sources
    if not draft.is_given("dataset_name"):
        return []
    split, config = str(draft.get("dataset_train_split") or ""), str(draft.get("dataset_config") or "")
    return [row_source(draft, "dataset_name", str(draft.get("dataset_name")), split=split, config=config)]


def _of_mixture(draft: Draft, place: FieldPath, entry: Mapping[str, Any]) -> RowSource:
    path = (*place, "path")
    source = listed_source(draft, path, entry)
    rest = {key: one for key, one in entry.items() if key not in ENTRY}
    apply_table(draft, place, rest, MIXTURE, ENTRY)
    return source


def _batch(draft: Draft) -> None:
    shared.put_batch(draft, "per_device_train_batch_size")
    shared.put_gpus(draft, "num_processes", shared.read(draft, "num_processes", values.whole, 1))


def _packing(draft: Draft) -> None:
    shared.put_packing(draft, "packing", packs=shared.read(draft, "packing", values.flag, False))
    shared.put_attention(draft, "attn_implementation")


def _limit_of_answers(draft: Draft, path: FieldPath, value: Any) -> None:
    """Name a limit that older versions of TRL have for the answers of pairs, too."""
    if draft.at("objective") in PREFERENCES:
        draft.lose(path, "an answer is truncated together with its prompt, at hyperparameters.maxLength")
    elif not is_off(value):
        draft.lose(path, OF_SAMPLING, changes_training=False)


TABLE: Table = {
    **{key: harmless(OF_SAMPLING) for key in (*rewards.TABLE, *rewards.KEYS) if key != "beta"},
    **each(harmless("it belongs to distillation"), "teacher_model_* max_tool_calling_iterations"),
    **shared.TRAINING_ARGUMENTS,
    **shared.WEIGHTS,
    "model_revision": to("model.revision", values.text),
    # what changes the training
    "chat_template_path": lost(shared.OWN_TEMPLATE, templates.IN_A_CONFIGMAP),
    "eos_token": lost("the tokenizer is used unchanged", "save a tokenizer with it next to the model"),
    **each(harmless("padding is not trained on"), "pad_token padding_free pad_to_multiple_of"),
    "truncation_mode": lost("the end of a row is cut", unless=("keep_start",)),
    "max_prompt_length": lost("the beginning of a long prompt is removed only to make room for the answer"),
    "loss_type": lost("the loss is the cross-entropy", unless=("nll", "chunked_nll", "kto")),
    "max_completion_length": _limit_of_answers,
    **each(harmless(preferences.DPO_ALONE), "label_smoothing loss_weights"),
    "ld_alpha": lost("the loss has no further term"),
    "rpo_alpha": preferences.sft_weight,
    "f_*": lost("the divergence is the reverse KL", unless=("reverse_kl", 0.5)),
    "use_weighting": lost("every row has the same weight"),
    "discopop_tau": harmless("it belongs to a loss"),
    "sync_ref_model": lost("the reference is the model before training"),
    "ref_model_*": harmless("it belongs to sync_ref_model"),
    "router_aux_loss_coef": lost("the loss has no further term", unless=(0, 0.001)),
    "disable_dropout": _disable_dropout,
    "lora_target_parameters": lost("adapters are on linear layers", "tuning.lora.targetExperts covers experts"),
    "bnb_4bit_quant_type": lost("the base is in NF4", unless=("nf4",)),
    "model_init_kwargs": lost("the model is loaded as its config.json states"),
    "dataset_kwargs": lost("preflight prepares the rows in its own way"),
    "eval_packing": harmless("held-out rows are not packed"),
    **each(lost(rewards.ESTIMATE), "normalize_advantages reward_clip_range"),
    "mixture_*": lost("all rows are used"),
    "peft_config": refused("adapters are given by use_peft and lora_r", shared.REMOVE),
    # what has no effect on the training
    "packing_strategy": harmless("preflight chooses which rows share a sequence"),
    "shuffle_dataset": harmless("rows are always shuffled"),
    **each(harmless(shared.NO_CACHE), "dataset_num_proc dataset_streaming streaming"),
    **each(harmless(shared.GPUS), "ignore_bias_buffers num_machines"),
    **each(harmless(shared.MEMORY), "precompute_ref_* activation_offloading bnb_4bit_quant_storage"),
    **each(harmless("weights are loaded in the format of the computation"), "dtype torch_dtype"),
    "env": harmless("environment variables are not copied", "set trainer.env"),
    "mixed_precision": harmless("precision is that of bf16 and fp16"),
    "trackio_*": harmless(shared.OTHER_TRACKER),
    "project": harmless("set tracking.wandb.project"),
}
FORMAT = Format(
    name="trl",
    title="TRL",
    signs=frozenset(
        {"dataset_name", "use_peft", "max_length", "dataset_train_split", "load_in_4bit", "reward_funcs", "loss_type"}
        | {"beta", "num_generations", "assistant_only_loss", "num_processes", "accelerate_config", "max_seq_length"}
    ),
    table=TABLE,
    derived=(
        derived(_objective, ""),
        derived(_batch, "per_device_train_batch_size gradient_accumulation_steps num_processes"),
        derived(_settings, "beta desirable_weight undesirable_weight completion_only_loss assistant_only_loss"),
        derived(lambda draft: put_model(draft, "model_name_or_path"), "model_name_or_path"),
        derived(_defaults_of_command, "max_length max_seq_length"),
        derived(_method, f"use_peft load_in_4bit load_in_8bit {ADAPTER}"),
        derived(
            _rows,
            "datasets dataset_name dataset_config dataset_train_split dataset_test_split dataset_text_field "
            "test_split_size eval_strategy",
        ),
        derived(shared.put_trainer_schedule, shared.SCHEDULE_KEYS),
        derived(_packing, "packing attn_implementation"),
        derived(shared.put_precision, "bf16 fp16"),
        derived(trackers.put_trackers, "report_to"),
        derived(lambda draft: put_result(draft, "output_dir"), "output_dir"),
        derived(shared.put_trainer_hub, shared.HUB_KEYS),
        derived(put_trainer_shards, KEYS, follows_table=True),
        derived(lambda draft: put_shards(draft, "accelerate_config"), "accelerate_config", follows_table=True),
    ),
    defaults={
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
    },
    nulls={"max_grad_norm": 0},
)
