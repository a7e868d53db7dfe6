"""Rows that are rendered and wait for their tokens: conversations, and documents."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from tokenizers import Encoding

from finetune_trainer.data.rows import BadRow, RejectCode, RepairCode
from finetune_trainer.encodings import UNTRAINED, Encoded, Sample
from finetune_trainer.renderer import Found
from finetune_trainer.token_spans import Tokens, token_spans
from finetune_trainer.turn_spans import Rendering


class Draft(Protocol):
    """A row made ready: its texts are tokenised together with those of other rows, then it is finished."""

    @property
    def texts(self) -> list[str]:
        """What must be tokenised, special tokens spelled out."""

    def finish(self, encodings: Sequence[Encoding], max_length: int) -> Sequence[Sample]:
        """Return the samples, of at most `max_length` tokens each; raises BadRow."""


@dataclass(frozen=True, slots=True)
class ChatDraft:
    """A conversation; what exceeds `max_length` is cut off at its end, and counted where that is part of an answer."""

    found: Found
    repairs: tuple[RepairCode, ...]
    tokens: Tokens

    @property
    def texts(self) -> list[str]:
        """The conversation, more than once where the template alters earlier answers."""
        return [rendering.text for rendering in self.found.renderings]

    def finish(self, encodings: Sequence[Encoding], max_length: int) -> list[Encoded]:
        """Return the samples that hold a token of an answer; raises BadRow when none does."""
        kept: list[Encoded] = []
        lost = 0
        for rendering, encoding in zip(self.found.renderings, encodings, strict=True):
            encoded = self._encode(rendering, encoding, max_length)
            if encoded is None:
                lost += len(rendering.spans)
            else:
                kept.append(encoded)
        longest = max(len(encoding.ids) for encoding in encodings)
        if not kept:
            detail = f"no token of an answer lies within maxLength {max_length} ({longest} tokens)"
            raise BadRow(RejectCode.PROMPT_FILLS_CONTEXT, detail, longest)
        if lost:
            kept[-1] = _with_lost(kept[-1], lost, longest)
        if self.found.reasoning_lost:
            kept[0] = replace(kept[0], reasoning_lost=self.found.reasoning_lost)
        return kept

    def _encode(self, rendering: Rendering, encoding: Encoding, max_length: int) -> Encoded | None:
        ids = self.tokens.shared(encoding.ids)
        labels = [UNTRAINED] * len(ids)
        second_bos = self.tokens.has_second_bos(ids)
        cut = 0
        for first, last in token_spans(encoding, rendering.text, rendering.spans):
            labels[first:last] = ids[first:last]
            cut += last - second_bos > max_length
        if second_bos:
            ids, labels = ids[1:], labels[1:]
        left_out = max(len(ids) - max_length, 0)
        if left_out:
            ids, labels = ids[:max_length], labels[:max_length]
        trained = len(labels) - labels.count(UNTRAINED)
        if trained == 0:
            return None
        repairs = (*self.repairs, RepairCode.TRUNCATED) if left_out else self.repairs
        return Encoded(
            ids, labels, trained, truncated=bool(left_out), answer_cut=cut, left_out=left_out, repairs=repairs
        )


def _with_lost(encoded: Encoded, answers: int, longest: int) -> Encoded:
    """The last sample, which also tells of the answers that no sample holds a token of."""
    return replace(
        encoded,
        truncated=True,
        answer_cut=encoded.answer_cut + answers,
        left_out=longest - encoded.length,
        repairs=tuple(dict.fromkeys((*encoded.repairs, RepairCode.TRUNCATED))),
    )


@dataclass(frozen=True, slots=True)
class TextDraft:
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
    """As long as can be; a last piece of one token, which could teach nothing, takes another from the one before."""
    starts = list(range(0, len(ids), longest))
    if len(starts) > 1 and len(ids) - starts[-1] == 1:
        starts[-1] -= 1
    return [ids[start:end] for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)]
