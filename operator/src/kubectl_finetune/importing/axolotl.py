"""axolotl: `axolotl train FILE`."""

import re
from collections.abc import Mapping
from typing import Any

from finetune_api.objectives import Objective
from kubectl_finetune.importing import shared, templates, trackers, values
from kubectl_finetune.importing.axolotl_rows import put_rows
from kubectl_finetune.importing.draft import Draft, NotConverted
from kubectl_finetune.importing.engine import apply_table
from kubectl_finetune.importing.locations import put_model, put_result
from kubectl_finetune.importing.preferences import DPO_ALONE, put_axolotl_beta, put_losses, put_smoothing, sft_weight
from kubectl_finetune.importing.rewards import NO_LIMIT, put_rlhf
from kubectl_finetune.importing.rows import Format, Table, derived, each, harmless, is_off, lost, refused, to
from kubectl_finetune.importing.sharding import KEYS, put_shards
from kubectl_finetune.importing.shared import HYPER, LORA, REMOVE

REINFORCEMENT = {
    "dpo": Objective.DPO,
    "ipo": Objective.DPO,
    "kto": Objective.KTO,
    "grpo": Objective.RLHF,
}
TEXTS = {"completion", "pretrain"}
"""Types of rows that are texts."""
BLOCKS: Mapping[str, str] = {Objective.DPO.value: "dpo", Objective.KTO.value: "kto", Objective.RLHF.value: "rlhf"}
GPU_SPLITS = ("tensor_parallel_size", "context_parallel_size", "expert_parallel_size", "sequence_parallel_degree")
ADAPTER = (
    "load_in_4bit load_in_8bit lora_r lora_alpha lora_dropout lora_model_dir lora_target_linear lora_target_modules "
    "lora_target_parameters"
)
NOT_LINEAR = re.compile(r"embed|head|^w[tp]e$")
"""Embeddings and the output layer, which are not among the linear layers of `lora_target_linear`."""
FIRST_VALUES: Mapping[str, str | None] = {
    "true": None, "gaussian": "Gaussian", "pissa": "PiSSA", "pissa_niter_16": "PiSSA", "olora": "OLoRA", "eva": "EVA",
}  # fmt: skip
QUANTISATION: Table = {
    "bnb_4bit_use_double_quant": to("tuning.quantization.doubleQuant", values.only_false),
    "bnb_4bit_quant_type": lost("the base is in NF4", unless=("nf4",)),
    "bnb_4bit_compute_dtype": harmless("the computation has the precision of the training"),
    "bnb_4bit_quant_storage": harmless(shared.MEMORY),
    "load_in_*": harmless("it follows from adapter"),
    "llm_int8_*": harmless("it belongs to a base in 8 bits"),
}
"""Settings of `bnb_config_kwargs`."""
MOST_WARMUP = 100
"""Steps of axolotl's default warm-up, if 3 % of all steps are more."""
LONG_TRAINING = f"add warmup_ratio: 0.03, or warmup_steps: {MOST_WARMUP} if there are more than 3,333 steps"
_CLASSIFIES = "the base is trained to choose a class"


def _objective(draft: Draft) -> None:
    kind = str(draft.get("rl") or "").lower()
    if not is_off(kind) and (draft.get("pretraining_dataset") or draft.get("reward_model")):
        draft.lose("rl", "pretraining_dataset and reward_model choose the objective: nothing is trained by rl")
    if draft.get("pretraining_dataset") and draft.get("reward_model"):
        draft.lose("reward_model", "pretraining_dataset chooses the objective: no reward model is trained")
    if draft.get("pretraining_dataset"):
        shared.put_objective(draft, Objective.DOMAIN_ADAPTATION.value, "pretraining_dataset")
    elif draft.get("reward_model"):
        shared.put_objective(draft, Objective.REWARD_MODEL.value, "reward_model")
    elif kind in REINFORCEMENT:
        shared.put_objective(draft, REINFORCEMENT[kind].value, "rl")
    else:
        if not is_off(kind):
            draft.refuse("rl", f"there is no {kind.upper()}", "DPO, KTO, GRPO and RLOO are possible")
        shared.put_objective(draft, _of_rows(draft), "datasets")
    if kind == "ipo":
        draft.set("dpo.lossType", "ipo", "rl")


