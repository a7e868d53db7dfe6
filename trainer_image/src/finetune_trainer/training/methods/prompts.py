"""Prompts that the model answers in the training: as a dataset, their order, their end tokens, the sampling, and a
heartbeat for each token."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import Sampler
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from trl.trainer.utils import RepeatSampler
from typing_extensions import override

from finetune_api.handoff import ExitCode
from finetune_trainer.distributed.sharding import is_sharded
from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.models.files.context import COUNTS_PADDING
from finetune_trainer.peft_base import find_base
from finetune_trainer.tokenization.samples import EncodedPrompt
from finetune_trainer.training.methods.loop import LoopTrainer
from finetune_trainer.training.methods.parts import LoopContext

CHECKED_TOKENS = 32


class PromptTrainer(LoopTrainer):
    """A mixin in front of TRL's trainers whose model answers prompts: the prompts are ours."""

    @override
    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler[int]:
        """Continue the order of the prompts after a checkpoint."""
        sampler: Sampler[int] = continue_order(super()._get_train_sampler(dataset), self.state.global_step)
        return sampler

    @override
    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Return the prompts as preflight tokenised them; TRL would render and tokenise messages again."""
        return [list(ids) for ids in prompts], None, {}


def set_end_tokens(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, stop_id: int) -> set[int]:
    """Set and return the tokens that end an answer: the model's and the chat template's; TRL reads them."""
    known = model.generation_config.eos_token_id
    ends = {stop_id, *([] if known is None else [known] if isinstance(known, int) else known)}
    model.generation_config.eos_token_id = sorted(ends)
    if tokenizer.eos_token is None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(stop_id)
    return ends | {tokenizer.eos_token_id}


def require_context(model: PreTrainedModel | PeftModel, longest_prompt: int, longest_answer: int, block: str) -> None:
    """Raise if the longest prompt leaves no room for an answer in the context; `block` is that of
    `maxCompletionLength`."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = longest_prompt + longest_answer
    if context and longest > context:
        raise InvalidConfig(
            f"the longest prompt with {block}.maxCompletionLength has {longest} tokens and the model's context "
            f"{context}: lower {block}.maxCompletionLength or hyperparameters.maxLength"
        )


def precision_of(arguments: TrainingArguments) -> str:
    """Return the number format of the computation, as `hyperparameters.precision` names it."""
    return "BF16" if arguments.bf16 else "FP16" if arguments.fp16 else "FP32"


def require_finite_logits(model: PreTrainedModel | PeftModel, ids: Sequence[int], precision: str) -> None:
    """Raise if the first tokens of a prompt have logits that cannot be sampled from.

    On a GPU, sampling from them ends in an error that does not name the cause, and leaves the GPU unusable.
    """
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids[:CHECKED_TOKENS]], device=model.device), use_cache=False).logits
    require_probabilities(model, torch.log_softmax(logits.float(), -1), "spec.model", precision)


def require_probabilities(
    model: PreTrainedModel | PeftModel, log_probs: torch.Tensor, field: str, precision: str
) -> None:
    """Raise if log-probabilities are not a number, which follows from logits that are not finite, except for those of
    minus infinity: such a token is never sampled."""
    if not log_probs.isnan().any():
        return
    kind = type(find_base(model)).__name__
    fix = "" if precision == "FP32" else "set hyperparameters.precision FP32, or BF16 on a GPU that has it, or "
    raise TrainerError(
        ExitCode.DIVERGED,
        f"the logits of {field} ({kind}) in {precision} are not finite before the first step: {fix}check the model's "
        "files",
    )


def to_prompt_dataset(samples: Sequence[EncodedPrompt], at_least: int = 0) -> Dataset:
    """Return the prompts' ids and row numbers, repeated until a step is full: TRL drops an incomplete batch."""
    rows = list(range(len(samples))) * max(1, -(-at_least // len(samples)))
    return Dataset.from_dict({"prompt": [list(samples[row].prompt_ids) for row in rows], "row": rows})


def continue_order(sampler: RepeatSampler, step: int) -> RepeatSampler:
    """Return TRL's sampler as it is after `step` steps: it draws an order for each pass over the prompts, and a resumed
    run would train those of the first pass again."""
    for _ in range(step // (sampler.num_samples // sampler.batch_size)):
        torch.randperm(sampler.num_samples, generator=sampler.generator)
    return sampler


@contextmanager
def sampling_by_probability(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Sample without what the model's `generation_config.json` sets and TRL does not, for example `min_p`: the loss is
    computed from all probabilities."""
    base = find_base(model)
    own, base.generation_config = base.generation_config, GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own


def leave_out_padding(model: PreTrainedModel | PeftModel) -> None:
    """Count positions from the first token of each prompt, as sampling does. TRL puts padding before shorter prompts
    and gives the passes of its loss no positions."""
    base = find_base(model)
    if base.config.get_text_config().model_type in COUNTS_PADDING:
        base.base_model.register_forward_pre_hook(_add_positions, with_kwargs=True)


def _add_positions(
    _: torch.nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    mask = options.get("attention_mask")
    if options.get("position_ids") is None and mask is not None:
        options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return arguments, options


def beat_per_token(model: PreTrainedModel | PeftModel, loop: LoopContext) -> None:
    """Count a heartbeat before every forward pass, that is for each token while sampling, and raise after SIGTERM.

    FSDP would take a pass that its own hook has begun for unfinished, and keep what it has gathered.
    """
    base = find_base(model)
    on_work = loop.on_work if is_sharded(model) else loop.on_own_work
    base.register_forward_pre_hook(lambda *_: on_work(), prepend=True)
