"""Facts about the base model for the report: licence, chat template, context."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

from finetune_trainer.data.rows import Message
from finetune_trainer.evaluation.run_record import BaseFacts, Licence
from finetune_trainer.models.files.base_model import read_config
from finetune_trainer.models.files.context import context_length
from finetune_trainer.storage.hub.cards import parse_front_matter, read_card
from finetune_trainer.storage.protocol import ReadableStore
from finetune_trainer.tokenization.labeler import Labeler

LICENCE_LIMIT = 2000
LONGEST = 300
"""Longest identifier, name or link that is accepted, in characters."""


def read_licence(uri: str, storage: ReadableStore) -> Licence | None:
    """Return the licence that the card in the model's folder states; None without a card or a readable licence."""
    card = read_card(uri, storage)
    return None if card is None else parse_licence(card)


def parse_licence(card: str) -> Licence | None:
    """Return the licence in a model card's front matter; nothing else is read, because a card is foreign text."""
    found = parse_front_matter(card, "license", LICENCE_LIMIT)
    stated = found.get("license")
    identifiers = tuple(one for one in (stated if isinstance(stated, list) else [stated]) if _is_valid(one))
    if not identifiers:
        return None
    name, link = found.get("license_name"), found.get("license_link")
    return Licence(identifiers, name if _is_valid(name) else None, link if _is_valid(link) else None)


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


def _is_valid(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value.strip()) <= LONGEST and value.isprintable()
