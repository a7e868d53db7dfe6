"""What a reader of the report is shown of a row: its text as the model reads it, with what is trained set apart."""

from collections.abc import Iterator

from tokenizers import Encoding, Tokenizer

from finetune_trainer.answers import AnswersDraft
from finetune_trainer.drafts import ChatDraft, Draft, TextDraft
from finetune_trainer.token_spans import token_spans
from finetune_trainer.turn_spans import Rendering

Piece = tuple[str, bool]
CHOSEN, REJECTED = "\n[chosen] ", "\n[rejected] "
SHOWN_CHARACTERS = 150


def preview_draft(draft: Draft, tokenizer: Tokenizer) -> list[Piece]:
    """Return pieces of text, each with whether it is trained; the two answers of a pair are named."""
    match draft:
        case ChatDraft():
            pieces = [piece for rendering in draft.found.renderings for piece in _cut(rendering, tokenizer)]
        case AnswersDraft():
            pieces = [(draft.shared_text(), False), *_name_answers(draft)]
        case TextDraft():
            pieces = [(draft.text, True)]
        case _:
            pieces = [(text, False) for text in draft.texts]
    return [piece for piece in pieces if piece[0]]


def abridge(pieces: list[Piece]) -> list[Piece]:
    """The pieces with the middle of the long ones left out, so that a long prompt does not hide its answer."""
    return [(_abridge(text), is_trained) for text, is_trained in pieces]


def _abridge(text: str) -> str:
    left_out = len(text) - 2 * SHOWN_CHARACTERS
    if left_out <= 0:
        return text
    return f"{text[:SHOWN_CHARACTERS]} […{left_out} characters…] {text[-SHOWN_CHARACTERS:]}"


def _name_answers(draft: AnswersDraft) -> Iterator[Piece]:
    start = len(draft.shared_text())
    answers = [(rendering.text[start : rendering.spans[0][1]], True) for rendering in draft.renderings]
    if len(answers) == 1:
        yield answers[0]
        return
    for name, answer in zip((CHOSEN, REJECTED), answers, strict=True):
        yield (name, False)
        yield answer


def _cut(rendering: Rendering, tokenizer: Tokenizer) -> Iterator[Piece]:
    encoding: Encoding = tokenizer.encode(rendering.text, add_special_tokens=False)
    at = 0
    for first, last in token_spans(encoding, rendering.text, rendering.spans):
        if first < last:
            start, end = encoding.offsets[first][0], encoding.offsets[last - 1][1]
            yield rendering.text[at:start], False
            yield rendering.text[start:end], True
            at = end
    yield rendering.text[at:], False
