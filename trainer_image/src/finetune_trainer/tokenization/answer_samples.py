"""Samples of a prompt with answers: preference pairs, labelled answers, and prompts alone.

Exactly the tokens of an answer are trained, including its stop token. What exceeds `max_length` is cut by these
rules, and counted:

1. The prompt loses its beginning: its oldest exchanges, the system text staying; where the last exchange alone is too
   long, its oldest tokens, BOS staying. A quarter of `max_length` stays the prompt's own.
2. If that does not suffice, the answers lose their ends.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_trainer.data.rows import BadRow, Message, Reference
from finetune_trainer.tokenization.chat_samples import PendingRow
from finetune_trainer.tokenization.renderer import Renderer
from finetune_trainer.tokenization.samples import EncodedLabelled, EncodedPair, EncodedPrompt, truncation_codes
from finetune_trainer.tokenization.token_spans import Tokens, token_spans
from finetune_trainer.tokenization.turn_spans import Rendering, Tools

PROMPT_SHARE = 4


@dataclass(frozen=True, slots=True)
class Prompt:
    """The turns before an answer, rendered whole or without the oldest ones."""

    messages: list[Message]
    tools: Tools
    renderer: Renderer
    tokens: Tokens

    def render(self, messages: list[Message]) -> str:
        """Return the rendered prompt of these turns."""
        return self.renderer.render_prompt(self.renderer.fit_system(messages)[0], self.tools)

    def shorten(self, text: str, ids: list[int], room: int) -> list[int]:
        """Return the end of the rendered prompt in at most `room` tokens, cut between exchanges if possible."""
        header = self.messages[:1] if self.messages[0]["role"] == "system" else []
        users = [turn for turn, message in enumerate(self.messages) if message["role"] == "user"]
        whole = self.render(self.messages)
        # A generation prompt may open with more than the turn itself shows; that was left to the answers.
        unshown = whole[len(text) :] if whole.startswith(text) else ""

        def without(first_turn: int) -> list[int]:
            shorter = self.render([*header, *self.messages[first_turn:]])
            return self.tokens.encode(shorter.removesuffix(unshown))

        later = users[1:]
        try:
            kept = bisect_left(later, True, key=lambda turn: len(without(turn)) <= room)
            if kept < len(later):
                return without(later[kept])
        except BadRow:
            pass  # the template refuses the shorter conversation; its tokens can still be cut
        begin = ids[:1] if self.tokens.bos_id is not None and ids[:1] == [self.tokens.bos_id] else []
        return begin + ids[len(ids) - room + len(begin) :] if room > len(begin) else []


@dataclass(frozen=True, slots=True)
class PendingPrompt(PendingRow):
    """A prompt alone; one that exceeds `max_length` loses its beginning."""

    prompt: Prompt
    text: str
    repairs: tuple[RepairCode, ...]
    reference: Reference | None = None

    @property
    def texts(self) -> list[str]:
        """The prompt with the generation prompt."""
        return [self.text]

    def finish(self, encodings: Sequence[Encoding], max_length: int) -> list[EncodedPrompt]:
        """Return the prompt; raises BadRow when `max_length` leaves nothing of it."""
        ids = self.prompt.tokens.ids(encodings[0])
        kept, repairs = ids, self.repairs
        if len(ids) > max_length:
            kept = self.prompt.shorten(self.text, ids, max_length)
            repairs = (*repairs, RepairCode.PROMPT_CUT, RepairCode.TRUNCATED)
        if not kept:
            detail = f"maxLength leaves {max_length} tokens for the prompt"
            raise BadRow(RejectCode.PROMPT_FILLS_CONTEXT, detail, len(ids))
        left_out = len(ids) - len(kept)
        of_row = self.prompt.messages, self.prompt.tools, self.reference
        return [EncodedPrompt(kept, *of_row, truncated=left_out > 0, left_out=left_out, repairs=repairs)]


@dataclass(frozen=True, slots=True)
class _Fitted:
    """Prompt and answers within `max_length`, and the losses."""

    prompt_ids: list[int]
    answers: list[list[int]]
    left_out: int = 0
    answer_cut: int = 0
    repairs: tuple[RepairCode, ...] = ()


@dataclass(frozen=True, slots=True)
class PendingAnswers(PendingRow):
    """A prompt and the answers to it: the chosen and the rejected one, or a single one that is `desirable` or not.

    Each answer is rendered as the last turn of the conversation.
    """

    prompt: Prompt
    renderings: list[Rendering]
    repairs: tuple[RepairCode, ...]
    reasoning_lost: int = 0
    desirable: bool = True

    @property
    def texts(self) -> list[str]:
        """The whole conversation with each answer."""
        return [rendering.text for rendering in self.renderings]

    def shared_text(self) -> str:
        """Return the text before the answers, which all share; raises BadRow."""
        start = min(rendering.spans[0][0] for rendering in self.renderings)
        text = self.renderings[0].text[:start]
        if any(not rendering.text.startswith(text) for rendering in self.renderings):
            detail = "the chat template writes the prompt differently for the two answers"
            raise BadRow(RejectCode.TEMPLATE_ERROR, detail)
        return text

    def finish(self, encodings: Sequence[Encoding], max_length: int) -> list[EncodedPair | EncodedLabelled]:
        """Return the pair or the judged answer; raises BadRow, also when both answers have the same tokens."""
        fitted = self._fit(encodings, max_length)
        repairs = fitted.repairs + ((RepairCode.REASONING_LOST,) if self.reasoning_lost else ())
        counts: dict[str, Any] = {
            "truncated": fitted.left_out > 0,
            "answer_cut": fitted.answer_cut,
            "reasoning_lost": self.reasoning_lost,
            "left_out": fitted.left_out,
            "repairs": repairs,
        }
        if len(fitted.answers) == 1:
            return [EncodedLabelled(fitted.prompt_ids, fitted.answers[0], self.desirable, **counts)]
        chosen, rejected = fitted.answers
        if chosen == rejected:
            where = "within maxLength" if fitted.answer_cut else "once rendered and tokenised"
            raise BadRow(RejectCode.SAME_PAIR, f"the chosen and the rejected answer are the same {where}")
        return [EncodedPair(fitted.prompt_ids, chosen, rejected, **counts)]

    def _fit(self, encodings: Sequence[Encoding], max_length: int) -> _Fitted:
        text = self.shared_text()
        prompt_ids, answers = self._divide(encodings, text)
        longest = max(map(len, answers))
        whole = len(prompt_ids) + longest
        if whole <= max_length:
            return _Fitted(prompt_ids, answers, repairs=self.repairs)
        repairs = self.repairs
        room = max(max_length - longest, max_length // PROMPT_SHARE)
        if len(prompt_ids) > room:
            prompt_ids = self.prompt.shorten(text, prompt_ids, room)
            repairs = (*repairs, RepairCode.PROMPT_CUT)
        space = max_length - len(prompt_ids)
        if not prompt_ids or space < 1:
            detail = f"maxLength {max_length} leaves no room for an answer"
            raise BadRow(RejectCode.PROMPT_FILLS_CONTEXT, detail, whole)
        left_out = whole - len(prompt_ids) - min(longest, space)
        cut = sum(len(answer) > space for answer in answers)
        repairs = (*repairs, *truncation_codes(left_out, cut))
        return _Fitted(prompt_ids, [answer[:space] for answer in answers], left_out, cut, repairs)

    def _divide(self, encodings: Sequence[Encoding], text: str) -> tuple[list[int], list[list[int]]]:
        """Return the tokens of the prompt, tokenised by itself as at inference, and those of each answer."""
        tokens = self.prompt.tokens
        answers = []
        for rendering, encoding in zip(self.renderings, encodings, strict=True):
            ((first, last),) = token_spans(encoding, rendering.text, [(len(text), rendering.spans[-1][1])])
            # Where a token reaches from the prompt into the answer, the answer's part of it is tokenised by itself.
            head = rendering.text[len(text) : encoding.offsets[first - 1][1]] if first else ""
            answers.append(tokens.encode(head) + tokens.shared(encoding.ids[first:last]))
        return tokens.encode(text), answers
