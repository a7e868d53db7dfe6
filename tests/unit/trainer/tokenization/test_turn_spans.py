import pytest

from finetune_trainer.data.rows import Message
from finetune_trainer.tokenization.template import ChatTemplate, TemplateFailure
from finetune_trainer.tokenization.tokenizer import special_token_pattern
from finetune_trainer.tokenization.turn_spans import TurnFinder

TURN = "<{{ message['role'] }}>{{ message['content'] }}"
PROMPT = "{% if add_generation_prompt %}<assistant>{% endif %}"


def each(turn: str) -> str:
    return f"{{% for message in messages %}}{turn}{{% endfor %}}"


def said(*texts: str) -> list[Message]:
    return [Message(role="assistant" if turn % 2 else "user", content=text) for turn, text in enumerate(texts)]


def find(
    template: str, messages: list[Message], turns: list[int], eos: str | None = None
) -> list[tuple[tuple[int, ...], list[str]]]:
    finder = TurnFinder(ChatTemplate(template, {}), special_token_pattern(["<end>", "<stop>"]), eos)
    found = finder.find(messages, None, turns)
    return [(one.turns, [one.text[slice(*span)] for span in one.spans]) for one in found]


@pytest.mark.parametrize(
    ("end", "trained"),
    [
        ("<end>", "a<end>"),
        ("<end>\n", "a<end>"),
        ("<end><stop>", "a<end><stop>"),
        ("<end> <stop>", "a<end>"),
        (" <end>", "a <end>"),
    ],
)
def test_an_answer_ends_with_its_first_run_of_stop_tokens(end: str, trained: str) -> None:
    assert find(each(TURN + end) + PROMPT, said("q", "a"), [1]) == [((1,), [trained])]


def test_a_stop_token_within_an_answer_does_not_end_it() -> None:
    assert find(each(TURN + "<end>") + PROMPT, said("q", "a<end>b"), [1]) == [((1,), ["a<end>b<end>"])]


@pytest.mark.parametrize(("eos", "trained"), [("</s>", "a</s>"), (None, "a")])
def test_an_answer_without_a_stop_token_ends_with_eos_in_place_of_the_spaces_after_it(
    eos: str | None, trained: str
) -> None:
    assert find(each(TURN + " \n") + PROMPT, said("q", "a"), [1], eos) == [((1,), [trained])]


def test_answers_share_a_rendering_as_long_as_later_turns_leave_them_as_they_were() -> None:
    messages = said("q", "a", "r", "b", "s", "c")
    assert find(each(TURN + "<end>") + PROMPT, messages, [1, 3, 5]) == [((1, 3, 5), ["a<end>", "b<end>", "c<end>"])]
    marked = each(
        TURN.replace(
            "{{ message['content'] }}",
            "{{ '!' if loop.last and message['role'] == 'assistant' }}{{ message['content'] }}",
        )
        + "<end>"
    )
    assert find(marked + PROMPT, messages, [3, 5]) == [((3,), ["!b<end>"]), ((5,), ["!c<end>"])]


@pytest.mark.parametrize("opened", ["<think>", "<assistant>x"])
def test_an_answer_begins_where_the_generation_prompt_shows_more_than_the_turn(opened: str) -> None:
    template = each(TURN + "<end>") + PROMPT.replace("<assistant>", f"<assistant>{opened}")
    assert find(template, said("q", "a"), [1]) == [((1,), ["a<end>"])]


def test_an_answer_that_spells_the_opened_mark_keeps_it() -> None:
    template = each(TURN + "<end>") + PROMPT.replace("<assistant>", "<assistant><think>")
    assert find(template, said("q", "<thin> a"), [1]) == [((1,), ["<thin> a<end>"])]


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[-1]['content'] }}" + each(TURN + "<end>") + PROMPT,
        "{{ messages | length }}" + each(TURN + "<end>") + PROMPT,
    ],
)
def test_a_template_that_does_not_separate_the_answer_from_the_prompt_fails(template: str) -> None:
    with pytest.raises(TemplateFailure, match="separate"):
        find(template, said("q", "a"), [1])
