"""Short digests of rows and prompts: 60 bits, because a Python int of that size takes 32 bytes."""

import hashlib
import sys
from array import array

import orjson

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.rows import BadRow, Message, Row, TextRow

KEY_BITS = 60
HASH_BITS = sys.hash_info.width
SMALLEST_TABLE = 1 << 12
FILLED = 0.75
"""Share of a table's places from which on it is doubled: beyond it, a search takes many steps."""


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
    """The `row_key`s of the rows so far, in a table with open addressing: 11 to 21 bytes for each, a set takes 80."""

    def __init__(self) -> None:
        self._table = _empty_table(SMALLEST_TABLE)
        self._count = 0

    def add(self, key: int) -> bool:
        """Add the key; return whether it is new."""
        is_new = _insert(self._table, key)
        self._count += is_new
        if self._count > FILLED * len(self._table):
            old, self._table = self._table, _empty_table(2 * len(self._table))
            for one in old:
                if one:
                    _insert(self._table, one)
        return is_new


def _empty_table(places: int) -> "array[int]":
    return array("q", (0,)) * places


def _insert(table: "array[int]", key: int) -> bool:
    """Insert the key, which is its own hash; return whether it is new. 0 is an empty place."""
    key, last = key or 1, len(table) - 1
    place = key & last
    while found := table[place]:
        if found == key:
            return False
        place = (place + 1) & last
    table[place] = key
    return True
