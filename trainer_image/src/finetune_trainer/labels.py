"""Turns a canonical chat row into token ids and labels: what the model reads, and the part of it that it must learn.

    labeler = Labeler(model_directory)
    result = labeler.encode(row, "Chat", max_length=2048)   # list[Encoded], or BadRow with a code and a detail

Instruction trains the last answer, Chat every answer not marked `train: false`. Only answers and the tokens that stop
them carry labels; everything else is -100.
"""

import hashlib
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import orjson
from tokenizers import Encoding

from finetune_api.handoff import ExitCode
from finetune_trainer.data.rows import BadRow, ChatRow, Message, Objective, RejectCode, RepairCode
from finetune_trainer.encodings import UNTRAINED, Encoded
from finetune_trainer.errors import TrainerError
from finetune_trainer.skeletons import SkeletonFinder
from finetune_trainer.template import FALLBACK_TEMPLATE, ChatTemplate, TemplateFailure
from finetune_trainer.template_probe import choose_arguments_form, choose_content_form, has_system_role
from finetune_trainer.tokenizer_files import TokenizerFiles, TokenizerUnavailable, load_tokenizer_files
from finetune_trainer.turn_spans import Sample, Span, Tools, TurnFinder

__all__ = ["UNTRAINED", "Encoded", "Labeler", "load_labeler"]

# Each answer is rendered with all that goes before it, so that work grows with turns times text: hostile rows end here.
MAX_TURNS = 512
MAX_RENDERED_CHARACTERS = 1 << 28


@dataclass(frozen=True, slots=True)
class _Plan:
    """A row made ready: its samples, and what had to be changed for the template."""

    samples: list[Sample]
    repairs: tuple[RepairCode, ...] = ()
    reasoning_lost: int = 0


