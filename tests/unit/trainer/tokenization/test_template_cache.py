from typing import Any

import pytest

from finetune_trainer.data.rows import Message
from finetune_trainer.tokenization import template, template_cache
from finetune_trainer.tokenization.template import ChatTemplate
from finetune_trainer.tokenization.template_cache import TemplateCache
from finetune_trainer.tokenization.tokenizer import special_token_pattern
from finetune_trainer.tokenization.turn_spans import TurnFinder

TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<assistant>{% endif %}"


def make_cache(source: str = TEMPLATE) -> TemplateCache:
    shown = ChatTemplate(source, {})
    return TemplateCache(shown, TurnFinder(shown, special_token_pattern(["<end>"]), None))


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


def said(*texts: str) -> list[Message]:
    return [Message(role="assistant" if turn % 2 else "user", content=text) for turn, text in enumerate(texts)]


def spans(cache: TemplateCache, messages: list[Message], turns: list[int]) -> list[list[str]] | None:
    found = cache.find(messages, turns)
    return found and [[one.text[slice(*span)] for span in one.spans] for one in found]


@pytest.mark.parametrize("text", [" a", "a ", " a ", "\n a b\n", " ", "", "a"])
@pytest.mark.parametrize(("method", "strip"), [("strip", str.strip), ("lstrip", str.lstrip), ("rstrip", str.rstrip)])
def test_a_text_that_the_template_strips_is_found_by_the_outline(text: str, method: str, strip: Any) -> None:
    cache = make_cache(TEMPLATE.replace("message['content']", f"message['content'].{method}()"))
    assert spans(cache, said("q", text), [1]) == [[strip(text) + "<end>"]]
    assert spans(cache, said(text, "a"), [1]) == [["a<end>"]]


def test_every_answer_asked_for_is_found_and_no_other() -> None:
    messages = said("q", "a", "r", "b", "s", "c")
    assert spans(make_cache(), messages, [1, 5]) == [["a<end>", "c<end>"]]
    assert spans(make_cache(), messages, [1, 3]) == [["a<end>", "b<end>"]]


def test_a_text_before_the_first_turn_and_one_after_the_last_belong_to_the_outline() -> None:
    cache = make_cache("<begin>" + TEMPLATE.replace("{% endfor %}", "\n{% endfor %}"))
    (found,) = cache.find(said("q", "a"), [1]) or []
    assert found.text == "<begin><user>q<end>\n<assistant>a<end>\n"
    assert [found.text[slice(*span)] for span in found.spans] == ["a<end>"]


@pytest.mark.parametrize(
    "source",
    [
        "{% if messages[0]['content'] == 'q' %}!{% endif %}" + TEMPLATE,
        TEMPLATE + "{% if messages[0]['content'] == 'q' %}!{% endif %}",
        TEMPLATE.replace("message['content']", "message['content'] | replace('q', 'r')"),
        "{{ 'A' if messages[0]['content'] == 'q' else 'B' }}" + TEMPLATE,
        TEMPLATE.replace("<end>", "{{ '!' if message['content'] == 'q' else '' }}<end>"),
    ],
)
def test_a_row_that_the_template_treats_in_a_way_of_its_own_is_not_found_by_the_outline(source: str) -> None:
    assert spans(make_cache(source), said("q", "a"), [1]) is None
    assert spans(make_cache(source), said("p", "a"), [1]) == [["a<end>"]]


@pytest.mark.parametrize(
    "source",
    [
        TEMPLATE.replace("message['content']", "message['content'] + message['content']"),
        "{{ messages[1]['content'] if messages | length > 1 else '' }}" + TEMPLATE,
        TEMPLATE.replace("in messages", "in messages[1:]"),
        "{{ raise_exception('no') }}",
    ],
)
def test_a_template_that_does_not_render_each_turn_once_and_in_order_has_no_outline(source: str) -> None:
    cache: Any = make_cache(source)
    assert cache.find(said("q", "a", "r", "b"), [3]) is None
    assert set(cache._known.values()) == {None}


def test_an_outline_is_made_once_for_each_order_of_roles_and_choice_of_answers() -> None:
    cache: Any = make_cache()
    for messages, turns in ((said("q", "a"), [1]), (said("r", "b"), [1]), (said("q", "a", "r", "b"), [1])):
        assert cache.find(messages, turns)
    first = list(cache._known.values())
    assert cache.find(said("s", "c"), [1])
    assert [one is other for one, other in zip(cache._known.values(), first, strict=True)] == [True, True]


def test_an_answer_may_be_the_first_turn() -> None:
    assert spans(make_cache("<begin>" + TEMPLATE), [Message(role="assistant", content="a")], [0]) == [["a<end>"]]


def test_many_conversations_are_rendered_by_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(said("q", str(number)), [1]) for number in range(20)]
    cache = make_cache()
    alone = [cache.find(*row) for row in rows]
    asked: list[int] = []

    def ask(source: str, variables: dict[str, Any], requests: Any, most: int) -> Any:
        asked.append(len(requests))
        return known(source, variables, requests, most)

    known = template._WORKER.ask
    monkeypatch.setattr(template._WORKER, "ask", ask)
    cache.render_ahead(rows)
    assert [cache.find(*row) for row in rows] == alone
    assert asked == [20]


def test_a_conversation_that_the_template_rejects_is_rejected_after_it_was_rendered_ahead() -> None:
    cache = make_cache("{% if 'no' in messages[0].content %}{{ raise_exception('refused') }}{% endif %}" + TEMPLATE)
    rows = [(said("no", "a"), [1]), (said("yes", "a"), [1])]
    cache.render_ahead(rows)
    with pytest.raises(template.TemplateFailure, match="refused"):
        cache.find(*rows[0])
    assert spans(cache, *rows[1]) == [["a<end>"]]
