"""LLaMA-Factory: `llamafactory-cli train FILE`."""

from typing import Any

from finetune_api.manifest.yaml_document import FieldPath
from finetune_api.objectives import Objective
from kubectl_finetune.importing import preferences, shared, templates, trackers, values
from kubectl_finetune.importing.draft import Draft
from kubectl_finetune.importing.llama_factory_rows import put_rows
from kubectl_finetune.importing.locations import put_model, put_result
from kubectl_finetune.importing.rows import OFF, Format, Table, derived, each, harmless, lost, refused, to
from kubectl_finetune.importing.sharding import KEYS, put_trainer_shards
from kubectl_finetune.importing.shared import HYPER, LORA, REMOVE

STAGES = {
    "sft": Objective.CHAT,
    "pt": Objective.DOMAIN_ADAPTATION,
    "rm": Objective.REWARD_MODEL,
    "dpo": Objective.DPO,
    "kto": Objective.KTO,
}
ADAPTER = "lora_rank lora_alpha lora_dropout lora_target adapter_name_or_path quantization_bit double_quantization"
OTHER_OPTIMISER = "there is no such optimiser; the default is used"


def _objective(draft: Draft) -> None:
    stage = str(draft.get("stage")).lower()
    if not draft.get("do_train") and not draft.is_given("dataset"):
        draft.refuse(
            "do_train", "the file trains nothing: it merges, answers or evaluates", "give a file of a training"
        )
    if stage not in STAGES:
        draft.refuse("stage", f"there is no {stage.upper()}", "objective RLHF trains with GRPO or RLOO")
    found = STAGES.get(stage, Objective.CHAT)
    if found is Objective.CHAT and shared.read(draft, "mask_history", values.flag, False):
        found = Objective.INSTRUCTION
    objective = shared.put_objective(draft, found.value, "stage")
    _preferences(draft, objective)
    if stage != "sft":
        shared.name_unused(draft, "mask_history", "it belongs to stage sft")


def _preferences(draft: Draft, objective: str) -> None:
    if objective == Objective.DPO.value:
        shared.carry(draft, "pref_beta", "dpo.beta", values.number)
        loss = str(draft.get("pref_loss"))
        if loss in {"sigmoid", "hinge", "ipo"}:
            draft.set("dpo.lossType", loss, "pref_loss")
        else:
            draft.refuse("pref_loss", f"there is no {loss} loss", "sigmoid, hinge and ipo are possible")
    if objective == Objective.KTO.value:
        shared.carry(draft, "pref_beta", "kto.beta", values.number)
        shared.carry(draft, "kto_chosen_weight", "kto.desirableWeight", values.number)
        shared.carry(draft, "kto_rejected_weight", "kto.undesirableWeight", values.number)
    else:
        shared.name_unused(draft, "kto_chosen_weight kto_rejected_weight", "it belongs to stage kto")
    if objective != Objective.DPO.value:
        shared.name_unused(draft, "pref_loss", "it belongs to stage dpo")
    if objective not in {Objective.DPO.value, Objective.KTO.value}:
        shared.name_unused(draft, "pref_beta", "it belongs to stage dpo or kto")


def _template(draft: Draft) -> None:
    templates.put_template(draft, "template", draft.get("template"))
    if draft.at(templates.FIELD) == "Alpaca":
        draft.lose("template", "no system text is added to rows without one", "add it to the rows")


def _method(draft: Draft) -> None:
    kind = str(draft.get("finetuning_type")).lower()
    if kind == "full":
        draft.set("tuning.method", "Full", "finetuning_type")
        shared.name_unused(draft, ADAPTER, "no adapter is trained")
        return
    if kind != "lora":
        draft.refuse("finetuning_type", "weights are trained by LoRA, QLoRA or in full", REMOVE)
    bits = shared.read(draft, "quantization_bit", values.whole, 0)
    draft.set("tuning.method", "QLoRA" if bits == 4 else "LoRA", "quantization_bit" if bits else "finetuning_type")
    if bits not in {0, 4}:
        draft.lose("quantization_bit", "the base is in 16 bits, which needs more memory", "4 is QLoRA")
    if bits == 4 and shared.read(draft, "double_quantization", values.flag, True) is False:
        draft.set("tuning.quantization.doubleQuant", False, "double_quantization")
    if bits != 4:
        shared.name_unused(draft, "double_quantization", "it belongs to quantization_bit 4")
    rank = shared.read(draft, "lora_rank", values.whole, 8)
    draft.set(f"{LORA}.rank", rank, "lora_rank")
    draft.set(f"{LORA}.alpha", shared.read(draft, "lora_alpha", values.whole, 2 * rank), "lora_alpha")
    shared.put_dropout(draft)
    shared.carry(draft, "lora_target", f"{LORA}.targetModules", values.modules)
    if draft.is_given("adapter_name_or_path"):
        put_model(draft, "adapter_name_or_path", "tuning.initialAdapter.uri")


