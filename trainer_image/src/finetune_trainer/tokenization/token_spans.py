"""Find the tokens of a rendered text that belong to its answers."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from tokenizers import Encoding

from finetune_trainer.tokenization.tokenizer import TokenizerFiles
from finetune_trainer.tokenization.turn_spans import Span


class Tokens:
    """A tokenizer's ids: one BOS at most, and one Python object for each id, however many samples hold it."""

    def __init__(self, files: TokenizerFiles) -> None:
        self._tokenizer = files.tokenizer
        self._shared = list(range(1 + max(files.tokenizer.get_vocab().values(), default=0)))
        self.bos_id = files.bos_id
        self.eos_id = files.eos_id
        self.adds_bos = files.adds_bos
        self.added_bos = files.named_tokens.get("bos_token", "") if files.adds_bos else ""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text that already contains its special tokens."""
        return self.ids(self._tokenizer.encode(text, add_special_tokens=False))

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """Encode many texts at once, with the offsets of their tokens."""
        return self._tokenizer.encode_batch(texts, add_special_tokens=False)

    def ids(self, encoding: Encoding) -> list[int]:
        """Return the ids of an encoding, without a second BOS."""
        ids = self.shared(encoding.ids)
        return ids[1:] if self.has_second_bos(ids) else ids

    def as_document(self, ids: Sequence[int]) -> list[int]:
        """Return the ids of a whole document: BOS if the tokenizer writes it, the text, and EOS."""
        begin = [self.bos_id] if self.adds_bos and self.bos_id is not None and ids[:1] != [self.bos_id] else []
        end = [] if self.eos_id is None or ids[-1:] == [self.eos_id] else [self.eos_id]
        return self.shared([*begin, *ids, *end])

    def shared(self, ids: Sequence[int]) -> list[int]:
        """Return the same ids as shared objects, at eight bytes each."""
        return list(map(self._shared.__getitem__, ids))

    def has_second_bos(self, ids: Sequence[int]) -> bool:
        """Return whether the text begins with two BOS tokens, the template's and its own."""
        return self.bos_id is not None and list(ids[:2]) == [self.bos_id, self.bos_id]


def token_spans(encoding: Encoding, text: str, spans: Sequence[Span]) -> list[Span]:
    """Return the ranges of tokens that lie wholly within these ranges of characters of `text`.

    The last one may reach over spaces that follow: some tokenizers let a stop token swallow them.
    """
    offsets = encoding.offsets
    ranges = []
    for start, end in spans:
        first = bisect_left(offsets, (start, start + 1))
        last = bisect_left(offsets, (end, end))
        while last > first and text[end : offsets[last - 1][1]].strip():
            last -= 1
        ranges.append((first, last))
    return ranges


def leave_out(encoding: Encoding, ranges: Sequence[Span], untrained: Sequence[Span]) -> list[Span]:
    """Return the ranges of tokens without those that touch one of these ranges of characters."""
    removed = _merge(_find_touching(encoding.offsets, untrained)) if untrained else []
    if not removed:
        return list(ranges)
    left = []
    for begin, stop in ranges:
        kept_from, at = begin, max(bisect_left(removed, (begin, begin)) - 1, 0)
        while at < len(removed) and removed[at][0] < stop:
            first, last = removed[at]
            left.append((kept_from, first))
            kept_from, at = max(begin, last), at + 1
        left.append((kept_from, stop))
    return [piece for piece in left if piece[0] < piece[1]]


def _find_touching(offsets: Sequence[Span], spans: Sequence[Span]) -> Iterator[Span]:
    """Yield the range of tokens from the first to the last one that touches each range of characters.

    Offsets rise, but for texts that a normaliser has put into another order.
    """
    furthest = list(accumulate((stop for _, stop in offsets), max))
    nearest = list(accumulate((begin for begin, _ in reversed(offsets)), min))[::-1]
    for start, end in spans:
        first, last = bisect_right(furthest, start), bisect_left(nearest, end)
        while first < last and not _overlap(offsets[first], (start, end)):
            first += 1
        while first < last and not _overlap(offsets[last - 1], (start, end)):
            last -= 1
        if first < last:
            yield first, last


def _overlap(token: Span, span: Span) -> bool:
    return token[0] < span[1] and token[1] > span[0]


def _merge(spans: Iterable[Span]) -> list[Span]:
    """Return the ranges in order, those that overlap or adjoin as one."""
    merged: list[Span] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], last)
        else:
            merged.append((first, last))
    return merged
