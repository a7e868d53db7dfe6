"""Proof that both ends of a connection between pods hold the attempt's token, and that each line is from them.

The first pod sends a random number, the other pod answers with one of its own and an HMAC of both. Both ends derive a
key for each direction from the token and the two numbers, and every later line ends with its HMAC under that key. The
token is never sent, a connection's lines cannot be replayed, and neither end accepts the lines that it sent itself.
"""

import hmac
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.errors import InvalidConfig

TOKEN = re.compile(r"[0-9a-f]{64}")
NONCE_BYTES = 16


def read_token(path: Path) -> bytes:
    """Return the attempt's token from the file that the operator's ConfigMap is mounted as."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        problem = f"{path} cannot be read: {error}"
        raise InvalidConfig(f"{problem}: pods that train together need a token") from None
    if not TOKEN.fullmatch(text):
        raise InvalidConfig(f"{path} must have 64 hexadecimal digits, in lower case")
    return bytes.fromhex(text)


def make_nonce() -> str:
    """Return a random number for one connection."""
    return secrets.token_hex(NONCE_BYTES)


class Seal:
    """The HMACs of the lines of one direction, which count the lines."""

    def __init__(self, key: bytes) -> None:
        self._key, self._count = key, 0

    def sign(self, text: str) -> str:
        """Return the line with its HMAC."""
        return f"{text} {self._mac(text)}"

    def open(self, line: str) -> str | None:
        """Return the line without its HMAC; None if it is not the next line of the other end."""
        text, _, found = line.rpartition(" ")
        return text if hmac.compare_digest(found.encode(), self._mac(text).encode()) else None

    def _mac(self, text: str) -> str:
        self._count += 1
        return hmac.digest(self._key, f"{self._count} {text}".encode(), "sha256").hex()


@dataclass(frozen=True, slots=True)
class Handshake:
    """What both ends of a connection have once the other pod has answered."""

    token: bytes
    attempt: str
    node: int
    first_nonce: str
    """From the first pod."""
    other_nonce: str

    def proof(self) -> str:
        """Return the other pod's proof."""
        return self._derive("hello").hex()

    def is_proof(self, found: str) -> bool:
        """Return whether the text is the other pod's proof."""
        return hmac.compare_digest(found.encode(), self.proof().encode())

    def to_first(self) -> Seal:
        """Return the seal of the lines that the other pod sends."""
        return Seal(self._derive("to-first"))

    def to_other(self) -> Seal:
        """Return the seal of the lines that the first pod sends."""
        return Seal(self._derive("to-other"))

    def _derive(self, purpose: str) -> bytes:
        text = f"{purpose} {self.attempt} {self.node} {self.first_nonce} {self.other_nonce}"
        return hmac.digest(self.token, text.encode(), "sha256")
