import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.data.rows import Message, ToolCall
from finetune_trainer.tokenization import template, template_sandbox
from finetune_trainer.tokenization.template import ChatTemplate, TemplateFailure
from finetune_trainer.tokenization.template_sandbox import SandboxedTemplate

MESSAGES: list[Message] = [{"role": "user", "content": "q"}]


def render(source: str) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(MESSAGES)


def render_here(source: str) -> str:
    """In this process, where a test may change a limit of the sandbox."""
    return SandboxedTemplate(source, {}).render(MESSAGES, None, add_generation_prompt=False)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{{ messages[0].content }}", "<s>q"),
        ("{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
        ("{% for n in range(9) %}{% if n == 2 %}{% break %}{% endif %}{{ n }}{% endfor %}", "01"),
        ("{% generation %}x{% endgeneration %}", "x"),
        ("{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{{ ns.a }}", "2"),
        ("{{ 'ab' * 3 }}{{ 2 * 3 }}{{ '-' * 0 }}{{ 7 % 2 }}", "ababab61"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("  {% if true %}\nx\n  {% endif %}\n", "x\n"),
        ("{{ tools is none }}{{ missing is defined }}", "TrueFalse"),
    ],
)
def test_templates_find_what_transformers_gives_them(source: str, text: str) -> None:
    assert render(source) == text


@pytest.mark.parametrize(
    "source",
    [
        "{{ ().__class__.__bases__[0].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ 'x' * 99999999 }}",
        "{{ [1] * 99999999 }}",
        "{{ 9 ** 99999999 }}",
        "{{ '%99999999d' % 1 }}",
        "{{ 'x'.ljust(99999999) }}",
        "{{ 'x' | center(99999999) }}",
        "{{ '{:99999999d}'.format(1) }}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "{{ 'x' | center(10 ** 6) }}",
        "{{ 'x'.zfill(99999999999999) }}",
        "{{ 'x'['ljust'](99999999999999) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ raise_exception('no') }}",
        "{{ messages[5].content + 1 }}",
        "{% if %}",
        "{% include 'x' %}",
    ],
)
def test_a_template_that_is_broken_or_hostile_fails_and_is_bounded(source: str) -> None:
    with pytest.raises(TemplateFailure):
        render(source)


@given(
    source=st.lists(st.sampled_from(["{{", "}}", "{%", "%}", "messages", "[0]", ".content", " if ", "for", "|", "x"]))
)
@settings(max_examples=200, deadline=None)
def test_no_template_raises_anything_else(source: list[str]) -> None:
    try:
        render(" ".join(source))
    except TemplateFailure:
        return


@pytest.mark.parametrize(
    ("limit", "size", "largest", "larger"),
    [
        ("MAX_TEXT_CHARACTERS", 4, "{{ 'ab' }}{{ 'cd' }}", "{{ 'ab' }}{{ 'cde' }}"),
        ("MAX_REPEATED_CHARACTERS", 6, "{{ 'ab' * 3 }}", "{{ 'ab' * 4 }}"),
        ("MAX_REPEATED_CHARACTERS", 6, "{{ 3 * 'ab' }}", "{{ 4 * 'ab' }}"),
        ("MAX_RANGE_ITEMS", 6, "{{ range(3) | list }}{{ range(3) | list }}", "{{ range(3) }}{{ range(4) }}"),
    ],
)
def test_a_template_may_reach_a_limit_and_not_exceed_it(
    limit: str, size: int, largest: str, larger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_sandbox, limit, size)
    render_here(largest)
    with pytest.raises(TemplateFailure):
        render_here(larger)


def test_a_template_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "MAX_TEMPLATE_CHARACTERS", 4)
    assert render("abcd") == "abcd"
    with pytest.raises(TemplateFailure):
        render("abcde")


def test_each_rendering_may_count_as_far_as_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "MAX_RANGE_ITEMS", 3)
    counting = SandboxedTemplate("{% for n in range(3) %}{{ n }}{% endfor %}", {})
    assert [counting.render([], None, add_generation_prompt=False) for _ in range(2)] == ["012", "012"]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ '%3d' % 7 }}", "  7"),
        ("{{ '%3d' | format(7) }}", "  7"),
        ("{{ '%(a)s' | format(a=1) }}", "1"),
        ("{{ '{:3d}'.format(7) }}", "  7"),
        ("{{ {'a': [1, 'é']} | tojson(indent=1) }}", '{\n "a": [\n  1,\n  "é"\n ]\n}'),
        ("{{ {'b': 1, 'a': 'é'} | tojson(ensure_ascii=true, sort_keys=true) }}", '{"a": "\\u00e9", "b": 1}'),
        ("{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':')) }}", '{"b":1,"a":2}'),
    ],
)
def test_texts_are_formatted_as_in_transformers(source: str, text: str) -> None:
    assert render(source) == text


@pytest.mark.parametrize(
    "source",
    ["{{ '%9999d' | format(1) }}", "{{ '%*d' % (9, 1) }}", "{{ '{:{}}'.format(1, 9) }}", "{{ 'x'.center(3) }}"],
)
def test_a_template_may_not_pad_a_text_to_any_width(source: str) -> None:
    with pytest.raises(TemplateFailure):
        render(source)


def test_turns_are_given_to_the_template_without_the_mark_of_training() -> None:
    message: Message = {"role": "assistant", "content": "a", "train": False, "reasoning_content": "hm"}
    shown = ChatTemplate("{% for key in messages[0] | sort %}{{ key }}={{ messages[0][key] }} {% endfor %}", {})
    assert shown.render([message]) == "content=a reasoning_content=hm role=assistant thinking=hm "
    shown.as_parts = True
    assert "content=[{'type': 'text', 'text': 'a'}]" in shown.render([message])


def test_arguments_of_calls_are_objects_or_text_as_the_template_wants_them() -> None:
    call: ToolCall = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": "é"}}}
    shown = ChatTemplate("{{ messages[0].tool_calls[0] | tojson }}", {})
    turn: Message = {"role": "assistant", "content": "", "tool_calls": [call]}
    assert shown.render([turn]) == '{"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": "é"}}}'
    shown.arguments_as_text = True
    assert shown.render([turn]).endswith('"function": {"name": "f", "arguments": "{\\"a\\": \\"é\\"}"}}')
    plain = ChatTemplate("{{ messages[0] | tojson }}", {})
    plain.arguments_as_text = True
    assert plain.render(MESSAGES) == '{"role": "user", "content": "q"}'


def test_a_turn_with_more_than_a_text_is_not_taken_for_a_plain_one_that_was_rendered_ahead() -> None:
    plain: Message = {"role": "assistant", "content": "a"}
    shown = ChatTemplate("{{ messages[0].content }}{{ messages[0].reasoning_content }}", {})
    shown.render_ahead([[plain]])
    assert shown.render([{"role": "assistant", "content": "a", "reasoning_content": "hm"}]) == "ahm"
    assert shown.render([{"role": "assistant", "content": "a", "train": False}]) == "a"
