"""Short digests of rows and prompts: 60 bits, for a Python int of that size takes 32 bytes and no more."""

import hashlib
from typing import Any

import orjson

from finetune_trainer.data.rows import BadRow, Message, RejectCode

KEY_BITS = 60


def row_key(messages: list[Message], tools: list[dict[str, Any]] | None) -> int:
    """Return the digest of a whole row; raises BadRow for what JSON cannot hold, such as half a surrogate pair."""
    try:
        return _digest(orjson.dumps([messages, tools] if tools else messages))
    except TypeError as error:
        if "surrogate" in str(error):
            raise BadRow(RejectCode.LONE_SURROGATE, "a string holds half of a surrogate pair") from None
        raise BadRow(RejectCode.WRONG_TYPE, f"a value cannot be written as JSON: {error}") from None


def prompt_key(messages: list[Message]) -> int:
    """Return the digest of a conversation's first prompt, blind to case, spacing and the system text.

    The rows of one prompt, and the longer and shorter cuts of one conversation, share it.
    """
    prompt = next((message["content"] for message in messages if message["role"] == "user"), "")
    return _digest(" ".join(prompt.casefold().split()).encode())


def seeded_rank(key: int, seed: int) -> int:
    """Return a number that orders keys at random, the same way for the same seed."""
    return _digest(key.to_bytes(8, "little") + seed.to_bytes(8, "little", signed=True))


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> (64 - KEY_BITS)
