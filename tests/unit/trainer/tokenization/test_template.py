import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.data.rows import Message
from finetune_trainer.tokenization.template import ChatTemplate, TemplateFailure

MESSAGES: list[Message] = [{"role": "user", "content": "q"}]


def render(source: str) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(MESSAGES)


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
