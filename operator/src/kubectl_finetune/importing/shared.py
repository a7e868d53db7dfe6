"""Rows and derivations that several formats share: arguments of transformers, batch, adapter, trackers."""

import math
from collections.abc import Callable
from typing import Any

from finetune_api.manifest.yaml_document import FieldPath
from finetune_api.objectives import SAMPLED, Objective
from finetune_api.output import REPO
from finetune_api.recipes import WITHOUT_DROPOUT
from finetune_client.manifest.suggestions import nearest
from kubectl_finetune.importing import values
from kubectl_finetune.importing.draft import Draft, Key, NotConverted
from kubectl_finetune.importing.rows import OFF, Row, each, harmless, is_off, lost, refused, to

HYPER, LORA = "hyperparameters", "tuning.lora"
SUPERVISED = (Objective.INSTRUCTION.value, Objective.CHAT.value, Objective.DOMAIN_ADAPTATION.value)
GPUS = "several GPUs need no setting of their own"
GIVE_GPUS = "give their number with --gpus: the effective batch depends on it"
EVERY_STEP = "every step is logged"
NO_CACHE = "preflight prepares and stores the rows"
OWN_CODE = "a model that needs code of its own is refused by preflight"
UPLOAD = "the result is published under output.uri, and output.hub pushes it to a hub too"
OTHER_TRACKER = "only MLflow, W&B and TensorBoard receive metrics"
MEMORY = "it changes memory or speed only"
ARCHITECTURE = "the architecture is read from the model's config.json"
OTHER_LOSS = "it trains with another loss"
PARTS = "it trains a part of the weights"
TEXT_ONLY = "images, audio and video cannot be trained on"
NO_GRADIENT = "weights that are trained in this number format are not supported"
REMOVE = "remove it from the file to import the rest"
OWN_TEMPLATE = (
    "the model's own chat template is used, and a plain one for a model without: the text around turns may differ"
)
COMPARE = "compare the rows that the report previews"

SCHEDULE_ARGUMENTS = {
    ("cosine_with_min_lr", "min_lr_rate"): "minLrRatio",
    ("warmup_stable_decay", "min_lr_ratio"): "minLrRatio",
    ("warmup_stable_decay", "num_decay_steps"): "decaySteps",
}
"""By schedule and argument: the field."""

