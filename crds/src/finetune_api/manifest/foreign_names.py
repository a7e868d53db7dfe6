"""Names of the same settings in axolotl, LLaMA-Factory, TRL, transformers, PEFT and OpenAI's fine-tuning API."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

AXOLOTL, LLAMA_FACTORY, OPENAI, PEFT = "axolotl", "LLaMA-Factory", "OpenAI", "PEFT"
TRANSFORMERS, TRL = "transformers", "TRL"
FORMER_TRANSFORMERS, FORMER_TRL = "earlier transformers", "earlier TRL"

GPUS = "several GPUs need no setting of their own: set resources.gpusPerNode and resources.numNodes, and remove it"
REMOVE = "it has no counterpart: remove it"
EVERYTHING = "true is Everything, false the default"
ANSWERS = "true is the default, AllAnswers; false is Everything"
TEMPLATE = "the default is the model's own, which is usually the right one"
EVERY = "every step is logged: remove it"
BATCH = (
    "set hyperparameters.perDeviceTrainBatchSize and gradientAccumulationSteps: their product, times the number of "
    "GPUs, is the number of rows in a step"
)


@dataclass(frozen=True)
class ForeignName:
    """A name of other projects: the field of the spec that it is, or what to do instead, or both."""

    projects: tuple[str, ...]
    field: str = ""
    advice: str = ""


def _table() -> dict[str, ForeignName]:
    hyper, lora = "hyperparameters", "tuning.lora"
    one = ForeignName
    return {
        # model and data
        "base_model": one((AXOLOTL,), "model.uri", "write hf://owner/name"),
        "model_name_or_path": one((LLAMA_FACTORY, TRL), "model.uri", "write hf://owner/name"),
        "model_revision": one((AXOLOTL, LLAMA_FACTORY, TRL), "model.revision"),
        "trust_remote_code": one(
            (AXOLOTL, LLAMA_FACTORY, TRL), "", "a model that needs code of its own is refused: remove it"
        ),
        "training_file": one((OPENAI,), "dataset.train.uri", "write s3://bucket/rows.jsonl"),
        "validation_file": one((OPENAI,), "dataset.validation.uri", "write s3://bucket/rows.jsonl"),
        "datasets": one((AXOLOTL, TRL), "dataset.train.sources", "one entry each; a single one is dataset.train.uri"),
        "fraction": one((TRL,), "dataset.train.sources", "its share of the mixture is weight in each source"),
        "interleave_probs": one((LLAMA_FACTORY,), "dataset.train.sources", "write weight in each source"),
        "mix_strategy": one(
            (LLAMA_FACTORY,),
            "dataset.train.stoppingStrategy",
            "interleave_under is FirstExhausted, interleave_over AllExhausted; concat needs no weights",
        ),
        "test_datasets": one((AXOLOTL,), "dataset.validation.uri"),
        "eval_dataset": one((LLAMA_FACTORY,), "dataset.validation.uri"),
        "val_set_size": one((AXOLOTL,), "dataset.validationSplitPercent", "in percent: 0.1 is 10"),
        "val_size": one((LLAMA_FACTORY,), "dataset.validationSplitPercent", "in percent: 0.1 is 10"),
        "dataset_text_field": one((TRL,), "dataset.columns", "write {text: NAME}"),
        "system_prompt": one((AXOLOTL,), "dataset.systemMessage"),
        "default_system_message": one((AXOLOTL,), "dataset.systemMessage"),
        "default_system": one((LLAMA_FACTORY,), "dataset.systemMessage"),
        "template": one((LLAMA_FACTORY,), "model.chatTemplate", TEMPLATE),
        "excess_length_strategy": one((AXOLOTL,), "dataset.longRows", "drop is Skip, truncate is Truncate"),
        "train_on_inputs": one((AXOLOTL,), "dataset.trainOn", EVERYTHING),
        "train_on_prompt": one((LLAMA_FACTORY,), "dataset.trainOn", EVERYTHING),
        "completion_only_loss": one((TRL,), "dataset.trainOn", ANSWERS),
        "assistant_only_loss": one((TRL,), "dataset.trainOn", ANSWERS),
        "mask_history": one(
            (LLAMA_FACTORY,), "objective", "Instruction trains the last answer of each row, Chat every answer"
        ),
        # objective
        "stage": one((LLAMA_FACTORY,), "objective", "sft is Instruction or Chat, pt is DomainAdaptation"),
        "rl": one((AXOLOTL,), "objective", "dpo is DPO, kto is KTO, grpo is RLHF"),
        "rl_beta": one((AXOLOTL,), "dpo.beta", "with objective KTO, kto.beta"),
        "teacher_model_name_or_path": one((TRL,), "distillation.teacher.uri", "write hf://owner/name"),
        "teacher_model_revision": one((TRL,), "distillation.teacher.revision"),
        "dpo_beta": one((AXOLOTL,), "dpo.beta"),
        "pref_beta": one((LLAMA_FACTORY,), "dpo.beta", "with objective KTO, kto.beta"),
        "pref_loss": one((LLAMA_FACTORY,), "dpo.lossType"),
        "pref_ftx": one((LLAMA_FACTORY,), "dpo.sftWeight"),
        "rpo_alpha": one((AXOLOTL, FORMER_TRL), "dpo.sftWeight"),
        "loss_weights": one((TRL,), "dpo.sftWeight", "the weight of loss sft, next to 1 for that of the pair"),
        "dpo_loss_type": one((AXOLOTL,), "dpo.lossType", "a list there; sft in it is dpo.sftWeight"),
        "dpo_loss_weights": one((AXOLOTL,), "dpo.sftWeight", "the weight of loss sft, next to 1 for that of the pair"),
        "dpo_label_smoothing": one((AXOLOTL, LLAMA_FACTORY), "dpo.labelSmoothing", "with lossType robust"),
        "kto_desirable_weight": one((AXOLOTL,), "kto.desirableWeight"),
        "kto_undesirable_weight": one((AXOLOTL,), "kto.undesirableWeight"),
        "kto_chosen_weight": one((LLAMA_FACTORY,), "kto.desirableWeight"),
        "kto_rejected_weight": one((LLAMA_FACTORY,), "kto.undesirableWeight"),
        # method and adapter
        "adapter": one((AXOLOTL,), "tuning.method", "qlora is QLoRA, lora is LoRA"),
        "finetuning_type": one((LLAMA_FACTORY,), "tuning.method", "lora is LoRA, full is Full"),
        "use_peft": one((TRL,), "tuning.method", "true is LoRA or QLoRA, false is Full"),
        "load_in_4bit": one((AXOLOTL, TRL), "tuning.method", "true is QLoRA"),
        "load_in_8bit": one((AXOLOTL, TRL), "tuning.method", "there is no base in 8 bits: use QLoRA or LoRA"),
        "quantization_bit": one((LLAMA_FACTORY,), "tuning.method", "4 is QLoRA"),
        "double_quantization": one((LLAMA_FACTORY,), "tuning.quantization.doubleQuant"),
        "use_bnb_nested_quant": one((TRL,), "tuning.quantization.doubleQuant"),
        "r": one((PEFT,), f"{lora}.rank"),
        "lora_r": one((AXOLOTL, TRL), f"{lora}.rank"),
        "lora_rank": one((LLAMA_FACTORY,), f"{lora}.rank"),
        "lora_alpha": one((AXOLOTL, LLAMA_FACTORY, TRL, PEFT), f"{lora}.alpha"),
        "lora_rank_pattern": one((AXOLOTL,), f"{lora}.rankPattern"),
        "lora_alpha_pattern": one((AXOLOTL,), f"{lora}.alphaPattern"),
        "lora_dropout": one((AXOLOTL, LLAMA_FACTORY, TRL, PEFT), f"{lora}.dropout"),
        "lora_target_modules": one((AXOLOTL, TRL), f"{lora}.targetModules"),
        "lora_target": one((LLAMA_FACTORY,), f"{lora}.targetModules", "a list; without it, every linear layer"),
        "lora_target_linear": one((AXOLOTL,), "", "every linear layer gets an adapter by default: remove it"),
        "lora_modules_to_save": one((AXOLOTL, TRL), f"{lora}.modulesToSave"),
        "additional_target": one((LLAMA_FACTORY,), f"{lora}.modulesToSave", "a list"),
        "peft_use_rslora": one((AXOLOTL,), f"{lora}.useRslora"),
        "peft_use_dora": one((AXOLOTL,), f"{lora}.useDora"),
        "pissa_init": one((LLAMA_FACTORY,), f"{lora}.initLoraWeights", "true is PiSSA"),
        "peft_init_lora_weights": one((AXOLOTL,), f"{lora}.initLoraWeights"),
        "lora_model_dir": one((AXOLOTL,), "tuning.initialAdapter.uri"),
        "adapter_name_or_path": one((LLAMA_FACTORY,), "tuning.initialAdapter.uri"),
        # training arguments
        "num_epochs": one((AXOLOTL,), f"{hyper}.numTrainEpochs"),
        "n_epochs": one((OPENAI,), f"{hyper}.numTrainEpochs"),
        "learning_rate_multiplier": one(
            (OPENAI,), f"{hyper}.learningRate", "a rate and not a factor; status.resolved has the default"
        ),
        "lr_scheduler": one((AXOLOTL,), f"{hyper}.lrSchedulerType"),
        "optimizer": one((AXOLOTL,), f"{hyper}.optim"),
        "warmup_ratio": one((AXOLOTL, FORMER_TRANSFORMERS), f"{hyper}.warmupSteps", "below 1 it is a ratio"),
        "micro_batch_size": one((AXOLOTL,), f"{hyper}.perDeviceTrainBatchSize"),
        "batch_size": one((AXOLOTL, OPENAI), "", BATCH),
        "eval_batch_size": one((AXOLOTL,), "", "the training's batch size is used for evaluation: remove it"),
        "per_device_eval_batch_size": one(
            (TRANSFORMERS,), "", "the training's batch size is used for evaluation: remove it"
        ),
        "sequence_len": one((AXOLOTL,), f"{hyper}.maxLength"),
        "cutoff_len": one((LLAMA_FACTORY,), f"{hyper}.maxLength"),
        "max_seq_length": one((FORMER_TRL,), f"{hyper}.maxLength"),
        "sample_packing": one((AXOLOTL,), f"{hyper}.packing", "true is Always, false is Never"),
        "neat_packing": one((LLAMA_FACTORY,), f"{hyper}.packing", "true is Always, false is Never"),
        "bf16": one((AXOLOTL, TRANSFORMERS), f"{hyper}.precision", "true is BF16"),
        "fp16": one((AXOLOTL, TRANSFORMERS), f"{hyper}.precision", "true is FP16"),
        "pure_bf16": one((LLAMA_FACTORY,), f"{hyper}.precision", "true is BF16"),
        "flash_attention": one((AXOLOTL,), f"{hyper}.attention", "true is FlashAttention"),
        "sdp_attention": one((AXOLOTL,), f"{hyper}.attention", "true is SDPA"),
        "flash_attn": one((LLAMA_FACTORY,), f"{hyper}.attention", "fa2 is FlashAttention, sdpa is SDPA"),
        "attn_implementation": one((TRL,), f"{hyper}.attention"),
        "activation_checkpointing": one((TRANSFORMERS,), f"{hyper}.gradientCheckpointing"),
        "disable_gradient_checkpointing": one(
            (LLAMA_FACTORY,), f"{hyper}.gradientCheckpointing", "with the opposite value"
        ),
        "use_liger_kernel": one((TRANSFORMERS,), f"{hyper}.fusedKernels", "true is Auto, false is Never"),
        "enable_liger_kernel": one((LLAMA_FACTORY,), f"{hyper}.fusedKernels", "true is Auto, false is Never"),
        "cosine_min_lr_ratio": one((AXOLOTL,), f"{hyper}.minLrRatio", "with lrSchedulerType cosine_with_min_lr"),
        "lr_scheduler_kwargs": one(
            (AXOLOTL, TRANSFORMERS), f"{hyper}.minLrRatio", "min_lr_rate; num_decay_steps is decaySteps"
        ),
        # evaluation, checkpoints, output
        "eval_steps": one((AXOLOTL, TRANSFORMERS), "evaluation.steps"),
        "eval_interval": one((OPENAI,), "evaluation.steps"),
        "evals_per_epoch": one((AXOLOTL,), "evaluation.steps", "a number of steps; default: ten evaluations"),
        "eval_strategy": one((AXOLOTL, TRANSFORMERS), "evaluation.steps", "held-out rows are evaluated by steps"),
        "early_stopping_patience": one((AXOLOTL,), "earlyStopping.patience"),
        "early_stopping_steps": one((LLAMA_FACTORY,), "earlyStopping.patience"),
        "load_best_model_at_end": one((AXOLOTL, TRANSFORMERS), "", "the best weights are always published: remove it"),
        "save_steps": one((AXOLOTL, TRANSFORMERS), "checkpoint.steps"),
        "save_strategy": one((AXOLOTL, TRANSFORMERS), "checkpoint.steps", "checkpoints are saved by steps"),
        "resume_from_checkpoint": one(
            (AXOLOTL, TRANSFORMERS), "checkpoint.resumePolicy", "Auto, the default, resumes by itself"
        ),
        "output_dir": one((AXOLOTL, TRANSFORMERS), "output.uri", "write s3://bucket/path"),
        "export_dir": one((LLAMA_FACTORY,), "output.merge", "the merged model is under output.uri"),
        "merge_lora": one((AXOLOTL,), "output.merge", "true is BF16, FP16 or FP32"),
        "push_to_hub": one((TRANSFORMERS,), "output.hub", "name the repository, as owner/name, in output.hub.repo"),
        "hub_model_id": one((AXOLOTL, TRANSFORMERS), "output.hub.repo"),
        "suffix": one((OPENAI,), "", "the name of the job is metadata.name: remove it"),
        # trackers and several GPUs
        "report_to": one((TRANSFORMERS,), "tracking", "set tracking.mlflow, tracking.wandb or tracking.tensorboard"),
        "logging_steps": one((AXOLOTL, TRANSFORMERS), "", EVERY),
        "wandb_project": one((AXOLOTL,), "tracking.wandb.project"),
        "wandb_entity": one((AXOLOTL,), "tracking.wandb.entity"),
        "mlflow_tracking_uri": one((AXOLOTL,), "tracking.mlflow.endpoint"),
        "mlflow_experiment_name": one((AXOLOTL,), "tracking.mlflow.experiment"),
        "use_tensorboard": one((AXOLOTL,), "tracking.tensorboard"),
        "deepspeed": one((AXOLOTL, TRANSFORMERS), "", GPUS),
        "fsdp": one((AXOLOTL, TRANSFORMERS), "", GPUS),
    }


FOREIGN_NAMES: Mapping[str, ForeignName] = _table()
"""By the name in the other projects. Names that are a field's own in snake case, such as `learning_rate`, are not here:
they are found by their spelling."""


def plain_name(word: str) -> str:
    """Return the word without case and separators, in which `micro_batch_size` and `microBatchSize` are the same."""
    return re.sub(r"[^a-z0-9]", "", word.lower())


_BY_PLAIN = {plain_name(name): name for name in FOREIGN_NAMES}


def foreign_field(word: str) -> str:
    """Return the path of the field that a name of another project is; "" if there is none."""
    name = _BY_PLAIN.get(plain_name(word))
    return FOREIGN_NAMES[name].field if name else ""


def explain_foreign(word: str) -> str:
    """Return what a name of another project is here; "" if it is not known."""
    name = _BY_PLAIN.get(plain_name(word))
    if name is None:
        return ""
    foreign = FOREIGN_NAMES[name]
    subject = f"{_owner(foreign.projects)} {name}"
    if not foreign.field:
        return f"{subject}: {foreign.advice}"
    return f"{subject} is {foreign.field}" + (f" ({foreign.advice})" if foreign.advice else "")


def _owner(projects: tuple[str, ...]) -> str:
    """Return `axolotl's` or `axolotl's and TRL's`."""
    owners = [f"{project}'" if project.endswith("s") else f"{project}'s" for project in projects]
    return owners[0] if len(owners) == 1 else f"{', '.join(owners[:-1])} and {owners[-1]}"
