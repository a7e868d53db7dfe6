"""The card of a repository on a hub: entries of its front matter. The rest is not read, because it is foreign text."""

from typing import Any

import yaml

from finetune_trainer.storage.protocol import ReadableStore, join_uri

CARD = "README.md"
CARD_LIMIT = 1024 * 1024


def read_card(uri: str, storage: ReadableStore) -> str | None:
    """Return the start of the card in a model's or dataset's folder, or None without a card."""
    where = join_uri(uri, CARD)
    size = storage.size(where)
    return storage.read_range(where, 0, min(size, CARD_LIMIT)).decode(errors="replace") if size else None


def parse_front_matter(card: str, name: str, limit: int) -> dict[str, Any]:
    """Return the entries of the front matter that begin with `name`; empty if they are unreadable or exceed `limit`."""
    try:
        found = yaml.safe_load(_entries(card, name, limit))
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _entries(card: str, name: str, limit: int) -> str:
    """Return the entries of the front matter that begin with `name`, each with its lines."""
    fence, *lines = [line.rstrip() for line in card.removeprefix("\ufeff").splitlines()] or [""]
    if fence != "---" or "---" not in lines:
        return ""
    kept: list[str] = []
    is_kept = False
    for line in lines[: lines.index("---")]:
        if line[:1] not in ("", " ", "-", "#"):
            is_kept = line.startswith(name)
        if is_kept:
            kept.append(line)
    text = "\n".join(kept)
    return text if len(text) <= limit else ""
