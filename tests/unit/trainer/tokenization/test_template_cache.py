from typing import Any

import pytest

from finetune_trainer.data.rows import Message
from finetune_trainer.tokenization import template_cache
from finetune_trainer.tokenization.template import ChatTemplate
from finetune_trainer.tokenization.template_cache import TemplateCache
from finetune_trainer.tokenization.tokenizer import special_token_pattern
from finetune_trainer.tokenization.turn_spans import TurnFinder

TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<assistant>{% endif %}"


def make_cache() -> TemplateCache:
    template = ChatTemplate(TEMPLATE, {})
    return TemplateCache(template, TurnFinder(template, special_token_pattern(["<end>"]), None))


def talk(turns: int) -> list[Message]:
    return [Message(role="assistant" if turn % 2 else "user", content=f"text {turn}") for turn in range(turns)]


def test_an_answer_is_found_by_the_outline_of_its_conversation() -> None:
    (rendering,) = make_cache().find(talk(2), [1]) or []
    assert [rendering.text[slice(*span)] for span in rendering.spans] == ["text 1<end>"]


def test_conversations_of_ever_new_shapes_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_cache, "MAX_OUTLINES", 3)
    cache: Any = make_cache()
    for turns in range(2, 22, 2):
        assert cache.find(talk(turns), [turns - 1])
        assert len(cache._known) <= 3
