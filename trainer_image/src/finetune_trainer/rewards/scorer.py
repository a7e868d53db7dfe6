"""Models that give a text one score: the head that is trained, and what objective RewardModel publishes as a scorer."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

import torch
from peft import PeftModel
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune_api.handoff import ExitCode
from finetune_trainer.data.rows import BadRow, DataFormat, Message, Source, UnpairedRow
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.loading import load_plain
from finetune_trainer.rewards.computed import Completion
from finetune_trainer.rewards.fetch import SCORE, RewardFolders
from finetune_trainer.tokenization.labeler import Labeler, load_labeler
from finetune_trainer.tokenization.samples import EncodedLabelled, EncodedPair

SCORED_AT_ONCE = 8
UNLIMITED = 1 << 30
WRITTEN = Source("sampled answers", 1)


class RewardModel:
    """Scores answers as the model was trained to: with its own tokenizer and template, whatever wrote them."""

    def __init__(self, model: PreTrainedModel | PeftModel, labeler: Labeler, on_work: Callable[[], None]) -> None:
        self._model = model.eval()
        self._labeler = labeler
        self._stop_ids = labeler.stop_ids()
        self._plain = Tokenizer.from_str(labeler.tokenizer.to_str())
        self._plain.encode_special_tokens = True  # a control token that an answer spells out controls nothing
        self._on_work = on_work
        keep_score_in_fp32(model)
        config = model.config.get_text_config()
        self._longest = getattr(config, "max_position_embeddings", None) or UNLIMITED

    def __call__(self, completions: Sequence[Completion]) -> list[float]:
        """One score for each answer."""
        return self.score([self.encode(completion) for completion in completions])

    def encode(self, completion: Completion) -> list[int]:
        """The prompt and its answer as in training; an answer that was cut off lacks what ends one."""
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
        """As the labeler renders a row; None for what no row may hold, an empty answer for example."""
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
            message = f"the reward model's chat template cannot show a prompt of the dataset: {bad.detail}"
            raise TrainerError(ExitCode.INVALID_CONFIG, message) from bad

    def score(self, texts: Sequence[list[int]]) -> list[float]:
        """One score for each tokenised text."""
        return score_texts(self._model, texts, self._on_work)


def score_texts(
    model: PreTrainedModel | PeftModel, texts: Sequence[list[int]], on_work: Callable[[], None]
) -> list[float]:
    """The model's score of each text, which is its output at the last token that does not pad."""
    scores: list[float] = []
    model.eval()
    for start in range(0, len(texts), SCORED_AT_ONCE):
        on_work()
        scores += _score_batch(model, texts[start : start + SCORED_AT_ONCE])
    return scores


def pair_texts(pair: EncodedPair) -> tuple[list[int], list[int]]:
    """The prompt with the chosen and with the rejected answer."""
    return pair.prompt_ids + pair.chosen_ids, pair.prompt_ids + pair.rejected_ids


def load_reward_model(
    folders: RewardFolders, dtype: torch.dtype, device: torch.device, on_work: Callable[[], None]
) -> RewardModel:
    """The scorer from its folders, beside whatever model is being trained."""
    labeler = load_labeler(folders.tokenizer, folders.uri)
    model = load_plain(folders.model, dtype, device, writes_text=False)
    if folders.adapter is not None:
        model = PeftModel.from_pretrained(model, str(folders.adapter))
    return RewardModel(model, labeler, on_work)


def _score_batch(model: PreTrainedModel | PeftModel, texts: Sequence[list[int]]) -> list[float]:
    """Scores of a few texts at once, padded on the right with a token that ends none of them."""
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
        raise TrainerError(ExitCode.DIVERGED, "the reward model gives a score that is not finite")
    return scores


def choose_pad(configured: int | None, candidates: Iterable[int], ends: Collection[int]) -> int:
    """The token to pad with: the base model's own, so that it scores alike wherever it is loaded, else one that ends
    no text, because the score is taken at the last token that is no padding."""
    if configured is not None and configured >= 0:
        return configured
    return next((token for token in candidates if token not in ends), 0)


def pad_token(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> str:
    """`choose_pad` among the tokenizer's special tokens, as TRL wants it: by its text."""
    configured = model.config.get_text_config().pad_token_id
    own = [] if tokenizer.pad_token_id is None else [tokenizer.pad_token_id]
    special = [*own, *sorted(tokenizer.get_added_vocab().values()), *sorted(tokenizer.all_special_ids)]
    return str(tokenizer.convert_ids_to_tokens(choose_pad(configured, special, ends)))


def keep_score_in_fp32(model: torch.nn.Module) -> None:
    """The head in FP32 whatever surrounds it: in BF16 near scores become equal, and its small updates are lost."""
    for name, module in model.named_modules():
        if SCORE in name.split(".") and isinstance(module, torch.nn.Linear):
            module.float()
            setattr(module, "forward", partial(_forward_in_fp32, module))  # noqa: B010 - of this instance alone


def _forward_in_fp32(head: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    with torch.autocast(hidden.device.type, enabled=False):
        return functional.linear(hidden.float(), head.weight, head.bias)
