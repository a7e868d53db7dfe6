"""The preview of a row in the report: its text as the model reads it, with the trained parts marked.

A row that fits is shown as rendered; a truncated one is decoded from its tokens, with the number of those left out.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

from tokenizers import Encoding, Tokenizer

from finetune_trainer.tokenization.answer_samples import PendingAnswers
from finetune_trainer.tokenization.chat_samples import PendingChat, PendingRow, PendingText
from finetune_trainer.tokenization.samples import UNTRAINED, Encoded, EncodedLabelled, EncodedPair, Sample
from finetune_trainer.tokenization.token_spans import leave_out, token_spans
from finetune_trainer.tokenization.turn_spans import Rendering

Piece = tuple[str, bool]
NEXT_SAMPLE = "\n[the next answer, in a sample of its own] "
CHOSEN, REJECTED = "\n[chosen] ", "\n[rejected] "
DESIRABLE, UNDESIRABLE = "\n[desirable] ", "\n[undesirable] "
SHOWN_CHARACTERS = 150
BRACKETS = str.maketrans("⟦⟧", "[]")
"""A row's own brackets are replaced, so that they do not look like the marks of trained text."""


def preview_pending(pending: PendingRow, tokenizer: Tokenizer) -> list[Piece]:
    """Return pieces of text, each with whether it is trained; answers that are judged are named."""
    match pending:
        case PendingChat():
            pieces = _join([list(_cut(rendering, tokenizer)) for rendering in pending.found.renderings])
        case PendingAnswers():
            pieces = [(pending.shared_text(), False), *_name_answers(pending)]
        case PendingText():
            pieces = [(pending.text, True)]
        case _:
            pieces = [(text, False) for text in pending.texts]
    return [piece for piece in pieces if piece[0]]


def preview_samples(samples: Sequence[Sample], tokenizer: Tokenizer) -> list[Piece]:
    """Return the same of samples that are shorter than their row."""
    shown = []
    for sample in samples:
        pieces = [(tokenizer.decode(ids, skip_special_tokens=False), trained) for ids, trained in _ids(sample)]
        if isinstance(sample, EncodedPair):
            prompt, chosen, rejected = pieces
            pieces = [prompt, (CHOSEN, False), chosen, (REJECTED, False), rejected]
        if isinstance(sample, EncodedLabelled):
            pieces.insert(1, (DESIRABLE if sample.desirable else UNDESIRABLE, False))
        if sample.left_out:
            pieces.append((f" [{sample.left_out} tokens do not fit in maxLength]", False))
        shown.append(pieces)
    return [piece for piece in _join(shown) if piece[0]]


def _ids(sample: Sample) -> Iterator[tuple[list[int], bool]]:
    """Yield the spans of a sample, each with whether it is trained."""
    if isinstance(sample, Encoded):
        pairs = zip(sample.input_ids, sample.labels, strict=True)
        for trained, run in groupby(pairs, key=lambda pair: pair[1] != UNTRAINED):
            yield [token for token, _ in run], trained
        return
    yield sample.prompt_ids, False
    if isinstance(sample, EncodedPair):
        yield sample.chosen_ids, True
        yield sample.rejected_ids, True
    if isinstance(sample, EncodedLabelled):
        yield sample.completion_ids, True


def _join(samples: Sequence[list[Piece]]) -> list[Piece]:
    return [piece for at, pieces in enumerate(samples) for piece in ([(NEXT_SAMPLE, False)] if at else []) + pieces]


def abridge(pieces: list[Piece]) -> list[Piece]:
    """Return the pieces, long ones without their middle, so that a long prompt does not hide its answer."""
    return [(_abridge(text), is_trained) for text, is_trained in pieces]


def mark_trained(pieces: Sequence[Piece]) -> str:
    """Return the pieces as one text, with the trained parts between ⟦ and ⟧."""
    own = ((text.translate(BRACKETS), is_trained) for text, is_trained in pieces)
    return "".join(f"⟦{text}⟧" if is_trained else text for text, is_trained in own)


def _abridge(text: str) -> str:
    left_out = len(text) - 2 * SHOWN_CHARACTERS
    if left_out <= 0:
        return text
    return f"{text[:SHOWN_CHARACTERS]} […{left_out} characters…] {text[-SHOWN_CHARACTERS:]}"


def _name_answers(pending: PendingAnswers) -> Iterator[Piece]:
    start = len(pending.shared_text())
    answers = [(rendering.text[start : rendering.spans[-1][1]], True) for rendering in pending.renderings]
    judged = DESIRABLE if pending.desirable else UNDESIRABLE
    for name, answer in zip((CHOSEN, REJECTED) if len(answers) > 1 else (judged,), answers, strict=True):
        yield (name, False)
        yield answer


def _cut(rendering: Rendering, tokenizer: Tokenizer) -> Iterator[Piece]:
    encoding: Encoding = tokenizer.encode(rendering.text, add_special_tokens=False)
    at = 0
    answers = token_spans(encoding, rendering.text, rendering.spans)
    for first, last in leave_out(encoding, answers, rendering.untrained):
        if first < last:
            start, end = encoding.offsets[first][0], encoding.offsets[last - 1][1]
            yield rendering.text[at:start], False
            yield rendering.text[start:end], True
            at = end
    yield rendering.text[at:], False
