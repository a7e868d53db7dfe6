"""A model's choices in multiple-choice questions: the continuation with the highest log-probability per character."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from finetune_trainer.data.ability import Question
from finetune_trainer.distributed.world import ALONE, World
from finetune_trainer.evaluation.ability import BATCH_TOKENS
from finetune_trainer.evaluation.logprobs import logits_at

CONTEXT = 2048
"""Tokens of a question and a choice that are read, the last ones; fewer if the model's context is shorter."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """A question with one of its choices, in tokens; the choice begins at `first`."""

    ids: list[int]
    first: int
    characters: int


def answer_questions(
    model: PreTrainedModel | PeftModel,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    on_question: Callable[[int], None],
    world: World = ALONE,
) -> list[bool]:
    """Return for each question whether the model prefers the correct choice; the model is left in evaluation mode.

    The processes of `world` share the batches, all in the same number, because those of a sharded model read them
    together; `on_question` gets how many questions are answered, or begun.

    Each choice is scored as a continuation of `Question: …` and `Answer:`, without a chat template, by its summed
    log-probability over its length in characters: `acc_norm` of the LM Evaluation Harness.
    """
    model.eval()
    context = min(CONTEXT, int(getattr(model.config, "max_position_embeddings", None) or CONTEXT))
    batches = [  # without their tokens, which are many for all questions at once
        (number, part)
        for number, question in enumerate(questions)
        for part in _batches(encode_choices(tokenizer, question, context))
    ]
    own = []
    for (number, part), _ in world.shard(batches):
        own.append(_score(model, encode_choices(tokenizer, questions[number], context)[part]))
        on_question(number + 1)
    scores: list[list[float]] = [[] for _ in questions]
    for (number, _), found in zip(batches, world.gather_shards(own, len(batches)), strict=True):
        scores[number] += found
    return [
        max(range(len(found)), key=found.__getitem__) == question.correct
        for question, found in zip(questions, scores, strict=True)
    ]


def encode_choices(tokenizer: Tokenizer, question: Question, context: int) -> list[Continuation]:
    """Return each choice as a continuation of the question, cut on the left to `context` tokens."""
    prompt = f"Question: {question.question}\nAnswer:"
    start, found = _encode(tokenizer, prompt), []
    for choice in question.choices:
        ids = _encode(tokenizer, f"{prompt} {choice}")
        away = max(len(ids) - context, 0)
        # A tokenizer may join the end of the prompt with the choice: the choice begins where the tokens differ.
        common = next((at for at, pair in enumerate(zip(start, ids, strict=False)) if pair[0] != pair[1]), len(start))
        found.append(Continuation(ids[away:], max(min(common, len(ids) - 1) - away, 1), len(choice)))
    return found


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids, with special tokens that the tokenizer puts before a text and none after it."""
    encoding = tokenizer.encode(text)
    ids, special = list(encoding.ids), list(encoding.special_tokens_mask)
    while special and special[-1]:
        ids.pop()
        special.pop()
    return ids


def _batches(choices: Sequence[Continuation]) -> Iterator[slice]:
    """Yield the parts of the choices that are read at once: at most `BATCH_TOKENS` tokens, at least one choice."""
    size = max(BATCH_TOKENS // max(len(one.ids) for one in choices), 1)
    for at in range(0, len(choices), size):
        yield slice(at, at + size)


def _score(model: PreTrainedModel | PeftModel, batch: Sequence[Continuation]) -> list[float]:
    """Return the log-probability of each choice per character, from rows padded on the right."""
    width, low = max(len(one.ids) for one in batch), min(one.first for one in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for at, one in enumerate(batch):
        ids[at, : len(one.ids)] = torch.tensor(one.ids)
        mask[at, : len(one.ids)] = 1
    log_probs = logits_at(model, ids, torch.arange(low - 1, width - 1), mask).float().log_softmax(-1).cpu()
    found = []
    for at, one in enumerate(batch):
        targets = ids[at, one.first : len(one.ids)]
        own = log_probs[at, one.first - low : len(one.ids) - low]
        found.append(float(own.gather(1, targets[:, None]).double().sum()) / one.characters)
    return found
