"""An answer of a model, token by token, in a conversation."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from finetune_trainer.data.rows import BadRow, Message
from finetune_trainer.errors import InvalidConfig
from finetune_trainer.evaluation.generate import stop_token_ids
from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.tokenization.samples import Encoded

INCOMPLETE = "\ufffd"
"""What the bytes of a character decode to before the last one is there."""


def stream_answer(
    model: PreTrainedModel,
    labeler: Labeler,
    messages: Sequence[Message],
    *,
    max_new_tokens: int,
    temperature: float,
    on_text: Callable[[str], None],
) -> str:
    """Return the answer to a conversation, greedy without a temperature; `on_text` gets the text so far."""
    try:
        _, ids = labeler.render_prompt(messages)
    except BadRow as bad:
        raise InvalidConfig(f"the chat template refuses the conversation: {bad.detail}") from bad
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit and len(ids) + max_new_tokens > limit:
        raise InvalidConfig(
            f"the conversation has {len(ids)} tokens, and with an answer of {max_new_tokens} it is longer than the "
            f"{limit} of the model: start a new one, or lower --max-new-tokens"
        )
    stops = stop_tokens(model, labeler)
    settings = GenerationConfig(
        do_sample=temperature > 0,
        temperature=temperature or None,
        max_new_tokens=max_new_tokens,
        eos_token_id=stops or None,
        pad_token_id=next(iter(stops), 0),
        use_cache=True,
    )
    inputs = torch.tensor([ids], device=model.device)
    stream = _TextStream(labeler, on_text)
    with torch.no_grad():
        model.generate(
            input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=settings, streamer=stream
        )
    return stream.text()


def stop_tokens(model: PreTrainedModel, labeler: Labeler) -> list[int]:
    """Return the tokens that end an answer: the model's own, and the one that the published template writes."""
    ends = [labeler.stop_id()] if labeler.stop_ids() else []
    return stop_token_ids(model, [Encoded(ends, ends, 1)] if ends else [])


class _TextStream(BaseStreamer):  # type: ignore[misc]  # the library has no types
    """Decodes the tokens so far and reports the text at each complete character."""

    def __init__(self, labeler: Labeler, on_text: Callable[[str], None]) -> None:
        self._tokenizer = labeler.tokenizer
        self._on_text = on_text
        self._ids: list[int] | None = None

    def put(self, value: Any) -> None:
        """Take the next tokens; the first call has those of the prompt."""
        if self._ids is None:
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        text = self.text()
        if not text.endswith(INCOMPLETE):
            self._on_text(text)

    def end(self) -> None:
        """Report the whole answer."""
        self._on_text(self.text())

    def text(self) -> str:
        """Return the text so far, without special tokens."""
        return str(self._tokenizer.decode(self._ids or [], skip_special_tokens=True)).strip()