def _first_values(draft: Draft, path: FieldPath, value: Any) -> None:
    if draft.at("tuning.method") == "QLoRA" or draft.at("objective") == Objective.REWARD_MODEL.value:
        fix = "tuning.lora.initLoraWeights PiSSA needs tuning.method LoRA, and no reward model"
        lost("adapters begin with PEFT's usual initialisation", fix)(draft, path, value)
    else:
        shared.of_adapter("initLoraWeights", lambda given: "PiSSA" if values.flag(given) else None)(draft, path, value)


def _packing(draft: Draft) -> None:
    is_plain = draft.at("objective") == Objective.DOMAIN_ADAPTATION.value
    packs = shared.read(draft, "packing", values.flag, is_plain) or shared.read(
        draft, "neat_packing", values.flag, False
    )
    shared.put_packing(draft, "neat_packing" if draft.is_given("neat_packing") else "packing", packs=packs)
    if packs and not is_plain and not draft.get("neat_packing"):
        draft.lose("packing", "packed rows do not attend to each other, as with neat_packing")


def _precision(draft: Draft) -> None:
    """Set the number format; without a switch LLaMA-Factory computes in that of the model or in 16 bits, as `Auto`."""
    if shared.read(draft, "pure_bf16", values.flag, False):
        draft.set(f"{HYPER}.precision", "BF16", "pure_bf16")
    else:
        shared.put_precision(draft, is_32_bits_if_off=False)