def _of_rows(draft: Draft) -> str:
    datasets = draft.get("datasets")
    are_texts = {
        str(one.get("type")).partition(".")[0] in TEXTS
        for one in (datasets if isinstance(datasets, list) else [])
        if isinstance(one, dict)
    }
    if len(are_texts) > 1:
        reason = "one job trains either texts or conversations"
        draft.refuse("datasets", reason, "import them as two files")
    return (Objective.DOMAIN_ADAPTATION if True in are_texts else Objective.CHAT).value


def _preferences(draft: Draft) -> None:
    block = BLOCKS.get(str(draft.at("objective")))
    _trl(draft, block)
    put_axolotl_beta(draft, block)
    losses = "dpo_loss_type dpo_loss_weights"
    if block != "dpo":
        shared.name_unused(draft, losses, DPO_ALONE)
    elif str(draft.get("rl")).lower() == "ipo":
        shared.name_unused(draft, losses, "rl: ipo has its own loss")
    elif draft.is_given(*losses.split()):
        put_losses(draft, *losses.split())
    put_smoothing(draft, "dpo_label_smoothing")
    if block == "kto":
        shared.carry(draft, "kto_desirable_weight", "kto.desirableWeight", values.number)
        shared.carry(draft, "kto_undesirable_weight", "kto.undesirableWeight", values.number)
    else:
        shared.name_unused(draft, "kto_desirable_weight kto_undesirable_weight", "it belongs to KTO")


def _trl(draft: Draft, block: str | None) -> None:
    settings = draft.get("trl") or {}
    if not isinstance(settings, dict):
        draft.refuse("trl", "is not a block", "write its settings below it")
    elif block == "rlhf":
        put_rlhf(draft, settings, ("trl",), "GRPO")
        if settings.get("max_completion_length") is None:
            draft.lose(("trl", "max_completion_length"), NO_LIMIT, "set rlhf.maxCompletionLength")
    else:
        for key in settings:
            if block is None or key != "beta":
                draft.lose(("trl", key), "it belongs to GRPO", changes_training=False)


def _method(draft: Draft) -> None:
    adapter = str(draft.get("adapter") or "").lower()
    is_small = shared.read(draft, "load_in_4bit", values.flag, False)
    if adapter in {"lora", "qlora"}:
        draft.set("tuning.method", "QLoRA" if adapter == "qlora" or is_small else "LoRA", "adapter")
        if shared.read(draft, "load_in_8bit", values.flag, False) and draft.at("tuning.method") == "LoRA":
            fix = "set tuning.method QLoRA if the GPU's memory is too small"
            draft.lose("load_in_8bit", "the base is in 16 bits, which needs more memory", fix)
        _adapter(draft)
    elif adapter in {"", "none"}:
        draft.set("tuning.method", "Full", "adapter")
        shared.name_unused(draft, ADAPTER, "no adapter is trained")
    else:
        draft.refuse("adapter", "adapters are LoRA and QLoRA", REMOVE)
    kwargs = draft.get("bnb_config_kwargs")
    if draft.at("tuning.method") == "QLoRA" and isinstance(kwargs, dict):
        apply_table(draft, ("bnb_config_kwargs",), kwargs, QUANTISATION)
    else:
        shared.name_unused(draft, "bnb_config_kwargs", "it belongs to a base in 4 bits, as a block")


def _adapter(draft: Draft) -> None:
    shared.carry(draft, "lora_r", f"{LORA}.rank", values.whole)
    shared.carry(draft, "lora_alpha", f"{LORA}.alpha", values.whole)
    shared.put_dropout(draft, is_switched_off=draft.at("objective") == Objective.REWARD_MODEL.value)
    if draft.is_given("lora_model_dir"):
        put_model(draft, "lora_model_dir", "tuning.initialAdapter.uri")
    takes_all = shared.read(draft, "lora_target_linear", values.flag, False)
    if takes_all:
        others = [one for one in values.words(draft.get("lora_target_modules") or []) if NOT_LINEAR.search(one)]
        if others:
            reason = f"with lora_target_linear, every linear layer gets an adapter, and {', '.join(others)} none"
            draft.lose("lora_target_modules", reason, "list all modules in tuning.lora.targetModules")
    elif draft.is_given("lora_target_modules"):
        shared.carry(draft, "lora_target_modules", f"{LORA}.targetModules", values.modules)
    elif not draft.is_given("lora_target_parameters"):
        reason = "without it PEFT chooses modules by the architecture; here every linear layer gets an adapter"
        draft.lose("lora_target_modules", reason, "set tuning.lora.targetModules")
    if draft.is_given("lora_target_parameters"):
        names = values.words(draft.get("lora_target_parameters"))
        if all("experts." in name for name in names):
            draft.set(f"{LORA}.targetExperts", True, "lora_target_parameters")
        else:
            draft.lose("lora_target_parameters", "only the experts of a mixture get adapters on parameters")


