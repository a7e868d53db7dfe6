"""Reward models, which give a text one score: loading, scoring, padding, and their head."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

import torch
from peft import PeftModel
from tokenizers import Tokenizer
from torch.distributed.tensor import DTensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune_api.handoff import ExitCode
from finetune_trainer.data.rows import BadRow, DataFormat, Message, Source, UnpairedRow
from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.models.loading import load_plain
from finetune_trainer.rewards.completion import Completion
from finetune_trainer.rewards.fetch import SCORE, RewardFolders
from finetune_trainer.tokenization.labeler import Labeler, load_labeler
from finetune_trainer.tokenization.samples import EncodedLabelled, EncodedPair

SCORED_AT_ONCE = 8
UNLIMITED = 1 << 30
WRITTEN = Source("sampled answers", 1)


class RewardModel:
    """Scores answers as in the reward model's training: with its own tokenizer and template."""

    def __init__(self, model: PreTrainedModel | PeftModel, labeler: Labeler, on_work: Callable[[], None]) -> None:
        self._model = model.eval()
        self._labeler = labeler
        self._stop_ids = labeler.stop_ids()
        self._plain = Tokenizer.from_str(labeler.tokenizer.to_str())
        self._plain.encode_special_tokens = True  # a special token that an answer spells out stays text
        self._on_work = on_work
        keep_score_in_fp32(model)
        config = model.config.get_text_config()
        self._longest = getattr(config, "max_position_embeddings", None) or UNLIMITED

    def __call__(self, completions: Sequence[Completion]) -> list[float]:
        """Return one score per answer."""
        return self.score([self.encode(completion) for completion in completions])

    def encode(self, completion: Completion) -> list[int]:
        """Tokenise prompt and answer as in training; an answer that was cut off has no end token."""
        ids = self._as_row(completion)
        if ids is None:
            ids = (
                self._prompt_ids(completion)
                + self._plain.encode(completion.text, add_special_tokens=False).ids
                + self._stop_ids
            )
        if not completion.ended and ids[-len(self._stop_ids) :] == self._stop_ids:
            ids = ids[: -len(self._stop_ids)]
        return ids[-self._longest :]

    def _as_row(self, completion: Completion) -> list[int] | None:
        """Tokenise as a training row; None for an answer that no row may have, for example an empty one."""
        answer = [Message(role="assistant", content=completion.text)]
        row = UnpairedRow(completion.prompt, answer, True, WRITTEN, DataFormat.UNPAIRED, completion.tools)
        encoded = self._labeler.encode(row, "KTO", UNLIMITED)
        if isinstance(encoded, BadRow):
            return None
        (sample,) = encoded
        return sample.prompt_ids + sample.completion_ids if isinstance(sample, EncodedLabelled) else None

    def _prompt_ids(self, completion: Completion) -> list[int]:
        try:
            return self._labeler.render_prompt(completion.prompt, completion.tools)[1]
        except BadRow as bad:
            message = f"the reward model's chat template cannot render a prompt of the dataset: {bad.detail}"
            raise InvalidConfig(message) from bad

    def score(self, texts: Sequence[list[int]]) -> list[float]:
        """Return one score per tokenised text."""
        return score_texts(self._model, texts, self._on_work)


def score_texts(
    model: PreTrainedModel | PeftModel, texts: Sequence[list[int]], on_work: Callable[[], None]
) -> list[float]:
    """Return the model's score of each text: its output at the last token that is not padding."""
    scores: list[float] = []
    model.eval()
    for start in range(0, len(texts), SCORED_AT_ONCE):
        on_work()
        scores += _score_batch(model, texts[start : start + SCORED_AT_ONCE])
    return scores


def pair_texts(pair: EncodedPair) -> tuple[list[int], list[int]]:
    """Return the prompt with the chosen and with the rejected answer."""
    return pair.prompt_ids + pair.chosen_ids, pair.prompt_ids + pair.rejected_ids


def load_reward_model(
    folders: RewardFolders, dtype: torch.dtype, device: torch.device, on_work: Callable[[], None]
) -> RewardModel:
    """Load the reward model from its folders."""
    labeler = load_labeler(folders.tokenizer, folders.uri)
    model = load_plain(folders.model, dtype, device, writes_text=False)
    if folders.adapter is not None:
        model = PeftModel.from_pretrained(model, str(folders.adapter), torch_device=str(device))
    return RewardModel(model, labeler, on_work)


def _score_batch(model: PreTrainedModel | PeftModel, texts: Sequence[list[int]]) -> list[float]:
    """Score a few texts at once, padded on the right with a token that ends none of them."""
    config = model.config.get_text_config()
    configured = config.pad_token_id
    pad = choose_pad(configured, range(config.vocab_size), {ids[-1] for ids in texts})
    width = max(map(len, texts))
    inputs = torch.tensor([ids + [pad] * (width - len(ids)) for ids in texts], device=model.device)
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in texts], device=model.device)
    config.pad_token_id = pad
    with torch.no_grad():
        logits = model(input_ids=inputs, attention_mask=mask, use_cache=False).logits
    config.pad_token_id = configured
    scores: list[float] = logits[:, 0].float().tolist()
    if not all(map(math.isfinite, scores)):
        raise TrainerError(ExitCode.DIVERGED, "the reward model returned a score that is not finite")
    return scores


def choose_pad(configured: int | None, candidates: Iterable[int], ends: Collection[int]) -> int:
    """Return the padding token: the base model's own, so that scores are the same wherever it is loaded, else one that
    ends no text, because the score is read at the last token that is not padding."""
    if configured is not None and configured >= 0:
        return configured
    return next((token for token in candidates if token not in ends), 0)


def pad_token(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> str:
    """Choose the padding token among the tokenizer's special tokens; return its text, as TRL requires."""
    configured = model.config.get_text_config().pad_token_id
    own = [] if tokenizer.pad_token_id is None else [tokenizer.pad_token_id]
    special = [*own, *sorted(tokenizer.get_added_vocab().values()), *sorted(tokenizer.all_special_ids)]
    return str(tokenizer.convert_ids_to_tokens(choose_pad(configured, special, ends)))


def keep_score_in_fp32(model: torch.nn.Module) -> None:
    """Keep the head in FP32: in BF16, close scores become equal and small updates are lost. A shard keeps its format,
    which FSDP knows."""
    for name, module in model.named_modules():
        if SCORE in name.split(".") and isinstance(module, torch.nn.Linear):
            if not isinstance(module.weight, DTensor):
                module.float()
            setattr(module, "forward", partial(_forward_in_fp32, module))  # noqa: B010 - of this instance alone


def _forward_in_fp32(head: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    with torch.autocast(hidden.device.type, enabled=False):
        # Of shards in FP32, a forward pass may gather the weights in BF16.
        return functional.linear(hidden.float(), head.weight.float(), head.bias)
