"""Facts about the base model for the report: licence, chat template, context."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from finetune_trainer.data.rows import Message
from finetune_trainer.evaluation.run_record import BaseFacts, Licence
from finetune_trainer.models.base_model import read_config
from finetune_trainer.storage.protocol import ReadableStore, join_uri
from finetune_trainer.tokenization.labeler import Labeler

CARD = "README.md"
CARD_LIMIT = 1024 * 1024
LICENCE_LIMIT = 2000
LONGEST = 300
"""Longest identifier, name or link that is accepted, in characters."""


def read_licence(uri: str, storage: ReadableStore) -> Licence | None:
    """Return the licence that the card in the model's folder states; None without a card or a readable licence."""
    where = join_uri(uri, CARD)
    size = storage.size(where)
    if not size:
        return None
    return parse_licence(storage.read_range(where, 0, min(size, CARD_LIMIT)).decode(errors="replace"))


def parse_licence(card: str) -> Licence | None:
    """Return the licence in a model card's front matter; nothing else is read, because a card is foreign text."""
    try:
        found = yaml.safe_load(_licence_lines(card))
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    stated = found.get("license") if isinstance(found, dict) else None
    identifiers = tuple(one for one in (stated if isinstance(stated, list) else [stated]) if _is_valid(one))
    if not identifiers:
        return None
    name, link = found.get("license_name"), found.get("license_link")
    return Licence(identifiers, name if _is_valid(name) else None, link if _is_valid(link) else None)


def _licence_lines(card: str) -> str:
    """Return the entries of the front matter that begin with `license`, each with its lines."""
    fence, *lines = [line.rstrip() for line in card.removeprefix("\ufeff").splitlines()] or [""]
    if fence != "---" or "---" not in lines:
        return ""
    kept: list[str] = []
    is_kept = False
    for line in lines[: lines.index("---")]:
        if line[:1] not in ("", " ", "-", "#"):
            is_kept = line.startswith("license")
        if is_kept:
            kept.append(line)
    text = "\n".join(kept)
    return text if len(text) <= LICENCE_LIMIT else ""


def describe_base(
    model: Path, labeler: Labeler, licence: Licence | None, prompts: Sequence[Sequence[Message]]
) -> BaseFacts:
    """Return the facts about a model's folder; `prompts` are the turns of each question."""
    config = read_config(model)
    rendered = [labeler.render_prompt(prompt)[1] for prompt in prompts]
    return BaseFacts(
        licence=licence,
        is_template_made=labeler.is_fallback_template,
        context_length=context_length(config),
        prompt_tokens=tuple(len(ids) for ids in rendered),
    )


def context_length(config: dict[str, Any]) -> int | None:
    """Return the context length, from the text part of the configuration if there is one."""
    inner = config.get("text_config")
    found = (inner if isinstance(inner, dict) else config).get("max_position_embeddings")
    return found if isinstance(found, int) and found > 0 else None


def _is_valid(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value.strip()) <= LONGEST and value.isprintable()
