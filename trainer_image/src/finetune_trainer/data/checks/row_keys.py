"""Short digests of rows and prompts: 60 bits, because a Python int of that size takes 32 bytes."""

import hashlib
import re
import sys
import unicodedata

import orjson

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.invisible import remove_invisible
from finetune_trainer.data.rows import BadRow, Message, Row, TextRow

KEY_BITS = 60
HASH_BITS = sys.hash_info.width
BUCKET_BITS = 16
BUCKET_MASK = (1 << BUCKET_BITS) - 1
REST_BYTES = 6
"""Bytes of a key without the bits of its bucket."""
# All accents are among these; to order a run of them takes time that grows with the square of its length.
_MANY_MARKS = re.compile(r"[^\w\s\x00-\x7f]{64}")


def row_key(row: Row) -> int:
    """Return the digest of a whole row and store its JSON in `written`; raises BadRow if JSON cannot hold the row.

    The digest differs between processes. It is the same for composed and decomposed characters, and without invisible
    ones.
    """
    try:
        row.written = orjson.dumps(row.content())
    except TypeError as error:
        if "surrogate" in str(error):
            raise BadRow(RejectCode.LONE_SURROGATE, "a string contains half of a surrogate pair") from None
        raise BadRow(RejectCode.WRONG_TYPE, f"a value cannot be written as JSON: {error}") from None
    written = row.written
    if not written.isascii():
        text = written.decode()
        plain = remove_invisible(text)
        plain = compose(plain) if _may_be_decomposed(written) else plain
        written = written if plain is text else plain.encode()
    return hash(written) >> (HASH_BITS - KEY_BITS)


def prompt_key(row: Row) -> int:
    """Return the digest of a conversation's first prompt or of a whole text, ignoring case, spacing, invisible
    characters and system text.

    Rows with the same prompt share it, whether its characters are composed or not, and so do longer and shorter parts
    of one conversation.
    """
    text = row.text if isinstance(row, TextRow) else _first_prompt(row.turns())
    return _digest(" ".join(compose(remove_invisible(text)).casefold().split()).encode())


def _may_be_decomposed(data: bytes) -> bool:
    """Return whether UTF-8 has an accent, a vowel of Hangul or a voiced mark of kana as a character of its own.

    To look for these bytes takes a tenth of the time of Unicode's own check.
    """
    # `in` with bytes raises and drops an error first, which takes longer than the search.
    has_mark = 0xCC in data or 0xCD in data
    return has_mark or (0xE1 in data and data.find(b"\xe1\x85") >= 0) or data.find(b"\xe3\x82\x99") >= 0


def compose(text: str) -> str:
    """Return the text with composed characters (Unicode's form NFC); as it is if it has a long run of accents."""
    if unicodedata.is_normalized("NFC", text) or _MANY_MARKS.search(text):
        return text
    return unicodedata.normalize("NFC", text)


def _first_prompt(turns: list[Message]) -> str:
    return next((message["content"] for message in turns if message["role"] == "user"), "")


def seeded_rank(key: int, seed: int) -> int:
    """Return a number that orders keys randomly, reproducible by the seed."""
    return _digest(key.to_bytes(8, "little") + seed.to_bytes(8, "little", signed=True))


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> (64 - KEY_BITS)


class SeenRows:
    """The `row_key`s of the rows so far, in buckets by their last bits: about 10 bytes for each, a set takes 80.

    The keys in `earlier` count as seen too.
    """

    def __init__(self, earlier: "SeenRows | None" = None) -> None:
        self._earlier = earlier
        self._buckets: list[bytearray | None] = [None] * (1 << BUCKET_BITS)

    def add(self, key: int) -> bool:
        """Add the key; return whether it is new."""
        if self._earlier is not None and key in self._earlier:
            return False
        place, rest = key & BUCKET_MASK, (key >> BUCKET_BITS).to_bytes(REST_BYTES, "little", signed=True)
        bucket = self._buckets[place]
        if bucket is None:
            self._buckets[place] = bytearray(rest)
        elif _has_key(bucket, rest):
            return False
        else:
            bucket += rest
        return True

    def __contains__(self, key: int) -> bool:
        bucket = self._buckets[key & BUCKET_MASK]
        rest = (key >> BUCKET_BITS).to_bytes(REST_BYTES, "little", signed=True)
        if bucket is not None and _has_key(bucket, rest):
            return True
        return self._earlier is not None and key in self._earlier


def _has_key(bucket: bytearray, rest: bytes) -> bool:
    at = bucket.find(rest)
    while at > 0 and at % REST_BYTES:  # the end of one key and the start of the next
        at = bucket.find(rest, at + 1)
    return at >= 0