TABLE: Table = {
    **shared.TRAINING_ARGUMENTS,
    **shared.WEIGHTS,
    "cutoff_len": to(f"{HYPER}.maxLength", values.whole),
    "model_revision": to("model.revision", values.text),
    "disable_gradient_checkpointing": to(f"{HYPER}.gradientCheckpointing", values.inverse),
    "enable_liger_kernel": to(f"{HYPER}.fusedKernels", lambda value: "Auto" if values.flag(value) else None),
    # what changes the training
    "default_system": to("dataset.systemMessage", values.text),
    "tool_format": lost("the model's chat template renders the tools"),
    "enable_thinking": lost("an answer without reasoning gets none", unless=(True,)),
    "pref_ftx": preferences.sft_weight,
    **each(lost("the loss has no further term"), "pref_bco_weight ld_alpha moe_aux_loss_coef"),
    "dpo_label_smoothing": lambda draft, *_: preferences.put_smoothing(draft, "dpo_label_smoothing"),
    **each(lost("the reference is the model before training"), "ref_model ref_model_*"),
    "pissa_init": _first_values,
    "pissa_*": harmless("it belongs to pissa_init"),
    "create_new_adapter": lost("an adapter is continued, and not merged before"),
    **each(
        harmless(shared.MEMORY),
        "use_unsloth overlap_* *_fusion moe_grouped_gemm moe_token_dispatcher_type recompute_granularity "
        "low_cpu_mem_usage upcast_* use_reentrant_gc use_unsloth_gc use_v1_kernels quantization_device_map "
        "device_map",
    ),
    **each(lost(OTHER_OPTIMISER), "use_galore use_apollo use_badam use_adam_mini use_muon"),
    "galore_*": harmless("it belongs to use_galore"),
    "apollo_*": harmless("it belongs to use_apollo"),
    "badam_*": harmless("it belongs to use_badam"),
    "shift_attn": lost("the attention is that of the model"),
    **each(lost("no token is new, so no embedding is added"), "resize_vocab init_special_tokens"),
    "split_special_tokens": lost("rows with special tokens in a text are rejected"),
    "quantization_type": lost("the base is in NF4", unless=("nf4",)),
    "quantization_method": lost("the base is quantised by bitsandbytes", unless=("bnb", "bitsandbytes")),
    # what no job can express
    **each(refused(shared.PARTS, REMOVE), "use_llama_pro mixture_of_depths freeze_language_model"),
    **each(refused(shared.OTHER_LOSS, REMOVE), "use_dft_loss use_asft_loss use_eaft_loss"),
    "asft_alpha": harmless("it belongs to use_asft_loss"),
    "eaft_alpha": harmless("it belongs to use_eaft_loss"),
    "fp8*": refused("there is no training in FP8", REMOVE),
    "train_from_scratch": refused("no model is trained from random weights", REMOVE),
    "oft_*": refused("adapters are LoRA and QLoRA", REMOVE),
    "ppo_*": refused("there is no PPO", "objective RLHF trains with GRPO or RLOO"),
    "reward_model*": harmless("it belongs to PPO"),
    **each(harmless("the report shows answers"), "predict_with_generate do_predict"),
    **each(
        harmless("a job trains on text alone"),
        "image_* video_* audio_* freeze_vision_tower freeze_multi_modal_projector media_dir",
    ),
    "use_kt": refused("layers are not offloaded to KTransformers", REMOVE),
    "kt_*": harmless("it belongs to use_kt"),
    **each(harmless(shared.GPUS), "use_mca use_megatron_bridge megatron_bridge_args use_distributed_optimizer"),
    # what has no effect on the training
    **each(
        harmless(shared.NO_CACHE),
        "preprocessing_* overwrite_cache tokenized_path streaming buffer_size data_shared_file_system",
    ),
    "ignore_pad_token_for_loss": harmless("padding is not trained on"),
    "eval_on_each_dataset": harmless("held-out rows are evaluated together"),
    **each(harmless("evaluation is by steps", unless=(*OFF, "steps")), "eval_strategy evaluation_strategy"),
    "plot_loss": harmless("the report has the curves", unless=(*OFF, True)),
    "cache_dir": harmless("modelCache keeps downloaded models"),
    "use_fast_tokenizer": harmless("the tokenizer is that of the model", unless=(True,)),
    "compute_*": harmless("the report has its own metrics"),
    **each(harmless("it belongs to inference"), "infer_* vllm_* sglang_*"),
    "export_*": harmless("output.merge publishes a merged model"),
    **each(harmless(shared.OTHER_TRACKER), "swanlab_* use_swanlab"),
    "print_param_status": harmless("the report has the number of trained weights"),
}
FORMAT = Format(
    name="llama-factory",
    title="LLaMA-Factory",
    signs=frozenset({"stage", "finetuning_type", "cutoff_len", "template", "lora_rank", "do_train", "dataset_dir"}),
    table=TABLE,
    derived=(
        derived(_objective, "stage mask_history pref_beta pref_loss kto_chosen_weight kto_rejected_weight"),
        derived(lambda draft: put_model(draft, "model_name_or_path"), "model_name_or_path"),
        derived(_template, "template"),
        derived(lambda draft: shared.put_everything(draft, "train_on_prompt"), "train_on_prompt"),
        derived(_method, f"finetuning_type {ADAPTER}"),
        derived(put_rows, "dataset eval_dataset dataset_dir val_size max_samples mix_strategy interleave_probs"),
        derived(
            lambda draft: shared.put_batch(draft, "per_device_train_batch_size"),
            "per_device_train_batch_size gradient_accumulation_steps",
        ),
        derived(shared.put_gpus, ""),
        derived(shared.put_trainer_schedule, shared.SCHEDULE_KEYS),
        derived(_packing, "packing neat_packing"),
        derived(lambda draft: shared.put_attention(draft, "flash_attn"), "flash_attn"),
        derived(_precision, "bf16 fp16 pure_bf16"),
        derived(lambda draft: shared.put_early_stopping(draft, "early_stopping_steps"), "early_stopping_steps"),
        derived(trackers.put_trackers, "report_to"),
        derived(lambda draft: put_result(draft, "output_dir"), "output_dir"),
        derived(shared.put_trainer_hub, shared.HUB_KEYS),
        derived(put_trainer_shards, KEYS, follows_table=True),
    ),
    defaults={
        "stage": "sft",
        "finetuning_type": "lora",
        "pref_beta": 0.1,
        "pref_loss": "sigmoid",
        "lora_dropout": 0.0,
        "dataset_dir": "data",
        "cutoff_len": 2048,
        "learning_rate": 5e-5,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
    },
    nulls={"max_grad_norm": 0},
)