TRAINING_ARGUMENTS: dict[str, Row] = {
    "learning_rate": to(f"{HYPER}.learningRate", values.number),
    "weight_decay": to(f"{HYPER}.weightDecay", values.number),
    "max_grad_norm": to(f"{HYPER}.maxGradNorm", values.number),
    "optim": to(f"{HYPER}.optim", values.optimiser),
    "seed": to(f"{HYPER}.seed", values.whole),
    "gradient_checkpointing": to(f"{HYPER}.gradientCheckpointing", values.checkpointing),
    "activation_checkpointing": to(f"{HYPER}.gradientCheckpointing", values.checkpointing),
    "use_liger_kernel": to(f"{HYPER}.fusedKernels", lambda value: "Auto" if values.flag(value) else None),
    "save_total_limit": to("checkpoint.saveTotalLimit", values.kept),
    "save_steps": to("checkpoint.steps", values.steps),
    "eval_steps": to("evaluation.steps", values.steps),
    "trust_remote_code": harmless(OWN_CODE),
    "adam_beta1": to(f"{HYPER}.adamBeta1", values.number),
    "adam_beta2": to(f"{HYPER}.adamBeta2", values.number),
    "adam_epsilon": to(f"{HYPER}.adamEpsilon", values.positive),
    "optim_args": lost("optimisers have no further arguments"),
    "optim_target_modules": lost("optimisers train every module with an adapter"),
    "neftune_noise_alpha": to(f"{HYPER}.neftuneNoiseAlpha", values.positive),
    "label_smoothing_factor": lost("labels are not smoothed"),
    "group_by_length": lost("rows are not ordered by their length"),
    "save_strategy": harmless("checkpoints are by steps", "set checkpoint.steps", unless=(*OFF, "steps")),
    **each(harmless(EVERY_STEP), "logging_* log_level*"),
    **each(
        harmless(MEMORY),
        "dataloader_* eval_accumulation_steps gradient_checkpointing_kwargs tf32 torch_compile* "
        "torch_empty_cache_steps jit_mode_eval bf16_full_eval fp16_full_eval",
    ),
    "per_device_eval_batch_size": harmless("the batch size of the training is used"),
    "eval_delay": harmless("evaluation starts with the training"),
    "eval_on_start": harmless("the model before training is always evaluated"),
    "load_best_model_at_end": harmless("the best weights are always published"),
    **each(harmless("the held-out loss decides which weights are best"), "metric_for_best_model greater_is_better"),
    "save_only_model": harmless("checkpoints are complete, so that a run can resume"),
    "save_safetensors": harmless("weights are always saved as safetensors", unless=(True,)),
    "overwrite_output_dir": harmless("one prefix belongs to one job"),
    "resume_from_checkpoint": harmless("a run resumes by itself from a checkpoint of its own job"),
    "ignore_data_skip": harmless("a run resumes at its row"),
    "remove_unused_columns": harmless("columns that a format does not name are ignored"),
    **each(harmless(GPUS), "ddp_* accelerator_config local_rank *_parallel *_parallel_size"),
    "fsdp*": harmless(GPUS, GIVE_GPUS),
    **each(harmless(UPLOAD), "push_to_hub* hub_*"),
    "hub_always_push": harmless("one push is made, after the result is published"),
    "run_name": harmless("runs of trackers have the name of the job"),
    "disable_tqdm": harmless("progress is in the job's status"),
    **each(harmless("the report has its own metrics"), "include_* prediction_loss_only"),
    "do_train": harmless("a job trains", unless=(True,)),
    "do_eval": harmless("held-out rows are evaluated if there are any"),
    "use_cpu": to("resources.gpusPerNode", lambda value: 0 if values.flag(value) else None),
    "ray_*": harmless("the operator starts the processes"),
}
"""Arguments of transformers' Trainer that LLaMA-Factory and TRL have, too."""


SCHEDULE_KEYS = "num_train_epochs max_steps warmup_steps warmup_ratio lr_scheduler_type lr_scheduler_kwargs"
"""What `put_trainer_schedule` reads."""
HUB_KEYS = "push_to_hub hub_model_id hub_private_repo hub_strategy hub_revision"
"""What `put_hub` reads."""


def put_objective(draft: Draft, found: str, key: Key) -> str:
    """Set the objective: that of the option, else the one that follows from the file."""
    known = [one.value for one in Objective]
    asked = draft.options.objective
    draft.set("objective", (nearest(asked, known) or asked) if asked else found, "--objective" if asked else key)
    return str(draft.at("objective"))


def read(draft: Draft, key: str, convert: Callable[[Any], Any], default: Any = None) -> Any:
    """Return a key's converted value; the default if it has none or is faulty, which is then named."""
    return read_value(draft, key, draft.get(key), convert, default)


def read_value(draft: Draft, key: Key, value: Any, convert: Callable[[Any], Any], default: Any = None) -> Any:
    """Return the value of any key in the same way."""
    if value is None:
        return default
    try:
        return convert(value)
    except NotConverted as error:
        draft.lose(key, error.reason, error.fix, changes_training=error.changes_training)
        return default


def carry(draft: Draft, key: str, field: str, convert: Callable[[Any], Any]) -> None:
    """Carry one key, as a row of a table would."""
    if (value := draft.get(key)) is not None:
        to(field, convert)(draft, (key,), value)


def name_unused(draft: Draft, keys: str, reason: str) -> None:
    """Name the keys of the file that this training does not use, which are separated by spaces."""
    for key in keys.split():
        if not is_off(draft.file.values.get(key)):
            draft.lose(key, reason, changes_training=False)


def put_share(draft: Draft, key: str) -> None:
    """Set the share of held-out rows, if none are given, and name one that is not a whole percentage of at most 50."""
    if draft.at("dataset.validation") is not None:
        name_unused(draft, key, "held-out rows are given by themselves")
        return
    carry(draft, key, "dataset.validationSplitPercent", values.percent)
    percent = draft.at("dataset.validationSplitPercent")
    if percent is not None and not math.isclose(percent, asked := 100 * values.number(draft.get(key))):
        fix = "set dataset.validationSplitPercent, a whole number from 1 to 50"
        draft.lose(key, f"held out are {percent} %, not {asked:.6g} %", fix)


