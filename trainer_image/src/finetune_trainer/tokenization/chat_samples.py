"""Rendered rows before tokenisation: conversations and documents."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from tokenizers import Encoding

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_trainer.data.rows import BadRow
from finetune_trainer.tokenization.renderer import FoundAnswers
from finetune_trainer.tokenization.samples import UNTRAINED, Encoded, Sample, truncation_codes
from finetune_trainer.tokenization.token_spans import Tokens, leave_out, token_spans
from finetune_trainer.tokenization.turn_spans import Rendering

# Two texts with the same beginning have the same tokens there, but for the last few characters of it.
SAME_TOKENS_AFTER = 256
RENDERINGS_AT_ONCE = 16


class PendingRow(Protocol):
    """A prepared row: its texts are tokenised together with those of other rows, then its samples are built."""

    __slots__ = ()

    @property
    def texts(self) -> list[str]:
        """The texts to tokenise, with special tokens as text."""

    @property
    def characters(self) -> int:
        """The number of characters of the texts."""
        return sum(map(len, self.texts))

    def finish(self, encodings: Sequence[Encoding], max_length: int) -> Sequence[Sample]:
        """Return the samples, of at most `max_length` tokens each; raises BadRow."""


@dataclass(frozen=True, slots=True)
class PendingChat(PendingRow):
    """A conversation; what exceeds `max_length` is cut off at its end, and counted where that is part of an answer."""

    found: FoundAnswers
    repairs: tuple[RepairCode, ...]
    tokens: Tokens

    @property
    def texts(self) -> list[str]:
        """The whole conversation; where the template alters earlier answers, those are tokenised when it is known."""
        return [self.found.renderings[-1].text]

    @property
    def characters(self) -> int:
        """The conversation; several texts if the template alters earlier answers."""
        return sum(len(rendering.text) for rendering in self.found.renderings)

    def finish(self, encodings: Sequence[Encoding], max_length: int) -> list[Encoded]:
        """Return the samples that hold a token of an answer; raises BadRow when none does."""
        *earlier, last = self.found.renderings
        (whole,) = encodings
        near = earlier
        if len(whole) > max_length:  # then most answers may lie beyond it: only the others are worth tokenising
            within = last.text[: whole.offsets[max_length][1] + SAME_TOKENS_AFTER]
            near = [one for one in earlier if one.spans[0][0] < len(within) or not one.text.startswith(within)]
        lost = sum(len(one.spans) for one in earlier) - sum(len(one.spans) for one in near)
        kept: list[Encoded] = []
        longest = len(whole)
        for rendering, encoding in (*self._tokenize(near), (last, whole)):
            encoded = self._encode(rendering, encoding, max_length)
            longest = max(longest, len(encoding))
            if encoded is None:
                lost += len(rendering.spans)
            else:
                kept.append(encoded)
        if not kept:
            detail = f"no token of an answer is within maxLength {max_length} ({longest} tokens)"
            raise BadRow(RejectCode.PROMPT_FILLS_CONTEXT, detail, longest)
        if lost:
            kept[-1] = _with_lost(kept[-1], lost, longest)
        if self.found.reasoning_lost:
            repairs = (*kept[0].repairs, RepairCode.REASONING_LOST)
            kept[0] = replace(kept[0], reasoning_lost=self.found.reasoning_lost, repairs=repairs)
        return kept

    def _tokenize(self, renderings: Sequence[Rendering]) -> Iterator[tuple[Rendering, Encoding]]:
        for start in range(0, len(renderings), RENDERINGS_AT_ONCE):
            some = renderings[start : start + RENDERINGS_AT_ONCE]
            yield from zip(some, self.tokens.encode_batch([one.text for one in some]), strict=True)

    def _encode(self, rendering: Rendering, encoding: Encoding, max_length: int) -> Encoded | None:
        ids = self.tokens.shared(encoding.ids)
        labels = [UNTRAINED] * len(ids)
        second_bos = self.tokens.has_second_bos(ids)
        answers = token_spans(encoding, rendering.text, rendering.spans)
        for first, last in leave_out(encoding, answers, rendering.untrained):
            labels[first:last] = ids[first:last]
        cut = sum(last - second_bos > max_length for _, last in answers)
        if second_bos:
            ids, labels = ids[1:], labels[1:]
        left_out = max(len(ids) - max_length, 0)
        if left_out:
            ids, labels = ids[:max_length], labels[:max_length]
        trained = len(labels) - labels.count(UNTRAINED)
        if trained == 0:
            return None
        repairs = (*self.repairs, *truncation_codes(left_out, cut))
        return Encoded(
            ids, labels, trained, truncated=bool(left_out), answer_cut=cut, left_out=left_out, repairs=repairs
        )


def _with_lost(encoded: Encoded, answers: int, longest: int) -> Encoded:
    """Return the last sample, which also counts the answers of which no sample has a token."""
    return replace(
        encoded,
        truncated=True,
        answer_cut=encoded.answer_cut + answers,
        left_out=longest - encoded.length,
        repairs=tuple(dict.fromkeys((*encoded.repairs, RepairCode.TRUNCATED, RepairCode.ANSWER_CUT))),
    )


@dataclass(frozen=True, slots=True)
class PendingText(PendingRow):
    """A document, trained in full: BOS where the tokenizer writes it, the text, and EOS.

    One that exceeds `max_length` becomes several samples, in order and without overlap, so that nothing is lost.
    """

    text: str
    tokens: Tokens

    @property
    def texts(self) -> list[str]:
        """The document."""
        return [self.text]

    def finish(self, encodings: Sequence[Encoding], max_length: int) -> list[Encoded]:
        """Return the pieces; a document's last piece ends with EOS."""
        ids = self.tokens.as_document(encodings[0].ids)
        repairs = (RepairCode.DOCUMENT_SPLIT,) if len(ids) > max_length else ()
        return [
            Encoded(piece, list(piece), len(piece), left_out=len(ids) - len(piece), repairs=repairs)
            for piece in _pieces(ids, max_length)
        ]


def _pieces(ids: list[int], longest: int) -> list[list[int]]:
    """Return the longest possible pieces; a last piece of one token, which has no label, takes another from the one
    before."""
    starts = list(range(0, len(ids), longest))
    if len(starts) > 1 and len(ids) - starts[-1] == 1:
        starts[-1] -= 1
    return [ids[start:end] for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)]
