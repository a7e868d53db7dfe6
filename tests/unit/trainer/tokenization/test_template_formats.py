import tracemalloc

import pytest

from finetune_trainer.tokenization.template import ChatTemplate, TemplateFailure


def render(source: str) -> str:
    return ChatTemplate(source, {}).render([{"role": "user", "content": "q"}])


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ '%s|%5d|%%' % ('a', 7) }}", "a|    7|%"),
        ("{{ '%s and %(name)s' | format(1) if false else '%s' | format(1) }}", "1"),
        ("{{ '%(name)s' | format(name='x') }}", "x"),
        ("{{ '{}-{:>3}-{name}'.format(1, 2, name='x') }}", "1-  2-x"),
        ("{{ '{0[role]}'.format(messages[0]) }}", "user"),
    ],
)
def test_ordinary_formats_are_written_as_in_python(source: str, text: str) -> None:
    assert render(source) == text


@pytest.mark.parametrize(
    "source",
    [
        "{{ '%999999999d' | format(1) }}",
        "{{ '%*d' | format(999999999, 1) }}",
        "{{ '%-+999999999d' % 1 }}",
        "{{ '%.999999999f' % 1 }}",
        "{{ '%(n)999999999d' | format(n=1) }}",
        "{{ '{:>999999999}'.format('a') }}",
        "{{ '{:>{}}'.format('a', 999999999) }}",
        "{{ '{x:>{w}}'.format_map({'x': 'a', 'w': 999999999}) }}",
    ],
)
def test_a_format_that_pads_to_any_width_is_refused_before_it_takes_memory(source: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TemplateFailure):
            render(source)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
