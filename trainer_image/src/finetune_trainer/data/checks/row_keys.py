"""Short digests of rows and prompts: 60 bits, because a Python int of that size takes 32 bytes."""

import hashlib
import sys
from bisect import bisect_left

import numpy as np
import orjson

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.rows import BadRow, Message, Row, TextRow

KEY_BITS = 60
HASH_BITS = sys.hash_info.width
RECENT_ROWS = 1 << 16
"""Keys that are kept in a set, which takes ten times the memory, before they are sorted into the others."""


def row_key(row: Row) -> int:
    """Return the digest of a whole row and store its JSON in `written`; raises BadRow if JSON cannot hold the row.

    The digest differs between processes.
    """
    try:
        row.written = orjson.dumps(row.content())
    except TypeError as error:
        if "surrogate" in str(error):
            raise BadRow(RejectCode.LONE_SURROGATE, "a string contains half of a surrogate pair") from None
        raise BadRow(RejectCode.WRONG_TYPE, f"a value cannot be written as JSON: {error}") from None
    return hash(row.written) >> (HASH_BITS - KEY_BITS)


def prompt_key(row: Row) -> int:
    """Return the digest of a conversation's first prompt or of a whole text, ignoring case, spacing and system text.

    Rows with the same prompt share it, and so do longer and shorter parts of one conversation.
    """
    text = row.text if isinstance(row, TextRow) else _first_prompt(row.turns())
    return _digest(" ".join(text.casefold().split()).encode())


def _first_prompt(turns: list[Message]) -> str:
    return next((message["content"] for message in turns if message["role"] == "user"), "")


def seeded_rank(key: int, seed: int) -> int:
    """Return a number that orders keys randomly, reproducible by the seed."""
    return _digest(key.to_bytes(8, "little") + seed.to_bytes(8, "little", signed=True))


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> (64 - KEY_BITS)


class SeenRows:
    """The `row_key`s of the rows so far: eight bytes each, and as many again while the recent ones are sorted in."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted = np.empty(0, np.int64)
        self._keys = self._sorted.data

    def add(self, key: int) -> bool:
        """Add the key; return whether it is new."""
        if key in self._recent:
            return False
        at = bisect_left(self._keys, key)
        if at < len(self._keys) and self._keys[at] == key:
            return False
        self._recent.add(key)
        if len(self._recent) == RECENT_ROWS:
            self._sort_in()
        return True

    def _sort_in(self) -> None:
        recent = np.fromiter(self._recent, np.int64, len(self._recent))
        recent.sort()
        self._recent.clear()
        self._sorted = np.insert(self._sorted, np.searchsorted(self._sorted, recent), recent)
        self._keys = self._sorted.data
