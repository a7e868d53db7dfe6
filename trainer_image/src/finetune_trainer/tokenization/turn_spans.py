"""Find the trained characters of a rendered conversation: each answer and its stop token.

Nothing is assumed about the template. The prompt of an answer is the conversation before it, rendered with the
generation prompt; the answer is what follows that prompt once its turn is rendered too, as at inference. If later turns
change how an earlier answer is rendered, that answer becomes a sample of its own.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_trainer.data.rows import Message
from finetune_trainer.tokenization.template import ChatTemplate, TemplateFailure

Tools = list[dict[str, Any]] | None
Span = tuple[int, int]
# Private-use characters: no template strips, escapes or looks for them.
SENTINEL = "\ue0001\ue001"


@dataclass(frozen=True, slots=True)
class Rendering:
    """A conversation as text, the spans of it that are trained, and the turns that those spans answer."""

    text: str
    spans: tuple[Span, ...]
    turns: tuple[int, ...]
    untrained: tuple[Span, ...] = ()
    """The parts of these spans that are context all the same."""


class TurnFinder:
    """Finds answers in what one template renders; `stops` matches the tokenizer's special tokens."""

    def __init__(self, template: ChatTemplate, stops: re.Pattern[str], eos_token: str | None) -> None:
        self._template = template
        self._stops = stops
        self._eos_token = eos_token

    def find(self, messages: Sequence[Message], tools: Tools, turns: Sequence[int]) -> list[Rendering]:
        """Return the fewest samples in which each of these turns is rendered as at inference, in order of turns."""
        samples: list[Rendering] = []
        for turn in reversed(turns):
            text, span = self._find_one(messages, tools, turn)
            later = samples[-1] if samples else None
            if later is not None and later.text.startswith(text[: span[1]]):
                samples[-1] = Rendering(later.text, (span, *later.spans), (turn, *later.turns))
            else:
                samples.append(Rendering(text, (span,), (turn,)))
        return samples[::-1]

    def _find_one(self, messages: Sequence[Message], tools: Tools, turn: int) -> tuple[str, Span]:
        text = self._template.render(messages[: turn + 1], tools)
        prompt = self._template.render(messages[:turn], tools, add_generation_prompt=True)
        start = len(prompt)
        if not text.startswith(prompt):
            start = self._common_start(messages, tools, turn, text, prompt)
        end = self._end_of_answer(text, start)
        if end is not None:
            return text, (start, end)
        # The template gives the answer no end; without one the tuned model would never stop.
        text = text.rstrip() + (self._eos_token or "")
        return text, (start, len(text))

    def _common_start(self, messages: Sequence[Message], tools: Tools, turn: int, text: str, prompt: str) -> int:
        # The generation prompt opens with more than the turn itself shows, such as a reasoning mark. Where they part is
        # found with an answer that shares no character with the prompt, and must lie behind the text asked.
        blank = Message(role="assistant", content=SENTINEL)
        start = _common_prefix(prompt, self._template.render([*messages[:turn], blank], tools))
        start = min(start, _common_prefix(prompt, text))
        asked: Message = {**messages[turn - 1], "content": SENTINEL}
        outline = self._template.render([*messages[: turn - 1], asked], tools, add_generation_prompt=True)
        _, found, header = outline.rpartition(SENTINEL)
        if not found or not prompt.endswith(header) or start < len(prompt) - len(header):
            detail = f"the chat template does not separate the answer of turn {turn + 1} from the prompt"
            raise TemplateFailure(f"{detail}: set model.chatTemplate to one that does{_explain(messages[:turn])}")
        return start

    def _end_of_answer(self, text: str, start: int) -> int | None:
        """Return where the first run of special tokens ends after which only spaces and more such tokens follow."""
        end: int | None = None
        limit = len(text)
        for match in reversed(list(self._stops.finditer(text, start))):
            between = text[match.end() : limit]
            if between.strip():
                break
            if end is None or between:
                end = match.end()
            limit = match.start()
        return end


def _explain(prompt: Sequence[Message]) -> str:
    """Return what to remove from a prompt that the template of gpt-oss and others change once an answer follows."""
    calls = [message for message in prompt if "tool_calls" in message]
    if any(message["content"].strip() or "reasoning_content" in message for message in calls):
        return ", or remove the text and the reasoning next to the tool calls before it"
    return ""


def _common_prefix(left: str, right: str) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(left), len(right)))
