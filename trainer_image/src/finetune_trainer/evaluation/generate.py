"""Greedy answers of a model to the job's prompts, for the report and the gate."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from finetune_api.dataset.codes import RepairCode
from finetune_trainer.data.rows import BadRow, Message
from finetune_trainer.distributed.world import ALONE, World
from finetune_trainer.errors import InvalidConfig
from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.tokenization.samples import Encoded

COUNTED_ANSWERS = 4096
"""Answers whose last token is counted."""


def answer_all(
    model: PreTrainedModel,
    labeler: Labeler,
    prompts: Sequence[Sequence[Message]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    on_token: Callable[[], None],
    world: World = ALONE,
    is_stopped: Callable[[], bool] = lambda: False,
    on_answer: Callable[[int, int], None] = lambda _number, _count: None,
) -> list[str]:
    """Return one greedy answer per prompt, which is a list of turns; the processes of `world` share the prompts.
    `on_answer` gets the number of this process's answers so far, and of all of them.

    Those of a sharded model gather its layers together for each token, until the last one has its answer. Then none may
    leave, and `is_stopped` ends the answers early instead.
    """
    model.eval()
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=next(iter(stop_ids), 0),  # one answer at a time needs no padding
        use_cache=True,
    )
    own, share = list[str](), list(world.shard(prompts))
    for prompt, _ in share:
        on_answer(len(own), len(share))
        with torch.no_grad():
            own.append(_answer(model, labeler, prompt, settings, EachToken(on_token, is_stopped)))
    return world.gather_shards(own, len(prompts))


class EachToken(StoppingCriteria):  # type: ignore[misc]  # the library has no types
    """Calls back for each token; an exception of the callback ends the generation, and `is_stopped` the answers."""

    def __init__(self, on_token: Callable[[], None], is_stopped: Callable[[], bool] = lambda: False) -> None:
        self._on_token, self._is_stopped = on_token, is_stopped

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """Call back, and return whether the rows are done."""
        self._on_token()
        return torch.full((len(input_ids),), self._is_stopped(), dtype=torch.bool, device=input_ids.device)


def _answer(
    model: PreTrainedModel,
    labeler: Labeler,
    prompt: Sequence[Message],
    settings: GenerationConfig,
    each_token: EachToken,
) -> str:
    try:
        _, ids = labeler.render_prompt(prompt)
    except BadRow as bad:
        raise InvalidConfig(f"evaluation.prompts: {bad.detail}") from bad
    inputs = torch.tensor([ids], device=model.device)
    output = model.generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        generation_config=settings,
        stopping_criteria=StoppingCriteriaList([each_token]),
    )
    return labeler.tokenizer.decode(output[0, len(ids) :].tolist(), skip_special_tokens=True).strip()


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
