"""Greedy answers of a model to the job's prompts, for the report and the gate."""

import copy
import gc
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from finetune_api.dataset.codes import RepairCode
from finetune_trainer.data.rows import BadRow, Message
from finetune_trainer.distributed.world import ALONE, World
from finetune_trainer.errors import InvalidConfig, is_out_of_memory
from finetune_trainer.evaluation.logprobs import LARGEST_LEAK, LARGEST_LEAK_IN_16_BITS
from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.tokenization.samples import Encoded

COUNTED_ANSWERS = 4096
"""Answers whose last token is counted."""

logger = logging.getLogger(__name__)


def answer_all(
    model: PreTrainedModel,
    labeler: Labeler,
    prompts: Sequence[Sequence[Message]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    on_token: Callable[[], None],
    tokens_at_once: int = 0,
    world: World = ALONE,
    is_stopped: Callable[[], bool] = lambda: False,
    on_answer: Callable[[int, int], None] = lambda _number, _count: None,
) -> list[str]:
    """Return one greedy answer per prompt, which is a list of turns; the processes of `world` share the prompts.
    `on_answer` gets the number of this process's answers so far, and of all of them.

    As many prompts are answered at once as `tokens_at_once` holds, with their answers; once the GPU runs out of memory,
    half as many from then on. They are padded on the left, and answered one by one if that changes what the model
    reads.

    Those of a sharded model gather its layers together for each token, until the last one has its answer. Then none may
    leave, and `is_stopped` ends the answers early instead.
    """
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=next(iter(stop_ids), 0),
        use_cache=True,
    )
    batches = _Batches(model.eval(), labeler, settings, EachToken(on_token, is_stopped), world)
    ids = [_render(labeler, prompt) for prompt in prompts]
    by_length = sorted(range(len(ids)), key=lambda at: len(ids[at]))  # so that a batch has little padding
    if ids and tokens_at_once:
        batches.choose_rows(ids[by_length[0]], ids[by_length[-1]], tokens_at_once)
    own, share = list[str](), [ids[at] for at, _ in world.shard(by_length)]
    while len(own) < len(share):
        on_answer(len(own), len(share))
        own += batches.answer_next(share[len(own) :])
    found = world.gather_shards(own, len(by_length))
    return [answer for _, answer in sorted(zip(by_length, found, strict=True))]


class EachToken(StoppingCriteria):  # type: ignore[misc]  # the library has no types
    """Calls back for each token; an exception of the callback ends the generation, and `is_stopped` the answers."""

    def __init__(self, on_token: Callable[[], None], is_stopped: Callable[[], bool] = lambda: False) -> None:
        self._on_token, self._is_stopped = on_token, is_stopped

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """Call back, and return whether the rows are done."""
        self._on_token()
        return torch.full((len(input_ids),), self._is_stopped(), dtype=torch.bool, device=input_ids.device)


def _render(labeler: Labeler, prompt: Sequence[Message]) -> list[int]:
    try:
        return labeler.render_prompt(prompt)[1]
    except BadRow as bad:
        raise InvalidConfig(f"evaluation.prompts: {bad.detail}") from bad


@dataclass
class _Batches:
    """The prompts of a model, as tokens, of which `rows` are answered at once."""

    model: PreTrainedModel
    labeler: Labeler
    settings: GenerationConfig
    each_token: EachToken
    world: World
    rows: int = 1

    def choose_rows(self, shortest: list[int], longest: list[int], tokens_at_once: int) -> None:
        """Answer as many at once as the tokens hold, or one by one if padding changes what the model reads."""
        rows = tokens_at_once // (len(longest) + self.settings.max_new_tokens)
        if rows > 1 and self.world.any_rank(self._is_changed_by_padding(shortest, longest)):
            logger.warning("padding changes what %s reads: answering one prompt at a time", type(self.model).__name__)
            rows = 1
        self.rows = max(rows, 1)

    def answer_next(self, prompts: Sequence[list[int]]) -> list[str]:
        """Return the answers to the first prompts; none if they do not fit in memory, and the next call takes half."""
        batch = prompts[: self.rows]
        try:
            answers = self._generate(batch)
        except RuntimeError as error:
            # The processes of a sharded model generate together: one alone cannot begin again.
            if len(batch) == 1 or self.world.size > 1 or not is_out_of_memory(error):
                raise
        else:
            return [self.labeler.tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in answers]
        self.rows = len(batch) // 2
        logger.warning("out of GPU memory with %s answers at once: generating %s at once", len(batch), self.rows)
        gc.collect()  # outside the handler: its traceback keeps the tensors alive
        torch.cuda.empty_cache()
        return []

    def _generate(self, batch: Sequence[list[int]]) -> list[list[int]]:
        """Return the tokens of each answer, up to the first one that ends it."""
        inputs = self._pad_left(batch)
        with torch.no_grad():
            output = self.model.generate(
                **inputs, generation_config=self.settings, stopping_criteria=StoppingCriteriaList([self.each_token])
            )
        stops = set(self.settings.eos_token_id or ())
        answers = []
        for tokens in output[:, inputs["input_ids"].shape[1] :].tolist():
            length = next((at + 1 for at, token in enumerate(tokens) if token in stops), len(tokens))
            answers.append(tokens[:length])
        return answers

    def _pad_left(self, batch: Sequence[list[int]]) -> dict[str, torch.Tensor]:
        rows, ones = [torch.tensor(row) for row in batch], [torch.ones(len(row), dtype=torch.long) for row in batch]
        padding = self.settings.pad_token_id
        ids = pad_sequence(rows, batch_first=True, padding_value=padding, padding_side="left")
        mask = pad_sequence(ones, batch_first=True, padding_side="left")
        return {"input_ids": ids.to(self.model.device), "attention_mask": mask.to(self.model.device)}

    def _is_changed_by_padding(self, short: list[int], long: list[int]) -> bool:
        """Return whether the first logits after the short prompt differ if it is padded to the long one's length.

        Some architectures read padding in spite of the mask, for example in a recurrent state.
        """
        if len(short) == len(long):
            return False
        alone, padded = self._first_logits([short]), self._first_logits([short, long])
        largest = LARGEST_LEAK if self.model.dtype == torch.float32 else LARGEST_LEAK_IN_16_BITS
        return bool((alone - padded).abs().max() > largest * alone.abs().max())

    def _first_logits(self, batch: Sequence[list[int]]) -> torch.Tensor:
        """Return the logits of the first token after the first prompt of the batch."""
        first = copy.copy(self.settings)
        first.update(max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
        with torch.no_grad():
            logits: torch.Tensor = self.model.generate(**self._pad_left(batch), generation_config=first).logits[0][0]
        return logits.float()


def _is_whole(sample: Encoded) -> bool:
    return not sample.truncated and RepairCode.DOCUMENT_SPLIT not in sample.repairs


def stop_token_ids(model: PreTrainedModel, samples: Iterable[Encoded]) -> list[int]:
    """Return the tokens that end an answer: the model's own and the one that ends most of the first answers.

    Return none if neither is known: an answer then has the maximum length.
    """
    known = model.generation_config.eos_token_id
    ids = [] if known is None else [known] if isinstance(known, int) else list(known)
    whole = islice(filter(_is_whole, samples), COUNTED_ANSWERS)
    ends = Counter(next(label for label in reversed(sample.labels) if label >= 0) for sample in whole)
    ids += [token for token, _ in ends.most_common(1)]
    return sorted(set(ids))
