"""How similar two texts are, from 0 to 1: by their characters, or by the words that they share; without torch."""

import re
import unicodedata
from collections import Counter

from rapidfuzz.distance import Indel, LCSseq

from finetune_api.rewards import Similarity

LONGEST_TEXT = 65_536
"""Characters of a text that are compared, which takes a fraction of a second."""
WORDS_AT_ONCE = {Similarity.ROUGE_1: 1, Similarity.ROUGE_2: 2, Similarity.ROUGE_L: 1}
_WORD = re.compile(r"[^\W_]+")


def find_fault(reference: str, how: Similarity) -> str | None:
    """Return why no answer can be compared with this reference, as a predicate; None if one can."""
    if len(reference.strip()) > LONGEST_TEXT:
        return f"is longer than {LONGEST_TEXT:,} characters"
    if not reference.strip():
        return "is empty"
    found, needed = len(read_words(reference)), WORDS_AT_ONCE.get(how, 0)
    return f"has {found} words, of at least {needed}" if found < needed else None


def measure_similarity(answer: str, reference: str, how: Similarity) -> float:
    """Return how similar the texts are; of an answer that is longer than `LONGEST_TEXT` its beginning counts."""
    if how is Similarity.FUZZY_MATCH:
        return float(Indel.normalized_similarity(_plain(answer), _plain(reference)))
    left, right = read_words(answer), read_words(reference)
    if how is Similarity.ROUGE_L:
        return _f_measure(LCSseq.similarity(left, right), len(left), len(right))
    pairs = [_sequences(words, WORDS_AT_ONCE[how]) for words in (left, right)]
    return _f_measure((pairs[0] & pairs[1]).total(), pairs[0].total(), pairs[1].total())


def read_words(text: str) -> list[str]:
    """Return the words of a text in lower case: runs of letters and digits, as ROUGE counts them."""
    return _WORD.findall(_plain(text).lower())


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip()[:LONGEST_TEXT])


def _sequences(words: list[str], length: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[at:] for at in range(length)), strict=False))


def _f_measure(common: int, left: int, right: int) -> float:
    """Return the harmonic mean of precision and recall."""
    return 2 * common / (left + right) if common else 0.0
