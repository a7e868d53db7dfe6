"""Greedy answers of a model to the job's questions, for the report."""

from collections import Counter
from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel

from finetune_api.handoff import ExitCode
from finetune_trainer.data.rows import BadRow, Message
from finetune_trainer.errors import TrainerError
from finetune_trainer.labels import Encoded, Labeler
from finetune_trainer.progress import Reporter
from finetune_trainer.stop import StopFlag


def answer_all(
    model: PreTrainedModel,
    labeler: Labeler,
    prompts: Sequence[str],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    reporter: Reporter,
    stop: StopFlag,
) -> list[str]:
    """One answer for each question, the likeliest token at every step."""
    model.eval()
    answers = []
    for prompt in prompts:
        stop.raise_if_set()
        reporter.beat()
        with torch.no_grad():
            answers.append(_answer(model, labeler, prompt, stop_ids, max_new_tokens))
    return answers


def _answer(model: PreTrainedModel, labeler: Labeler, prompt: str, stop_ids: Sequence[int], max_new_tokens: int) -> str:
    try:
        _, ids = labeler.render_prompt([Message(role="user", content=prompt)])
    except BadRow as bad:
        raise TrainerError(ExitCode.INVALID_CONFIG, f"evaluation.prompts: {bad.detail}") from bad
    inputs = torch.tensor([ids], device=model.device)
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids),
        pad_token_id=stop_ids[0],
        use_cache=True,
    )
    output = model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=settings)
    return labeler.tokenizer.decode(output[0, len(ids) :].tolist(), skip_special_tokens=True).strip()


def stop_token_ids(model: PreTrainedModel, samples: Sequence[Encoded]) -> list[int]:
    """What ends an answer: the model's own end tokens and the token that the training rows' answers end with."""
    known = model.generation_config.eos_token_id
    ids = [] if known is None else [known] if isinstance(known, int) else list(known)
    ends = Counter([label for label in sample.labels if label >= 0][-1] for sample in samples if not sample.truncated)
    ids += [token for token, _ in ends.most_common(1)]
    return sorted(set(ids)) or [0]