class Labeler:
    """Builds samples with one model's tokenizer and chat template; raises TokenizerUnavailable without the former."""

    def __init__(self, directory: Path) -> None:
        self._files = load_tokenizer_files(directory)
        self.tokenizer = self._files.tokenizer
        self.is_fallback_template = self._files.template is None
        self.template_text = self._files.template or _fallback_template(self._files)
        self._control = _control_pattern(self._files, self.is_fallback_template)
        self._template = ChatTemplate(self.template_text, self._files.named_tokens)
        self._finder = TurnFinder(self._template, _control_pattern(self._files, False), self._files.eos_token)
        self._skeletons = SkeletonFinder(self._template, self._finder)
        choose_content_form(self._template)
        self._has_system_role = has_system_role(self._template)
        self._has_tool_calls = choose_arguments_form(self._template)

    @property
    def template_sha256(self) -> str:
        """The digest of the template's text, for the lineage."""
        return hashlib.sha256(self.template_text.encode()).hexdigest()

    def encode(self, row: ChatRow, objective: Objective, max_length: int) -> list[Encoded] | BadRow:
        """Return the row's samples, or why not; more than one only where the template alters earlier answers."""
        return self.encode_batch([row], objective, max_length)[0]

    def encode_batch(
        self, rows: Sequence[ChatRow], objective: Objective, max_length: int
    ) -> list[list[Encoded] | BadRow]:
        """Encode many rows at once, which is faster; the results are in the order of the rows."""
        plans = [self._plan(row, objective) for row in rows]
        texts = [sample.text for plan in plans if isinstance(plan, _Plan) for sample in plan.samples]
        encodings = iter(self.tokenizer.encode_batch(texts, add_special_tokens=False))
        return [
            plan
            if isinstance(plan, BadRow)
            else self._finish(plan, [next(encodings) for _ in plan.samples], max_length)
            for plan in plans
        ]

    def preview(self, row: ChatRow, objective: Objective = "Chat") -> list[tuple[str, bool]]:
        """Return the row's text in pieces, each with whether it is trained; raises BadRow."""
        plan = self._plan(row, objective)
        if isinstance(plan, BadRow):
            raise plan
        pieces: list[tuple[str, bool]] = []
        for sample in plan.samples:
            encoding = self.tokenizer.encode(sample.text, add_special_tokens=False)
            at = 0
            for first, last in _token_spans(encoding, sample.spans):
                if first == last:
                    continue
                start, end = encoding.offsets[first][0], encoding.offsets[last - 1][1]
                pieces += [(sample.text[at:start], False), (sample.text[start:end], True)]
                at = end
            pieces.append((sample.text[at:], False))
        return [piece for piece in pieces if piece[0]]

    def render_prompt(self, messages: Sequence[Message], tools: Tools = None) -> tuple[str, list[int]]:
        """Return the text and ids that ask the model for the next answer; raises BadRow with TEMPLATE_ERROR."""
        ready, _ = self._fit_system(list(messages))
        try:
            text = self._template.render(ready, tools, add_generation_prompt=True)
        except TemplateFailure as failure:
            raise BadRow(RejectCode.TEMPLATE_ERROR, str(failure)) from failure
        return text, self._without_second_bos(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _plan(self, row: ChatRow, objective: Objective) -> "_Plan | BadRow":
        try:
            _refuse_endless(row.messages)
            self._refuse_control_tokens(row)
            messages, repairs = self._fit_system(row.messages)
            return self._find_samples(messages, row.tools, _trained_turns(messages, objective), repairs)
        except BadRow as bad:
            return bad
        except TemplateFailure as failure:
            return BadRow(RejectCode.TEMPLATE_ERROR, str(failure)[:200])

    def _find_samples(
        self, messages: list[Message], tools: Tools, turns: list[int], repairs: tuple[RepairCode, ...]
    ) -> _Plan:
        if tools is None and not any(message.keys() - {"role", "content", "train"} for message in messages):
            samples = self._skeletons.find(messages, turns)
            if samples is not None:
                return _Plan(samples, repairs)
        if not self._has_tool_calls and any("tool_calls" in message for message in messages):
            raise TemplateFailure("the chat template leaves out tool calls")
        samples = self._finder.find(messages, tools, turns)
        for sample in samples:
            _refuse_losses(sample, messages, tools)
        return _Plan(samples, repairs, sum(_count_lost_reasoning(sample, messages) for sample in samples))

    def _refuse_control_tokens(self, row: ChatRow) -> None:
        for number, message in enumerate(row.messages, 1):
            found = self._control.search(message["content"])
            if not found and len(message) > 2:
                found = self._control.search(orjson.dumps(message).decode())
            if found:
                detail = f"turn {number} spells the control token {found.group()!r}"
                raise BadRow(RejectCode.CONTROL_TOKEN_IN_TEXT, detail)
        if row.tools and (found := self._control.search(orjson.dumps(row.tools).decode())):
            raise BadRow(RejectCode.CONTROL_TOKEN_IN_TEXT, f"tools spell the control token {found.group()!r}")

    def _fit_system(self, messages: list[Message]) -> tuple[list[Message], tuple[RepairCode, ...]]:
        if self._has_system_role or len(messages) < 2 or messages[0]["role"] != "system":
            return messages, ()
        first = Message(role="user", content=f"{messages[0]['content']}\n\n{messages[1]['content']}")
        return [first, *messages[2:]], (RepairCode.SYSTEM_MERGED,)

    def _finish(self, plan: _Plan, encodings: list[Encoding], max_length: int) -> list[Encoded] | BadRow:
        kept: list[Encoded] = []
        lost = 0
        for sample, encoding in zip(plan.samples, encodings, strict=True):
            encoded = self._encode(sample, encoding, max_length, plan.repairs)
            if encoded is None:
                lost += len(sample.spans)
            else:
                kept.append(encoded)
        if not kept:
            longest = max(len(encoding.ids) for encoding in encodings)
            detail = f"no token of an answer lies within maxLength {max_length} ({longest} tokens)"
            return BadRow(RejectCode.PROMPT_FILLS_CONTEXT, detail)
        if lost:
            repaired = tuple(dict.fromkeys((*kept[-1].repairs, RepairCode.TRUNCATED)))
            cut = kept[-1].answer_cut + lost
            kept[-1] = replace(kept[-1], truncated=True, answer_cut=cut, repairs=repaired)
        if plan.reasoning_lost:
            kept[0] = replace(kept[0], reasoning_lost=plan.reasoning_lost)
        return kept

    def _encode(
        self, sample: Sample, encoding: Encoding, max_length: int, repairs: tuple[RepairCode, ...]
    ) -> Encoded | None:
        ids: list[int] = encoding.ids
        labels = [UNTRAINED] * len(ids)
        cut = 0
        for first, last in _token_spans(encoding, sample.spans):
            labels[first:last] = ids[first:last]
            cut += last > max_length
        skip = len(ids) - len(self._without_second_bos(ids))
        if skip or len(ids) > max_length:
            ids, labels = ids[skip : max_length + skip], labels[skip : max_length + skip]
        trained = len(labels) - labels.count(UNTRAINED)
        if trained == 0:
            return None
        truncated = len(encoding.ids) - skip > max_length
        if truncated:
            repairs = (*repairs, RepairCode.TRUNCATED)
        return Encoded(ids, labels, trained, truncated=truncated, answer_cut=cut, repairs=repairs)

    def _without_second_bos(self, ids: list[int]) -> list[int]:
        bos = self._files.bos_id
        return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids


def load_labeler(directory: Path, name: str) -> Labeler:
    """The labeler of a model's folder, which messages call `name`; what it cannot use is ModelUnavailable."""
    try:
        return Labeler(directory)
    except (TokenizerUnavailable, TemplateFailure) as error:
        message = f"{name}: the tokenizer cannot be used: {error}"
        raise TrainerError(ExitCode.MODEL_UNAVAILABLE, message) from error


def _refuse_endless(messages: Sequence[Message]) -> None:
    turns = len(messages)
    if turns > MAX_TURNS or turns * sum(len(message["content"]) for message in messages) > MAX_RENDERED_CHARACTERS:
        raise BadRow(RejectCode.TOO_LONG, f"{turns} turns of this length are more than can be rendered")


def _trained_turns(messages: Sequence[Message], objective: Objective) -> list[int]:
    answers = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    turns = [
        turn for turn in (answers[-1:] if objective == "Instruction" else answers) if messages[turn].get("train", True)
    ]
    if not turns:
        raise BadRow(RejectCode.NO_TRAINABLE_TURN, "every answer to train is marked train: false or weight: 0")
    return turns


def _token_spans(encoding: Encoding, spans: Sequence[Span]) -> list[Span]:
    """Return the ranges of tokens that lie wholly within these ranges of characters."""
    offsets = encoding.offsets
    ranges = []
    for start, end in spans:
        first = bisect_left(offsets, (start, start + 1))
        last = bisect_left(offsets, (end, end))
        while last > first and offsets[last - 1][1] > end:
            last -= 1
        ranges.append((first, last))
    return ranges


def _refuse_losses(sample: Sample, messages: Sequence[Message], tools: Tools) -> None:
    """Refuse a sample whose template left out a text, a tool call or the tools themselves."""
    for turn, message in enumerate(messages[: sample.turns[-1] + 1]):
        if _answer(message) not in sample.text:
            raise TemplateFailure(f"the chat template leaves out or alters turn {turn + 1} ({message['role']})")
    for (start, end), turn in zip(sample.spans, sample.turns, strict=True):
        shown = sample.text[start:end]
        calls = messages[turn].get("tool_calls", ())
        if _answer(messages[turn]) not in shown or any(call["function"]["name"] not in shown for call in calls):
            raise TemplateFailure(f"the chat template does not show the answer of turn {turn + 1} where it belongs")
    for tool in tools or ():
        if tool["function"]["name"] not in sample.text:
            raise TemplateFailure("the chat template leaves out the tools")


def _answer(message: Message) -> str:
    return message["content"].rpartition("</think>")[2].strip()


def _reasoning(message: Message) -> str:
    inline = message["content"].rpartition("</think>")[0].rpartition("<think>")[2]
    return (message.get("reasoning_content") or inline).strip()


def _count_lost_reasoning(sample: Sample, messages: Sequence[Message]) -> int:
    pairs = zip(sample.spans, sample.turns, strict=True)
    return sum(_reasoning(messages[turn]) not in sample.text[start:end] for (start, end), turn in pairs)


def _fallback_template(files: TokenizerFiles) -> str:
    return ("{{ bos_token }}" if files.adds_bos else "") + FALLBACK_TEMPLATE


def _control_pattern(files: TokenizerFiles, is_fallback: bool) -> re.Pattern[str]:
    tokens = [*files.control_tokens, *(("<|im_start|>", "<|im_end|>") if is_fallback else ())]
    return re.compile("|".join(map(re.escape, tokens)) or "(?!)")