def _batch(draft: Draft) -> None:
    if draft.is_given("batch_size") and not draft.is_given("gradient_accumulation_steps"):
        total = shared.read(draft, "batch_size", values.count, 1)
        micro = shared.read(draft, "micro_batch_size", values.count, 1)
        draft.set(f"{HYPER}.gradientAccumulationSteps", max(1, total // micro), "batch_size")
        draft.set(f"{HYPER}.perDeviceTrainBatchSize", micro, "micro_batch_size")
    else:
        shared.name_unused(draft, "batch_size", "gradient_accumulation_steps counts")
        shared.put_batch(draft, "micro_batch_size")
    shared.put_gpus(draft)
    for key in GPU_SPLITS:
        if (shared.read(draft, key, values.whole, 1) or 1) > 1:
            reason = "a model is not split over GPUs in this way; its processes share the batch"
            draft.lose(key, reason, "divide the number of GPUs by it in --gpus", changes_training=False)


def _packing(draft: Draft) -> None:
    shared.put_packing(draft, "sample_packing", packs=shared.read(draft, "sample_packing", values.flag, False))
    key = "attn_implementation" if draft.is_given("attn_implementation") else "flash_attention"
    if draft.get("flash_attention") is True and not draft.is_given("attn_implementation"):
        if draft.at("objective") in shared.SUPERVISED:
            draft.set(f"{HYPER}.attention", "FlashAttention", key)
        else:
            shared.name_unused(draft, key, "it is chosen by GPU, image and model")
    else:
        shared.put_attention(draft, key)


def _long_rows(draft: Draft) -> None:
    asked = str(draft.get("excess_length_strategy") or "drop").lower()
    if draft.at("objective") == Objective.DOMAIN_ADAPTATION.value:
        shared.name_unused(draft, "excess_length_strategy", "texts are split")
    elif asked == "raise":
        fix = "status.dataset.truncatedRows counts them; dataset.longRows Skip leaves them out"
        draft.lose("excess_length_strategy", "longer rows do not end the job: they are truncated", fix)
    elif asked != "truncate":
        draft.set("dataset.longRows", "Skip", "excess_length_strategy")


def _class(draft: Draft) -> None:
    if "SequenceClassification" in str(draft.get("model_type")) and not draft.get("reward_model"):
        draft.refuse("model_type", _CLASSIFIES, "only reward models have a number in place of text")
    else:
        shared.name_unused(draft, "model_type", shared.ARCHITECTURE)


def _schedule(draft: Draft) -> None:
    shared.put_warmup(draft, 0.03)
    if draft.at(f"{HYPER}.warmupSteps") == 0.03 and not draft.is_given("warmup_ratio"):
        steps = shared.read(draft, "max_steps", values.whole, 0)
        if steps > 0:
            draft.set(f"{HYPER}.warmupSteps", min(int(0.03 * steps), MOST_WARMUP), "warmup_steps")
        else:
            reason = f"the warm-up has 3 % of the steps; axolotl's ends after {MOST_WARMUP} at the latest"
            draft.lose("warmup_steps", reason, LONG_TRAINING)
    shared.put_schedule(draft, "lr_scheduler")
    lowest = shared.read(draft, "cosine_min_lr_ratio", values.number, 0)
    if (
        0 < lowest < 1
        and draft.at(f"{HYPER}.lrSchedulerType") == "cosine"
        and not draft.get("cosine_constant_lr_ratio")
    ):
        draft.set(f"{HYPER}.lrSchedulerType", "cosine_with_min_lr", "cosine_min_lr_ratio")
        draft.set(f"{HYPER}.minLrRatio", lowest, "cosine_min_lr_ratio")
    elif lowest:
        draft.lose("cosine_min_lr_ratio", "the schedule ends in another way", "docs/settings.md lists the schedules")
    shared.put_length(draft, "num_epochs")
    for key in ("evals_per_epoch", "saves_per_epoch"):
        if not is_off(draft.get(key)):
            draft.lose(key, values.STRATEGY_IS_STEPS, "default: each tenth of the training", changes_training=False)


def _trackers(draft: Draft) -> None:
    project, mode = str(draft.get("wandb_project") or ""), draft.get("wandb_mode")
    if not project:
        shared.name_unused(draft, "wandb_entity wandb_mode", "it belongs to wandb_project")
    elif mode == "disabled":
        shared.name_unused(draft, "wandb_project", "wandb_mode switches its runs off")
    else:
        entity = str(draft.get("wandb_entity") or "")
        trackers.put_wandb(draft, "wandb_project", project, entity, is_offline=mode == "offline")
    if draft.is_given("mlflow_tracking_uri") and draft.is_given("mlflow_experiment_name"):
        trackers.put_mlflow(draft, str(draft.get("mlflow_experiment_name")))
        return
    fix = "set tracking.mlflow"
    for key, reason in (
        ("mlflow_tracking_uri", "the experiment is not named"),
        ("mlflow_experiment_name", "the server of MLflow is not in the file"),
    ):
        if draft.is_given(key):
            draft.lose(key, reason, fix, changes_training=False)


def _tokens(value: Any) -> None:
    if isinstance(value, dict) and set(value) <= {"pad_token"}:
        raise NotConverted("padding is not trained on: the tokenizer's own is used", changes_training=False)
    if not is_off(value):
        raise NotConverted("the tokenizer is used unchanged", "save a tokenizer with these tokens next to the model")


TABLE: Table = {
    **shared.TRAINING_ARGUMENTS,
    **shared.WEIGHTS,
    "optimizer": to(f"{HYPER}.optim", values.optimiser),
    "sequence_len": to(f"{HYPER}.maxLength", values.whole),
    "revision_of_model": to("model.revision", values.text),
    "model_revision": to("model.revision", values.text),
    "peft_use_rslora": shared.of_adapter("useRslora", values.only_true),
    "use_tensorboard": to("tracking.tensorboard", values.only_true),
    "liger_*": to(f"{HYPER}.fusedKernels", lambda value: "Auto" if values.flag(value) else None),
    "special_tokens": to("", _tokens),
    "tokens": shared.NEW_TOKENS,
    # what changes the training
    "chat_template_jinja": lost(shared.OWN_TEMPLATE, templates.IN_A_CONFIGMAP),
    "chat_template_kwargs": to("model.chatTemplateKwargs", templates.kwargs),
    "default_system_message": to("dataset.systemMessage", values.text),
    "eot_tokens": harmless("the tokens that the chat template puts after an answer are trained"),
    "min_sample_len": lost("short rows are used, too"),
    "max_prompt_len": lost("the beginning of a long prompt is removed only to make room for the answer"),
    "peft_use_dora": shared.of_adapter("useDora", values.only_true),
    "peft": lost("adapters begin with PEFT's usual initialisation"),
    "peft_init_lora_weights": shared.of_adapter(
        "initLoraWeights",
        values.choice(FIRST_VALUES, "adapters begin with PEFT's usual initialisation"),
    ),
    **each(shared.EVERY_LAYER, "peft_layers_to_transform peft_layers_pattern"),
    "peft_layer_replication": refused("layers cannot be replicated", REMOVE),
    "peft_trainable_token_indices": lost(
        "embeddings of single tokens are not trained", "set tuning.lora.modulesToSave for those of all tokens"
    ),
    "cosine_constant_lr_ratio": lost("the cosine has no constant part"),
    "eta_min": lost("the cosine ends at 0"),
    "lr_quadratic_warmup": lost("the warm-up is linear"),
    "lr_div_factor": lost("the warm-up begins at 0"),
    **each(lost("every weight has the same learning rate"), "embedding_lr* lr_groups"),
    "adam_eps": to(f"{HYPER}.adamEpsilon", values.positive),
    "noisy_embedding_alpha": to(f"{HYPER}.neftuneNoiseAlpha", values.positive),
    **each(
        lost("the model's config.json is used unchanged"),
        "overrides_of_model_config model_config overrides_of_model_kwargs",
    ),
    **each(
        harmless(shared.MEMORY),
        "resize_token_embeddings_to_32x torchdistx_path activation_offloading lora_*_kernel lora_on_cpu "
        "peft_autocast_adapter_dtype qlora_sharded_model_loading low_cpu_mem_usage "
        "experimental_skip_move_to_device device_map tiled_mlp* use_kernels use_*_kernels use_scattermoe "
        "use_sonicmoe experts_implementation llama4_linearized_experts gemma4_hybrid_attn_impl dsv4_* "
        "fused_attn_kernel cut_cross_entropy* flash_attn_* flash_optimum flex_attn* xformers_attention",
    ),
    "model_quantization_config": lost("the base is loaded in 16 bits, or in 4 bits (NF4) with QLoRA"),
    "model_quantization_config_kwargs": harmless("it belongs to model_quantization_config"),
    "quantize_moe_experts": lost("experts stay in 16 bits if bitsandbytes does not quantise them"),
    **each(lost("rows are shuffled"), "curriculum_sampling sample_packing_sequentially"),
    "sample_weighting*": lost("every row has the same weight"),
    "dpo_norm_loss": lost("the loss is that of TRL", unless=(False,)),
    "rpo_alpha": sft_weight,
    # what no job can express
    "gptq": refused("a quantised model cannot be the base", "give the original weights"),
    **each(refused(shared.PARTS, REMOVE), "unfrozen_parameters lisa_* llmcompressor"),
    **each(refused("there is no ReLoRA", REMOVE), "relora* jagged_restart*"),
    "qat": refused("there is no quantisation-aware training", REMOVE),
    "fp8*": refused("there is no training in FP8", REMOVE),
    **each(refused(shared.OTHER_LOSS, REMOVE), "diffusion ebft use_eaft"),
    "use_onebitllms": refused(shared.NO_GRADIENT, REMOVE),
    "process_reward_model": refused("steps of an answer cannot be rewarded one by one", REMOVE),
    "reinit_weights": refused("no model is trained from random weights", REMOVE),
    "processor_type": refused(shared.TEXT_ONLY, "remove it if the rows have text alone"),
    "freeze_mm_modules": harmless("a job trains on text alone"),
    # what has no effect on the training
    "eval_batch_size": harmless("the batch size of the training is used"),
    "eval_sample_packing": harmless("held-out rows are not packed"),
    "eval_sequence_len": harmless("held-out rows have the length of the training"),
    "eval_*": harmless("the report has its own metrics and answers"),
    **each(harmless("evaluation is by steps"), "evaluation_strategy eval_strategy"),
    "do_causal_lm_eval": harmless("the report has its own metrics"),
    "do_bench_eval": harmless("evaluation.ability measures general ability"),
    "num_labels": harmless("a reward model has one", unless=(1,)),
    "tokenizer_*": harmless("the tokenizer is that of the model"),
    **each(harmless(shared.ARCHITECTURE), "cls_model_config base_model_* is_*_derived_model"),
    "hf_use_auth_token": harmless("a token is read from a Secret", "set model.credentialsSecretRef"),
    **each(
        harmless(shared.NO_CACHE),
        "dataset_prepared_path dataset_processes dataset_num_proc dataset_keep_in_memory dataset_shard_* "
        "skip_prepare_dataset push_dataset_to_hub streaming*",
    ),
    "dataset_exact_deduplication": harmless("repeated rows are always removed"),
    "shuffle_merged_datasets": harmless("rows are always shuffled"),
    "max_packed_sequence_len": lost("it is no key of axolotl any more", "use sample_packing"),
    "pretrain_multipack_attn": harmless("packed rows never attend to each other"),
    "pad_to_*": harmless("padding is not trained on"),
    "sample_packing_*": harmless("preflight chooses which rows share a sequence"),
    "total_num_tokens": harmless("preflight counts the tokens"),
    "sdp_attention": to(f"{HYPER}.attention", lambda value: "SDPA" if values.flag(value) else None),
    "nvfp4_*": harmless("it belongs to weights in this number format"),
    "float16": to(f"{HYPER}.precision", lambda value: "FP16" if values.flag(value) else None),
    "bfloat16": to(f"{HYPER}.precision", lambda value: "BF16" if values.flag(value) else None),
    "torch_dtype": harmless("weights are loaded in the format of the computation"),
    **each(harmless(shared.GPUS), "ddp expert_parallel_*"),
    "dp_*": harmless(shared.GPUS, shared.GIVE_GPUS),
    "use_ray": harmless("the operator starts the processes"),
    "plugins": harmless("plugins are Python; what they change is named by their own keys"),
    "gptq_*": harmless("it belongs to gptq"),
    "loss_watchdog_*": harmless("evaluation.gate and stallTimeoutSeconds end a training that fails"),
    "auto_resume_from_checkpoints": harmless("a run resumes by itself"),
    "save_first_step": harmless("checkpoints are by steps"),
    "strict": harmless("the manifest is always checked"),
    "debug": harmless("the log is always complete"),
    "wandb_*": harmless("runs of W&B have the name of the job"),
    "use_wandb": harmless("a project is enough", unless=(False,)),
    "mlflow_*": harmless("runs of MLflow have the name of the job"),
    "vllm": harmless("answers are sampled in the process that trains"),
    **each(harmless(shared.OTHER_TRACKER), "comet_* swanlab_* use_swanlab trackio_* use_trackio"),
    **each(harmless("the trainer serves metrics for Prometheus"), "otel_* use_otel_metrics"),
}
FORMAT = Format(
    name="axolotl",
    title="axolotl",
    signs=frozenset({"base_model", "sequence_len", "micro_batch_size", "num_epochs", "lora_r", "datasets", "adapter"}),
    table=TABLE,
    derived=(
        derived(_objective, "rl reward_model"),
        derived(_class, "model_type"),
        derived(lambda draft: put_model(draft, "base_model"), "base_model"),
        derived(_method, f"adapter {ADAPTER} bnb_config_kwargs"),
        derived(
            lambda draft: templates.put_template(draft, "chat_template", draft.get("chat_template")), "chat_template"
        ),
        derived(put_rows, "datasets pretraining_dataset test_datasets val_set_size"),
        derived(lambda draft: shared.put_everything(draft, "train_on_inputs"), "train_on_inputs"),
        derived(_batch, f"micro_batch_size gradient_accumulation_steps batch_size {' '.join(GPU_SPLITS)}"),
        derived(
            _preferences,
            "rl_beta dpo_beta kto_desirable_weight kto_undesirable_weight trl "
            "dpo_loss_type dpo_loss_weights dpo_label_smoothing",
        ),
        derived(
            _schedule,
            "num_epochs max_steps warmup_steps warmup_ratio lr_scheduler lr_scheduler_kwargs "
            "cosine_min_lr_ratio evals_per_epoch saves_per_epoch",
        ),
        derived(_packing, "sample_packing attn_implementation flash_attention"),
        derived(shared.put_precision, "bf16 fp16"),
        derived(lambda draft: shared.put_early_stopping(draft, "early_stopping_patience"), "early_stopping_patience"),
        derived(_trackers, "wandb_project wandb_entity wandb_mode mlflow_tracking_uri mlflow_experiment_name"),
        derived(lambda draft: put_result(draft, "output_dir"), "output_dir"),
        derived(
            lambda draft: shared.put_hub(draft, "hub_model_id", is_asked=bool(draft.get("hub_model_id"))),
            "hub_model_id hub_private_repo hub_strategy hub_revision",
        ),
        derived(_long_rows, "excess_length_strategy"),
        derived(put_shards, KEYS, follows_table=True),
    ),
    defaults={
        "sequence_len": 512,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "lr_scheduler": "cosine",
        "optimizer": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "lora_dropout": 0.0,
    },
    texts=frozenset({"chat_template", "chat_template_jinja", "chat_template_kwargs"}),
)
