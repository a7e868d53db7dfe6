"""Reward models from pairs of answers: the preferred answer learns the higher score."""

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from finetune_trainer.evaluation.run_record import ScoredPair
from finetune_trainer.rewards.scorer import keep_score_in_fp32, pad_token, pair_texts, score_texts
from finetune_trainer.tokenization.sample_table import as_samples
from finetune_trainer.tokenization.samples import EncodedPair
from finetune_trainer.training.methods.loop import LoopTrainer
from finetune_trainer.training.methods.parts import TrainerParts


class RewardModelTrainer(LoopTrainer, RewardTrainer):  # type: ignore[misc]  # the library has no types
    """TRL's trainer with loss, margin and accuracy of the held-out pairs; all pairs have the same weight."""

    def _weight(self, inputs: dict[str, torch.Tensor]) -> int:
        return len(inputs["input_ids"]) // 2

    def _figures(self, inputs: dict[str, torch.Tensor]) -> dict[str, tuple[float, int]]:
        pairs = self._weight(inputs)
        return {
            "reward_margin": (self._last_figure("margin"), pairs),
            "reward_accuracy": (self._last_figure("accuracy"), pairs),
        }

    def show(self, pairs: Sequence[EncodedPair]) -> list[ScoredPair]:
        """Return the pairs as text, each answer with its score."""
        texts = [ids for pair in pairs for ids in pair_texts(pair)]
        scores = score_texts(self.model, texts, self._loop.on_work)
        return [
            ScoredPair(
                self.processing_class.decode(pair.prompt_ids).strip(),
                self._text(pair.chosen_ids),
                self._text(pair.rejected_ids),
                *two,
            )
            for pair, two in zip(pairs, zip(scores[::2], scores[1::2], strict=True), strict=True)
        ]

    def _text(self, ids: list[int]) -> str:
        return str(self.processing_class.decode(ids, skip_special_tokens=True)).strip()


def build_reward_trainer(parts: TrainerParts) -> RewardModelTrainer:
    """Return the trainer, ready for `evaluate()`, `train()` and `measure()`."""
    keep_score_in_fp32(parts.model)
    answers = as_samples(parts.train)
    ends = {int(ids[-1]) for name in ("chosen_ids", "rejected_ids") for ids in answers.ids(name)}
    parts.tokenizer.pad_token = pad_token(parts.model, parts.tokenizer, ends)
    arguments = RewardConfig(**parts.library_settings(), disable_dropout=False, max_length=None)
    return RewardModelTrainer(**parts.trainer_arguments(to_text_dataset(parts.train), to_text_dataset), args=arguments)


def to_text_dataset(samples: Sequence[EncodedPair]) -> Dataset:
    """Return the pairs as TRL's two columns of tokenised texts, each with its prompt."""
    table = as_samples(samples)
    prompts = table.ids("prompt_ids")
    return Dataset.from_dict(
        {
            name: [np.concatenate(pair) for pair in zip(prompts, table.ids(name), strict=True)]
            for name in ("chosen_ids", "rejected_ids")
        }
    )