def put_hub(draft: Draft, switch: str, *, is_asked: bool) -> None:
    """Set the repository of a hub to which the result is pushed, if it is asked for by this key."""
    repo = str(draft.get("hub_model_id") or "")
    if not is_asked:
        keys = "hub_model_id hub_private_repo hub_revision hub_strategy"
        name_unused(draft, keys, f"nothing is pushed without {switch}")
        return
    if not REPO.fullmatch(repo):
        reason = f"the repository {repo} is not owner/name" if repo else "the repository is not named"
        key = "hub_model_id" if repo else "push_to_hub"
        draft.lose(key, reason, "set output.hub.repo to owner/name", changes_training=False)
        return
    draft.set("output.hub.repo", repo, "hub_model_id")
    private = read(draft, "hub_private_repo", values.flag)
    if private is None:
        reason = "a repository that does not exist is created as private"
        draft.lose("hub_model_id", reason, "for a public one, set output.hub.private to false", changes_training=False)
    elif not private:
        draft.set("output.hub.private", False, "hub_private_repo")
    if branch := str(draft.get("hub_revision") or ""):
        draft.set("output.hub.revision", branch, "hub_revision")
    if draft.get("hub_strategy") not in (None, "end"):
        reason = "the published result alone is pushed, and no checkpoint"
        draft.lose("hub_strategy", reason, changes_training=False)


def put_trainer_hub(draft: Draft) -> None:
    """Set the repository to which transformers' Trainer would push."""
    put_hub(draft, "push_to_hub", is_asked=read(draft, "push_to_hub", values.flag, default=False))


def put_gpus(draft: Draft, key: str = "--gpus", found: int = 1) -> None:
    """Set the GPUs, spread evenly over as few nodes of at most eight as possible."""
    gpus = found if draft.options.gpus is None else draft.options.gpus
    if gpus > 8:
        each = next(each for each in range(8, 0, -1) if gpus % each == 0)
        draft.set("resources.numNodes", gpus // each, key)
        gpus = each
    draft.set("resources.gpusPerNode", gpus, key)


def put_batch(draft: Draft, batch: str) -> None:
    """Set rows and batches of a step; their product, times the GPUs, is the effective batch of both projects."""
    carry(draft, batch, f"{HYPER}.perDeviceTrainBatchSize", values.count)
    carry(draft, "gradient_accumulation_steps", f"{HYPER}.gradientAccumulationSteps", values.count)


def put_length(draft: Draft, epochs: str) -> None:
    """Set the length of the training; a number of steps wins, as in transformers."""
    if (read(draft, "max_steps", values.number, 0) or 0) > 0:
        carry(draft, "max_steps", f"{HYPER}.maxSteps", values.whole)
    else:
        carry(draft, epochs, f"{HYPER}.numTrainEpochs", values.number)


def put_warmup(draft: Draft, default: float) -> None:
    """Set the warm-up: steps win over the ratio, and a ratio is a number below 1 in the same field."""
    for key in ("warmup_steps", "warmup_ratio"):
        value = read(draft, key, values.number)
        if value is not None and (key == "warmup_ratio" or value > 0 or not draft.is_given("warmup_ratio")):
            draft.set(f"{HYPER}.warmupSteps", value, key)
            return
    draft.set(f"{HYPER}.warmupSteps", default, "warmup_steps")


def _drop_warmup(draft: Draft) -> None:
    """Remove a warm-up that transformers ignores, and name the key that sets it."""
    given = next((key for key in ("warmup_steps", "warmup_ratio") if draft.is_given(key) and draft.get(key)), None)
    if given:
        fix = "for a warm-up, set hyperparameters.lrSchedulerType to constant_with_warmup"
        draft.lose(given, "schedule constant ignores it", fix, changes_training=False)
    draft.set(f"{HYPER}.warmupSteps", 0, given or "warmup_steps")


def put_schedule(draft: Draft, key: str) -> None:
    """Set the schedule of the learning rate, with where it ends."""
    carry(draft, key, f"{HYPER}.lrSchedulerType", values.schedule)
    if draft.at(f"{HYPER}.lrSchedulerType") == "constant" and draft.at(f"{HYPER}.warmupSteps"):
        _drop_warmup(draft)
    arguments = draft.get("lr_scheduler_kwargs")
    for name, value in arguments.items() if isinstance(arguments, dict) else ():
        place = ("lr_scheduler_kwargs", name)
        field = SCHEDULE_ARGUMENTS.get((str(draft.at(f"{HYPER}.lrSchedulerType")), name))
        rate = draft.get("learning_rate") or draft.at(f"{HYPER}.learningRate")
        if name == "min_lr" and rate and draft.at(f"{HYPER}.lrSchedulerType") == "cosine_with_min_lr":
            to(f"{HYPER}.minLrRatio", values.ratio_to(rate))(draft, place, value)
        elif field:
            to(f"{HYPER}.{field}", values.number)(draft, place, value)
        else:
            draft.lose(place, "this schedule has no such argument", "docs/settings.md lists its settings")
    if not isinstance(arguments, dict) and not is_off(arguments):
        draft.lose(
            "lr_scheduler_kwargs",
            "only a block is read",
            "write its entries as a block, or set hyperparameters.minLrRatio",
        )


def put_trainer_schedule(draft: Draft) -> None:
    """Set warm-up, schedule and length by the keys of transformers' Trainer."""
    put_warmup(draft, 0)
    put_schedule(draft, "lr_scheduler_type")
    put_length(draft, "num_train_epochs")


def put_precision(draft: Draft, *, is_32_bits_if_off: bool = True) -> None:
    """Set the number format from the two switches; with BF16 switched off, the computation may be in 32 bits."""
    if read(draft, "bf16", _is_automatic) == "Auto":
        return
    for key, name in (("bf16", "BF16"), ("fp16", "FP16")):
        if read(draft, key, values.flag, False):
            draft.set(f"{HYPER}.precision", name, key)
            return
    if is_32_bits_if_off and draft.is_given("bf16") and draft.file.values["bf16"] is False:
        draft.set(f"{HYPER}.precision", "FP32", "bf16")


def _is_automatic(value: Any) -> Any:
    return "Auto" if str(value).lower() == "auto" else value


def has_noise(draft: Draft) -> bool:
    """Return whether the file adds noise to the embeddings (NEFTune)."""
    keys = ("neftune_noise_alpha", "noisy_embedding_alpha")
    return any((read(draft, key, values.positive) or 0) > 0 for key in keys)


def put_packing(draft: Draft, key: str, *, packs: bool) -> None:
    """Set packing; where the file does not pack, `Auto` would put more rows into a step."""
    if draft.at("objective") in SUPERVISED:
        if packs and has_noise(draft):
            reason = "with NEFTune, rows are not packed: a step has fewer tokens"
            draft.lose(key, reason, "raise gradient_accumulation_steps, or remove the noise")
            packs = False
        draft.set(f"{HYPER}.packing", "Always" if packs else "Never", key)
    else:
        name_unused(draft, key, f"objective {draft.at('objective')} does not pack rows")


def put_everything(draft: Draft, key: str) -> None:
    """Set the loss of every token, if this switch is on; objectives of pairs and texts have it in another way."""
    if draft.at("objective") not in SUPERVISED[:2]:
        name_unused(draft, key, f"objective {draft.at('objective')} does not use it")
    elif read(draft, key, values.flag, False):
        draft.set("dataset.trainOn", "Everything", key)


def put_attention(draft: Draft, key: str) -> None:
    """Set the attention kernel, for supervised objectives."""
    word = str(draft.get(key)).lower()
    if has_noise(draft) and not is_off(draft.get(key)):
        draft.lose(key, "with NEFTune, rows are not joined, which FlashAttention needs", changes_training=False)
        return
    if word in {"none", "true", "false", "auto"}:
        return
    if draft.at("objective") not in SUPERVISED:
        name_unused(draft, key, "it is chosen by GPU, image and model")
    elif "flash" in word or word == "fa2":
        draft.set(f"{HYPER}.attention", "FlashAttention", key)
    elif word == "sdpa":
        draft.set(f"{HYPER}.attention", "SDPA", key)
    elif not is_off(word):
        draft.lose(key, "it is chosen by GPU, image and model", changes_training=False)


def put_dropout(draft: Draft, *, is_switched_off: bool = False) -> None:
    """Set the adapter's dropout, which DPO and KTO do not have, in TRL either; TRL may also switch it off."""
    objective = draft.at("objective")
    if objective not in WITHOUT_DROPOUT and not is_switched_off:
        carry(draft, "lora_dropout", f"{LORA}.dropout", values.number)
        return
    reason = f"objective {objective} trains without dropout"
    if objective not in WITHOUT_DROPOUT:
        reason = "TRL switches dropout off, with disable_dropout"
        draft.set(f"{LORA}.dropout", 0.0, "lora_dropout")
    changes = objective in SAMPLED and not is_switched_off
    if not is_off(draft.get("lora_dropout")) and (changes or draft.is_given("lora_dropout")):
        draft.lose("lora_dropout", reason, changes_training=changes)


def put_early_stopping(draft: Draft, key: str) -> None:
    """Set early stopping, if there are held-out rows."""
    patience = read(draft, key, values.positive_whole)
    if patience is None:
        return
    has_rows = draft.at("dataset.validation") or draft.at("dataset.validationSplitPercent")
    if has_rows and draft.at("objective") != Objective.RLHF.value:
        draft.set("earlyStopping.patience", patience, key)
    else:
        draft.lose(key, "earlyStopping needs held-out rows", "use --validation")


def of_adapter(field: str, convert: Callable[[Any], Any]) -> Row:
    """Carry the value to a field of the adapter, if one is trained."""
    row = to(f"{LORA}.{field}", convert)

    def carry_setting(draft: Draft, path: FieldPath, value: Any) -> None:
        if draft.at("tuning.method") != "Full":
            row(draft, path, value)
        elif not is_off(value):
            draft.lose(path, "no adapter is trained", changes_training=False)

    return carry_setting


NEW_TOKENS = lost(
    "the tokenizer is used unchanged: these texts are split into several tokens, and get no embeddings of their own",
    "save a model and a tokenizer with these tokens, and set tuning.lora.modulesToSave to train their embeddings",
)
ROPE = lost(
    "positions are encoded as in the model's config.json, so its context is not extended",
    "save a model with rope_scaling in its config.json",
)
CENTRED = lost("rewards are not centred: the differences of two are trained, and their mean can be any number")
EVERY_LAYER = lost(
    "every layer gets an adapter, so more weights are trained",
    "name the modules of the other layers in tuning.lora.excludeModules",
)
WEIGHTS: dict[str, Row] = {
    **each(NEW_TOKENS, "added_tokens added_tokens_overrides add_tokens add_special_tokens additional_special_tokens"),
    **each(NEW_TOKENS, "new_special_tokens new_special_tokens_config"),
    **each(ROPE, "rope_scaling rope_theta rope_parameters"),
    **each(EVERY_LAYER, "layers_to_transform lora_layers_to_transform layers_pattern lora_layers_pattern"),
    "center_rewards_coefficient": CENTRED,
    **each(refused(OTHER_LOSS, REMOVE), "cpo_alpha orpo_alpha orpo_beta simpo_gamma"),
    **each(of_adapter("modulesToSave", values.whole_modules), "additional_target lora_modules_to_save modules_to_save"),
    "use_dora": of_adapter("useDora", values.only_true),
    "loraplus_lr_ratio": of_adapter("loraPlusLrRatio", values.number),
    "loraplus_lr_embedding": lost("adapters on embeddings have the learning rate of the others"),
    "use_rslora": of_adapter("useRslora", values.only_true),
    "lora_rank_pattern": of_adapter("rankPattern", values.counts),
    "lora_alpha_pattern": of_adapter("alphaPattern", values.counts),
    "lora_fan_in_fan_out": harmless("it follows from the model"),
    "lora_task_type": harmless("it follows from the objective"),
    "freeze_*": refused(PARTS, REMOVE),
}
"""Settings of adapters that LLaMA-Factory, TRL and axolotl share."""
